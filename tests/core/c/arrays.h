/* Arrays between inaccessible pages, and batches in them. */
#ifndef ARRAYS_H
#define ARRAYS_H

#include "abn.h"

/* An access past this side crashes; writes past the other side, within its page, are detected when the array is
 * closed. */
typedef enum { FLUSH_START, FLUSH_END } flush_side;

typedef struct {
    char *pages;
    size_t page_bytes;
    void *data;
    size_t bytes;
} array;

/* Every byte is 0xff: NaN in every storage type. */
array array_open(size_t bytes, flush_side side);
array array_of_doubles(const double *values, ptrdiff_t count, flush_side side);
void array_freeze(const array *a); /* makes it read-only: a write crashes */
void array_thaw(const array *a);
void array_close(array *a); /* checks that nothing was written around it */

/* The memory layout of a batch. Gaps, in elements: row_gap follows each channel's positions (channels-last: each
 * position's channels), image_gap follows each image. */
typedef struct {
    const char *name;
    int channels_last;
    ptrdiff_t row_gap, image_gap;
} layout;

typedef struct {
    ptrdiff_t batch, channels, spatial;
} shape;

static inline ptrdiff_t elements_of(shape s) { return s.batch * s.channels * s.spatial; }

typedef struct {
    array memory;
    abn_batch batch;
} tensor;

tensor tensor_open(abn_dtype dtype, shape of, layout as, flush_side side);

/* To and from plain arrays in the order (image, channel, position). */
void tensor_write(const tensor *t, const double *values);
void tensor_read(const tensor *t, double *values);
void tensor_close(tensor *t); /* checks that nothing was written between its elements and around them */

/* The storage types, computed from their definitions and independently of the library. */
extern const char *const dtype_names[ABN_DTYPES];
typedef struct {
    int digits;         /* of the significand, with the hidden one */
    int least_exponent; /* of the smallest normal number 2^least_exponent */
    double largest;
} number_format;
extern const number_format formats[ABN_DTYPES];

double rounded(abn_dtype dtype, double value); /* to nearest even */
double spacing_near_zero(abn_dtype dtype);

#endif
