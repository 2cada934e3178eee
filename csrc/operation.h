/* An operation is what forward and backward are made of: sums over every channel, constants from the sums, and a pass
 * that applies them. The operation knows the arithmetic; abn_walk knows layout, caches and threads, and calls
 *
 *     begin(channels)  sums(tile) ...  finish(channels)  apply(tile) ...
 *
 * so that a channel is still in cache for its second pass where that is possible. */
#ifndef ABN_OPERATION_H
#define ABN_OPERATION_H

#include "abn.h"
#include "kernels/kernels.h"

/* Channels [channel, channel + channels) of images [image, image + images), positions [from, from + count) of each. */
typedef struct {
    ptrdiff_t channel, channels, image, images, from, count;
} abn_span;

enum {
    ABN_GUARDED = 1, /* xhat is kept beside z */
    ABN_EXACT = 2,   /* its numbers leave the range of float: element by element, in double */
};

typedef struct {
    void *memory; /* NULL: no memo */
    char *first;
    ptrdiff_t stride; /* elements from row to row */
} abn_memo;

typedef struct abn_operation abn_operation;
typedef void abn_sums_step(const abn_operation *op, const abn_tile *tile, const abn_span *span,
                           const abn_constants *constants, void *partial, int again);
typedef void abn_apply_step(abn_operation *op, const abn_tile *tile, const abn_span *span,
                            const abn_constants *constants, int thread);

struct abn_operation {
    const abn_kernel_set *set;
    const abn_layout_kernels *kernels; /* set->layout[layout] */
    int layout;
    int threads;
    int arrays; /* how many arrays of the batch's size pass through the cache */
    abn_batch source, gradient, destination, residual, residual_gradient; /* data == NULL: not used */
    int rewrites_source;                                                  /* apply writes xhat over source */
    int add_to_residual;                                                  /* residual_gradient += dy rather than = dy */
    abn_mask mask;
    ptrdiff_t per_channel; /* elements of a channel that take part */
    ptrdiff_t positions;   /* of an image, as they are numbered in spans; with a mask: valid positions alone */
    /* What a tile's columns are (ABN_COLUMNS):
     *   spread > 1: channels-first, a row is an image and each channel has `spread` columns side by side (its positions)
     *   repeat > 1: channels-last, a row is `repeat` positions, and the channels come over and over
     *   both 1:     channels-last, a row is a position and a column is a channel */
    ptrdiff_t spread, repeat;
    void *constants[ABN_CONSTANTS]; /* one number per channel, padded */
    unsigned char *kinds;           /* of each channel: ABN_GUARDED, ABN_EXACT */
    /* Should the sums leave two numbers per element for the second pass, where the same thread comes by while they are in
     * cache? The walk provides tile.memo where that is so. Its rows have room for whole vectors; the second numbers begin
     * `memo_apart` numbers after the first. Only where elements are stored in the type that is computed in. */
    int wants_memo;
    ptrdiff_t memo_apart;
    unsigned sums_use, apply_use; /* bit 1 << ABN_...: which of them the steps read */

    /* Set before abn_operation_open. NULL: there is nothing to do. */
    void (*begin)(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels);
    abn_sums_step *sums;
    /* Nonzero: sums have to be taken again, with other constants or of something else (asked for once at most). */
    int (*finish)(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first, const double *second,
                  int again);
    abn_apply_step *apply;

    /* With a mask: what sums and apply were before abn_mask_open replaced them, and the number of valid positions before
     * every block of positions. */
    struct {
        abn_sums_step *sums;
        abn_apply_step *apply;
        ptrdiff_t *before;
    } of_valid;
};

/* Sets kernels, layout, spread, repeat, kinds and the constants' memory from source, gradient, destination, mask and
 * machine. guard: NULL, or which channels are ABN_GUARDED. */
abn_status abn_operation_open(abn_operation *op, const abn_machine *machine, const abn_guard *guard);
void abn_operation_close(abn_operation *op);

abn_status abn_walk(abn_operation *op);
abn_status abn_walk_rows(abn_operation *op);
abn_status abn_walk_columns(abn_operation *op);

abn_tile abn_tile_of(const abn_operation *op, const abn_span *span);

/* Sets the rows and the length of a tile of such a span. */
void abn_tile_shape(const abn_operation *op, const abn_span *span, abn_tile *tile);

/* Room for the memo of `threads` threads with so many rows of so many elements each; sets op->memo_apart. Without
 * memory there is none: it is not wanted, or not to be had. */
abn_memo abn_memo_open(abn_operation *op, int threads, ptrdiff_t rows, ptrdiff_t length);
void abn_memo_close(abn_memo *memo);

/* A thread's row of it. */
abn_output abn_memo_row(const abn_operation *op, const abn_memo *memo, int thread, ptrdiff_t row, ptrdiff_t column);

/* The constants from `channel` on, one number per channel. */
abn_constants abn_constants_from(const abn_operation *op, ptrdiff_t channel);

/* The constants of a part of a tile that begins `entries` rows (ABN_ROWS) or columns later. */
abn_constants abn_constants_moved(const abn_operation *op, const abn_constants *constants, ptrdiff_t entries);

/* Can the kernels compute with this constant? Too large, or with digits lost to underflow: no. */
int abn_constant_fits(abn_dtype dtype, double value);

/* Can they compute x - mean, for every x of a channel with these statistics? */
int abn_centre_fits(abn_dtype dtype, double mean, double var, ptrdiff_t per_channel);

/* The largest finite number of the storage type. */
double abn_largest_of(abn_dtype dtype);

/* Bytes of a number that kernels compute in. */
size_t abn_real_size(abn_dtype dtype);
/* reals[i] = value, in that type. NaN becomes the one that narrowing to bfloat16 lets be: kernels/storage.h. */
void abn_set_real(const abn_operation *op, void *reals, ptrdiff_t i, double value);
void abn_set_constant(abn_operation *op, int which, ptrdiff_t channel, double value);
double abn_get_constant(const abn_operation *op, int which, ptrdiff_t channel);

/* The index of an element among what is kept per element: abn.h. */
int64_t abn_index_of(const abn_operation *op, ptrdiff_t channel, int64_t position);

/* Single elements and their addresses, for what is rare. */
double abn_load_element(abn_dtype dtype, const void *at);
void abn_store_element(abn_dtype dtype, void *at, double value);
void *abn_address(const abn_batch *batch, ptrdiff_t image, ptrdiff_t channel, ptrdiff_t position);

/* value rounded to the type that kernels compute in: float, or double for float64 storage. */
double abn_round_to_real(abn_dtype dtype, double value);

#endif
