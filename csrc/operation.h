/* An operation: forward, backward or statistics, as steps that a walk calls.
 *
 *     begin(channels)  sums(tile) ...  finish(channels)  apply(tile) ...
 *
 * An operation knows the arithmetic: sums over every channel, constants from the sums, and a pass that applies the
 * constants. A walk (walk.h) knows layout, caches and threads.
 *
 * How a batch is divided, from large to small:
 *
 *     batch        N x C x S elements
 *     strip        neighbouring channels of the whole batch. Channels-first: one thread runs sums and apply on a strip
 *                  while it is in cache. Channels-last: all channels, or as many as a tile has room for
 *     chunk        the images or positions of a strip that are summed together; the chunks' sums are added in order,
 *                  in double, so results do not depend on how chunks are distributed over threads
 *     span, tile   the unit of one call of a step: part of a chunk. A span is its coordinates (channels, images,
 *                  positions), a tile the same elements in memory as rows of equal length (kernels/kernels.h)
 *     channel run  neighbouring channels of a tile with equal flags (channel_runs.h)
 *     segment      up to ABN_SEGMENT elements of one row of a channel run, computed in arrays in first-level cache
 *     valid run    with a mask: neighbouring valid positions of a tile (mask.c)
 *
 *                          positions                       row of a tile
 *                  +------------------------+          +-----------+-----------+
 *        channels  |  chunk 0  |  chunk 1   |  strip   |  segment  |  segment  |  channel run 0
 *                  |  tile tile|  tile tile |          +-----------+-----------+
 *                  +------------------------+          |  segment  |  segment  |  channel run 1
 *        channels  |           |            |  strip   +-----------+-----------+
 *                  +------------------------+
 */
#ifndef ABN_OPERATION_H
#define ABN_OPERATION_H

#include "abn.h"
#include "element.h"
#include "kernels/kernels.h"

/* Channels [channel, channel + channels) of images [image, image + images), positions [from, from + count) of each.
 * With a mask, an operation's steps get spans whose positions number the valid positions from 0 (abn.h). */
typedef struct {
    ptrdiff_t channel, channels, image, images, from, count;
} abn_span;

/* Flags of a channel. */
enum {
    ABN_GUARDED = 1, /* xhat is saved in addition to z */
    ABN_EXACT = 2,   /* outside the range of float: computed element by element in double (float_range.h) */
    ABN_ESCAPED = 4, /* backward: some elements are escaped, and so the channel is computed segment by segment */
};

typedef struct abn_operation abn_operation;

/* Accumulates two sums per channel into `partial`. resumming: the second evaluation, after finish returned nonzero. */
typedef void abn_sums_step(const abn_operation *op, const abn_tile *tile, const abn_span *span,
                           const abn_constants *constants, void *partial, int resumming);
/* Writes the results of a tile. */
typedef void abn_apply_step(abn_operation *op, const abn_tile *tile, const abn_span *span,
                            const abn_constants *constants, int thread);

struct abn_operation {
    /* Set by the caller before abn_walk_open. A batch with data == NULL is not used. */
    abn_batch source, gradient, destination, residual, residual_gradient;
    int arrays;          /* how many arrays of the batch's size pass through the cache */
    int rewrites_source; /* apply writes xhat or y over source */
    int add_to_residual; /* residual_gradient += dy rather than = dy */
    abn_mask mask;
    unsigned sums_constants, apply_constants; /* bit 1 << which: the step reads constants[which] */

    /* Steps; NULL: nothing to do. finish returns nonzero if the sums must be computed a second time, with other
     * constants or of other terms; it does so at most once (resumming is 0 the first time and 1 the second). */
    void (*begin)(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels);
    abn_sums_step *sums;
    int (*finish)(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first, const double *second,
                  int resumming);
    abn_apply_step *apply;

    /* True if sums should store two numbers per element for apply to reuse. The walk then sets tile.scratch (scratch.h)
     * if the same thread visits the tile again while it is in cache. Only for storage types equal to real. */
    int wants_scratch;
    ptrdiff_t scratch_offset; /* reals from the first number of an element to its second; abn_scratch_open sets it */

    /* Set by abn_walk_open. */
    const abn_kernel_set *set;
    const abn_layout_kernels *kernels; /* set->layout[layout] */
    int layout;                        /* ABN_ROWS or ABN_COLUMNS */
    int threads;
    ptrdiff_t per_channel; /* elements of a channel; with a mask: valid ones */
    ptrdiff_t positions;   /* per image, as numbered in spans; with a mask all valid ones are one image (abn.h) */
    /* The columns of an ABN_COLUMNS tile:
     *   positions_per_channel > 1: channels-first. A row is an image; each channel has that many neighbouring columns.
     *   positions_per_row > 1:     channels-last. A joined row: that many positions, each with the span's channels.
     *   both 1:                    channels-last. A row is a position, a column is a channel. */
    ptrdiff_t positions_per_channel, positions_per_row;
    void *constants[ABN_CONSTANTS]; /* a real per channel, padded */
    unsigned char *channel_flags;   /* ABN_GUARDED, ABN_EXACT, ABN_ESCAPED */

    /* With a mask: the steps that abn_mask_open replaced, and how many valid positions precede each
     * multiple of COUNT_STEP (mask.c). */
    struct {
        abn_sums_step *sums;
        abn_apply_step *apply;
        ptrdiff_t *valid_before;
    } unmasked;
};

/* The constants of `channel` and of the channels after it. */
abn_constants abn_constants_from(const abn_operation *op, ptrdiff_t channel);

/* The constants of a tile without its first `entries` rows (ABN_ROWS) or columns (ABN_COLUMNS). */
abn_constants abn_constants_moved(const abn_operation *op, const abn_constants *constants, ptrdiff_t entries);

static inline void abn_set_constant(abn_operation *op, int which, ptrdiff_t channel, double value) {
    abn_set_real(op->source.dtype, op->constants[which], channel, value);
}

static inline double abn_get_constant(const abn_operation *op, int which, ptrdiff_t channel) {
    return abn_get_real(op->source.dtype, op->constants[which], channel);
}

#endif
