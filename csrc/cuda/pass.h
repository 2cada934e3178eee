/* What a host and a GPU agree on: the parameters of one call of a kernel. Included by C and by NVRTC.
 *
 * A call works on a batch of images x channels x positions, without gaps. Two ways to divide it, as a plan (plan.h)
 * chooses:
 *
 *     ABN_PLANES    channels-first, large images. A block works on one part of one channel.
 *     ABN_COLUMNS   a matrix whose columns belong to one channel each: channels-last (a row is a position, a column a
 *                   channel), or channels-first with small images (a row is an image, each channel has `repeat`
 *                   adjacent columns). A block works on a tile of columns and a part of the rows; a thread keeps its
 *                   columns.
 *
 * "Real": the arithmetic type, float, or double for float64 storage. */
#ifndef ABN_CUDA_PASS_H
#define ABN_CUDA_PASS_H

#include <stdint.h>

/* What the forward saves per channel for the backward: arrays of `channels` reals, then a slot (int32) per channel.
 * v is what the backward recovers per element:
 *     from z or y   v = y - residual - centre, centre = bias
 *     from x        v = x - centre, centre = mean
 *     from xhat     v = xhat, centre = 0
 * and y = v * scale + shift + residual, xhat = v * xhat_scale + xhat_shift.
 * slot: the channel's index in the side buffer of guarded channels, ABN_UNGUARDED, or ABN_LOST if the buffer is
 * full. */
enum {
    ABN_SAVED_CENTRE,
    ABN_SAVED_SCALE,
    ABN_SAVED_SHIFT,
    ABN_SAVED_XHAT_SCALE,
    ABN_SAVED_XHAT_SHIFT,
    ABN_SAVED_FACTOR, /* weight * inv_std */
    ABN_SAVED_SLOPE,  /* prelu's slope */
    ABN_SAVED
};
enum { ABN_UNGUARDED = -1, ABN_LOST = -2 };
enum { ABN_WANTED, ABN_LOSSES, ABN_COUNTERS }; /* channels that want a slot, channels with slot ABN_LOST */

/* Constants of a pass over the batch, arrays of `channels` reals. Forward: y = (x - centre) * scale + shift + residual,
 * xhat = (x - centre) * xhat_scale + xhat_shift. Backward: dx = dy * of_dy + v * of_v + offset. */
enum {
    ABN_APPLY_CENTRE,
    ABN_APPLY_SCALE,
    ABN_APPLY_SHIFT,
    ABN_APPLY_XHAT_SCALE,
    ABN_APPLY_XHAT_SHIFT,
    ABN_APPLY,
    ABN_APPLY_OF_DY = ABN_APPLY_CENTRE,
    ABN_APPLY_OF_V,
    ABN_APPLY_OFFSET
};

/* Statistics and sums that several processes exchange (section 4 of the paper): a call is divided into two. The first
 * one stores the batch's own numbers in `exchanged`, the second one reads those of all batches from there. Forward:
 * mean and biased variance; backward: the sums of dy and dy * xhat. */
enum { ABN_ALONE, ABN_STORE_OWN, ABN_READ_TOTAL };

enum {
    ABN_PARTIALS = 3
}; /* sums per channel and part: forward: d, d^2, and the shift of d; backward: dy, dy v, dslope */

typedef struct {
    /* ---- the batch */
    int64_t images, channels, positions;
    int32_t channels_last;
    int32_t tile_x, tile_y;  /* threads of a block along columns and along units */
    int32_t tiles;           /* blocks along the columns, or channels */
    int64_t columns, repeat; /* ABN_COLUMNS */
    /* Units, which are vectors of elements of a channel (ABN_PLANES) or rows of the matrix (ABN_COLUMNS), are divided
     * into parts, a block of the sums each, and parts into splits, a block of the second pass each. The last may be
     * shorter. */
    int64_t units, part_length, split_length;
    int32_t parts, splits;
    /* ---- arrays of the batch's size; NULL: not used */
    void *source; /* forward: x, which is overwritten by xhat or y if that is kept; backward: what the forward kept */
    const void *residual; /* added to y */
    void *destination;    /* forward: z, may be x; backward: dx, may be dz */
    const void *gradient; /* dz */
    void *residual_gradient;
    /* ---- arrays of a number per channel, in reals; NULL: not used */
    const void *weight, *bias, *slope;
    void *running_mean, *running_var;
    void *weight_gradient, *bias_gradient, *slope_gradient;
    /* ---- other memory of the device */
    void *saved;
    void *constants;  /* ABN_APPLY arrays */
    void *partial;    /* ABN_PARTIALS x parts x channels reals */
    void *xhat;       /* the side buffer: `capacity` channels of images * positions elements */
    int32_t *guarded; /* ABN_COUNTERS; 0 before the finish of a forward */
    int32_t *report;  /* the same after the forward, in memory that the host can read; may be NULL */
    int64_t *batches; /* incremented by a training forward (num_batches_tracked); NULL: not used */
    int32_t capacity;
    int32_t exchange;  /* ABN_ALONE, ABN_STORE_OWN or ABN_READ_TOTAL */
    double *exchanged; /* 2 x channels doubles; NULL for ABN_ALONE */
    double count;      /* elements per channel of all batches */
    /* ---- numbers */
    int32_t training; /* 0: statistics are given */
    double momentum, eps, param;
    double most_bias; /* a channel with a greater |bias / weight| is guarded (guard.c) */
} abn_cuda_pass;

#endif
