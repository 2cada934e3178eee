/* dz -> dx: sums of every part, gradients and constants of every channel, dx. Three kernels. */
#ifndef ABN_CUDA_BACKWARD_H
#define ABN_CUDA_BACKWARD_H

#include "block_sums.h"
#include "channel_sums.h"
#include "element.h"

#define BACKWARD_AT_ONCE (ABN_GUARD ? 1 : 2) /* vectors of each array that a thread loads before it uses them */

INLINE void backward_constants_of(const abn_cuda_pass *p, abn_place at, backward_constants *k) {
    const lane_numbers centre = numbers_at(p, p->saved, ABN_SAVED_CENTRE, at);
    const lane_numbers scale = numbers_at(p, p->saved, ABN_SAVED_SCALE, at);
    const lane_numbers shift = numbers_at(p, p->saved, ABN_SAVED_SHIFT, at);
    const lane_numbers slope = numbers_at(p, p->saved, ABN_SAVED_SLOPE, at);
    UNROLLED for (int lane = 0; lane < LANES; lane++) {
        k[lane].centre = centre.lane[lane];
        k[lane].scale = scale.lane[lane];
        k[lane].shift = shift.lane[lane];
        k[lane].activation.param = ABN_ACTIVATION == ABN_PRELU ? slope.lane[lane] : (real)p->param;
        k[lane].activation.inverse = IS_LEAKY ? v_inverse(k[lane].activation.param) : 0;
        k[lane].slot = slot_at(p, channel_of(p, at, lane));
    }
}

/* The vectors of one place. */
typedef struct {
    vector source, dz, residual;
    int64_t offset, unit;
    abn_place at;
} backward_input;

INLINE backward_input backward_load(const abn_cuda_pass *p, abn_place at, const abn_walk *walk) {
    backward_input in;
    in.at = at;
    in.offset = walk->offset;
    in.unit = walk->unit;
    in.source = load_vector(p->source, in.offset);
    in.dz = load_vector(p->gradient, in.offset);
    if (ABN_RESIDUAL) in.residual = load_vector(p->residual, in.offset);
    return in;
}

INLINE backward_element backward_at(const abn_cuda_pass *p, const backward_constants *k, const backward_input *in,
                                    int i) {
    const int is_guarded = ABN_GUARD && k->slot >= 0;
    real guarded = 0;
    if (is_guarded)
        guarded = to_real(
            ((const storage *)p->xhat)[k->slot * p->images * p->positions + index_in_channel(p, in->at, in->unit, i)]);
    return recover(k, to_real(in->source.lane[i]), ABN_RESIDUAL ? to_real(in->residual.lane[i]) : 0,
                   to_real(in->dz.lane[i]), is_guarded, guarded);
}

/* ---- sums ---------------------------------------------------------------------------------------------------- */

typedef struct {
    real dy[LANES], product[LANES], dparam[LANES];
} gradient_sums;

INLINE void add_gradients(const abn_cuda_pass *p, const backward_constants *k, const backward_input *in,
                          gradient_sums *sums) {
    UNROLLED for (int i = 0; i < ABN_WIDTH; i++) {
        const int lane = i % LANES;
        const backward_element e = backward_at(p, &k[lane], in, i);
        sums->dy[lane] = v_add(sums->dy[lane], e.dy);
        sums->product[lane] = v_fma(e.dy, FROM_Y ? v_sub(e.v, k[lane].centre) : e.v, sums->product[lane]);
        if (ABN_ACTIVATION == ABN_PRELU) sums->dparam[lane] = v_add(sums->dparam[lane], e.dparam);
    }
}

KERNEL(cuda_backward_sums) {
    const abn_cuda_pass *p = &pass;
    LET_NEXT_START();
    const abn_place at = sums_place(p, BLOCK);
    abn_walk walk = walk_begin(p, at);
    backward_constants k[LANES];
    gradient_sums sums;
    if (is_active(p, at)) backward_constants_of(p, at, k);
    UNROLLED for (int lane = 0; lane < LANES; lane++) sums.dy[lane] = sums.product[lane] = sums.dparam[lane] = 0;
    while (walk.count >= BACKWARD_AT_ONCE) {
        backward_input in[BACKWARD_AT_ONCE];
        UNROLLED for (int u = 0; u < BACKWARD_AT_ONCE; u++, walk_next(&walk)) in[u] = backward_load(p, at, &walk);
        UNROLLED for (int u = 0; u < BACKWARD_AT_ONCE; u++) add_gradients(p, k, &in[u], &sums);
    }
    for (; walk.count > 0; walk_next(&walk)) {
        const backward_input in = backward_load(p, at, &walk);
        add_gradients(p, k, &in, &sums);
    }
    real *partial = (real *)p->partial + at.part * p->channels;
    const int64_t all = p->parts * p->channels;
    store_block_sums(p, at, sums.dy, partial);
    store_block_sums(p, at, sums.product, partial + all);
    if (ABN_ACTIVATION == ABN_PRELU) store_block_sums(p, at, sums.dparam, partial + 2 * all);
}

/* ---- gradients and constants of a channel --------------------------------------------------------------------- */

INLINE void store_number(void *array, int32_t channel, double number) {
    if (array) ((real *)array)[channel] = (real)number;
}

/* Stores the gradients of weight, bias and slope, if there is memory for them. Returns the sum of dy * xhat. */
INLINE double store_gradients(const abn_cuda_pass *p, int32_t channel, double dy, double product, double dparam) {
    const real *saved = (const real *)p->saved + channel;
    const double scale = saved[ABN_SAVED_XHAT_SCALE * p->channels], shift = saved[ABN_SAVED_XHAT_SHIFT * p->channels];
    const double dy_xhat = product * scale + dy * shift;
    store_number(p->bias_gradient, channel, dy);
    store_number(p->weight_gradient, channel, dy_xhat);
    store_number(p->slope_gradient, channel, dparam);
    return dy_xhat;
}

/* centre: what v of the second pass lacks (recover).
 * dx = factor * (dy - mean(dy) - xhat * mean(dy * xhat)), or factor * dy with given statistics. */
INLINE void finish_backward(const abn_cuda_pass *p, int32_t channel, double dy, double dy_xhat) {
    const real *saved = (const real *)p->saved + channel;
    const double scale = saved[ABN_SAVED_XHAT_SCALE * p->channels], shift = saved[ABN_SAVED_XHAT_SHIFT * p->channels];
    const double factor = saved[ABN_SAVED_FACTOR * p->channels], count = p->count;
    const double of_xhat = p->training ? -factor * dy_xhat / count : 0;
    real *apply = (real *)p->constants + channel;
    apply[ABN_APPLY_OF_DY * p->channels] = (real)factor;
    apply[ABN_APPLY_OF_V * p->channels] = (real)(of_xhat * scale);
    const double centre = FROM_Y ? saved[ABN_SAVED_CENTRE * p->channels] : 0;
    const double offset = p->training ? of_xhat * (shift - centre * scale) - factor * dy / count : 0;
    apply[ABN_APPLY_OFFSET * p->channels] = (real)offset;
}

FINISH_KERNEL(cuda_backward_finish) {
    const abn_cuda_pass *p = &pass;
    LET_NEXT_START();
    AWAIT_PREVIOUS();
    const abn_channel_lane at = channel_lane();
    const int64_t all = p->parts * p->channels;
    const int exists = at.channel < p->channels;
    const real *partial = (const real *)p->partial + at.channel;
    abn_sums_of_channel sums = {{0, 0, 0}};
    const int has_partials = exists && p->exchange != ABN_READ_TOTAL;
    FOUR_AT_ONCE for (int part = at.lane; has_partials && part < p->parts; part += at.lanes) {
        UNROLLED for (int k = 0; k < (ABN_ACTIVATION == ABN_PRELU ? 3 : 2); k++) sums.of[k] +=
            partial[k * all + part * p->channels];
    }
    sum_lanes(&sums);
    if (!exists || at.lane > 0) return;
    double dy = sums.of[0], dy_xhat = store_gradients(p, at.channel, sums.of[0], sums.of[1], sums.of[2]);
    if (p->exchange == ABN_STORE_OWN) {
        p->exchanged[at.channel] = dy;
        p->exchanged[p->channels + at.channel] = dy_xhat;
        return;
    }
    if (p->exchange == ABN_READ_TOTAL) {
        dy = p->exchanged[at.channel];
        dy_xhat = p->exchanged[p->channels + at.channel];
    }
    finish_backward(p, at.channel, dy, dy_xhat);
}

/* ---- dx ------------------------------------------------------------------------------------------------------- */

typedef struct {
    real of_dy, of_v, offset;
} result_constants;

/* With given statistics v, which may be infinite or NaN, is not used. */
INLINE void backward_vector(const abn_cuda_pass *p, const backward_constants *k, const result_constants *r,
                            const backward_input *in, int training) {
    real dx[ABN_WIDTH], dy[ABN_WIDTH];
    UNROLLED for (int i = 0; i < ABN_WIDTH; i++) {
        const int lane = i % LANES;
        const backward_element e = backward_at(p, &k[lane], in, i);
        const real rest = training ? v_fma(e.v, r[lane].of_v, r[lane].offset) : 0;
        dx[i] = v_fma(e.dy, r[lane].of_dy, rest);
        dy[i] = e.dy;
    }
    store_vector(p->destination, in->offset, dx);
    if (ABN_RESIDUAL && p->residual_gradient) store_vector(p->residual_gradient, in->offset, dy);
}

INLINE void backward_vectors(const abn_cuda_pass *p, abn_place at, abn_walk walk, const backward_constants *k,
                             const result_constants *r, int training) {
    while (walk.count >= BACKWARD_AT_ONCE) {
        backward_input in[BACKWARD_AT_ONCE];
        UNROLLED for (int u = 0; u < BACKWARD_AT_ONCE; u++, walk_next(&walk)) in[u] = backward_load(p, at, &walk);
        UNROLLED for (int u = 0; u < BACKWARD_AT_ONCE; u++) backward_vector(p, k, r, &in[u], training);
    }
    for (; walk.count > 0; walk_next(&walk)) {
        const backward_input in = backward_load(p, at, &walk);
        backward_vector(p, k, r, &in, training);
    }
}

KERNEL(cuda_backward_apply) {
    const abn_cuda_pass *p = &pass;
    AWAIT_PREVIOUS();
    const abn_place at = apply_place(p, BLOCK);
    abn_walk walk = walk_begin(p, at);
    backward_constants k[LANES];
    result_constants r[LANES];
    if (walk.count == 0) return;
    backward_constants_of(p, at, k);
    const lane_numbers of_dy = numbers_at(p, p->constants, ABN_APPLY_OF_DY, at);
    const lane_numbers of_v = numbers_at(p, p->constants, ABN_APPLY_OF_V, at);
    const lane_numbers offset = numbers_at(p, p->constants, ABN_APPLY_OFFSET, at);
    UNROLLED for (int lane = 0; lane < LANES; lane++) r[lane] =
        LITERAL(result_constants){of_dy.lane[lane], of_v.lane[lane], offset.lane[lane]};
    if (p->training)
        backward_vectors(p, at, walk, k, r, 1);
    else
        backward_vectors(p, at, walk, k, r, 0);
}

#endif
