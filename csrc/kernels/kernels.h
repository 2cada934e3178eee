/* The kernels of one instruction set and one storage type: rows of elements in, numbers out.
 *
 * A tile is `rows` rows of `length` elements. In ABN_ROWS kernels each row belongs to one channel, and constants and
 * sums go by row; in ABN_COLUMNS kernels each column does, and they go by column. A batch's memory order does not
 * settle which of the two it takes: operation.c chooses. Kernels take any alignment that the storage type allows,
 * allocate nothing and cannot fail. `destination` may be one of the inputs. */
#ifndef ABN_KERNELS_H
#define ABN_KERNELS_H

#include "../abn.h"

enum { ABN_ROWS, ABN_COLUMNS, ABN_LAYOUTS };

typedef struct {
    const void *data;
    ptrdiff_t stride; /* elements from row to row */
} abn_input;

typedef struct {
    abn_input source;   /* x, or the kept buffer */
    abn_input gradient; /* dz */
    void *destination;  /* z or dx */
    ptrdiff_t destination_stride;
    ptrdiff_t rows, length;
} abn_tile;

/* Constants per channel: arrays of float, or of double for float64 storage.
 *   from x:  w = (x - centre) * scale + shift
 *   from z:  w = activation^-1(z) * scale + shift
 *   kept x:  y = w * weight + bias
 *   result:  dx = dy * dy_factor + w * w_factor + offset */
enum { ABN_CENTRE, ABN_SCALE, ABN_SHIFT, ABN_WEIGHT, ABN_BIAS, ABN_DY_FACTOR, ABN_W_FACTOR, ABN_OFFSET, ABN_CONSTANTS };
typedef struct {
    const void *of[ABN_CONSTANTS];
    double param;        /* of the activation */
    double escape_below; /* z of escaped elements lies below it */
} abn_constants;

/* Running sums of a tile's channels, kept as partial sums that a kernel can update at the speed of loads:
 * ABN_ROWS: per row two vectors of ABN_LANE_BYTES; ABN_COLUMNS: two arrays of `length` numbers, the second
 * beginning ABN_COLUMNS_STRIDE numbers after the first. */
#define ABN_LANE_BYTES 64
#define ABN_ROWS_MAX 64      /* rows of an ABN_ROWS tile */
#define ABN_COLUMNS_MAX 1024 /* length of an ABN_COLUMNS tile */
#define ABN_PADDING 16       /* numbers that may be read past the end of an array of constants or sums */
#define ABN_COLUMNS_STRIDE (ABN_COLUMNS_MAX + ABN_PADDING)
#define ABN_PARTIAL_BYTES (2 * ABN_COLUMNS_STRIDE * sizeof(double)) /* enough for either layout */

/* Which columns are a channel's: `spread` side by side (spread > 1), or every `channels`-th of `repeat` rounds. */
typedef struct {
    ptrdiff_t channels, spread, repeat;
} abn_columns;

enum { ABN_FROM_Z, ABN_FROM_X }; /* what the backward's source holds */

typedef struct {
    /* destination = z = activation(w), w from x */
    void (*apply)(const abn_tile *tile, const abn_constants *constants);
    /* sums += dy, dy * w */
    void (*gradient_sums[2])(const abn_tile *tile, const abn_constants *constants, void *partial);
    /* destination = dx */
    void (*gradient_apply[2])(const abn_tile *tile, const abn_constants *constants);
} abn_activation_kernels;

typedef struct {
    /* sums += d, d^2 with d = x - centre */
    void (*moments)(const abn_tile *tile, const abn_constants *constants, void *partial);
    /* Does any of the tile's w, from x, lie outside [low, high]? (elements that may have to be escaped) */
    int (*any_outside)(const abn_tile *tile, const abn_constants *constants, double low, double high);
    /* first[c] += the first partial sums of channel c, second[c] likewise; partial sums are cleared. */
    void (*fold)(void *partial, abn_columns columns, double *first, double *second);
    abn_activation_kernels of[ABN_ACTIVATIONS];
} abn_layout_kernels;

typedef struct {
    abn_layout_kernels layout[ABN_LAYOUTS];
    /* One constant per channel -> one per column (padded). */
    void (*expand)(const void *constants, abn_columns columns, void *expanded);
    /* a = a*c + d (b == NULL) or b = b*c + a*d */
    void (*stream)(void *a, void *b, ptrdiff_t count, double c, double d);
} abn_kernel_set;

struct abn_kernels {
    const char *name;
    unsigned needs; /* features, cpu.h */
    const abn_kernel_set *sets[ABN_DTYPES];
};

#endif
