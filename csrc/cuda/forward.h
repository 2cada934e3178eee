/* x -> z: sums of every part, statistics and constants of every channel, z. Three kernels. */
#ifndef ABN_CUDA_FORWARD_H
#define ABN_CUDA_FORWARD_H

#include "block_sums.h"
#include "channel_sums.h"
#include "element.h"

#define AT_ONCE (ABN_GUARD ? 1 : 4) /* vectors that a thread loads before it uses the first of them */

/* ---- sums ---------------------------------------------------------------------------------------------------- */

typedef struct {
    real shift[LANES], sum[LANES], square[LANES];
} moments;

INLINE void add_moments(moments *m, vector x) {
    UNROLLED for (int i = 0; i < ABN_WIDTH; i++) {
        const int lane = i % LANES;
        const real d = v_sub(to_real(x.lane[i]), m->shift[lane]);
        m->sum[lane] = v_add(m->sum[lane], d);
        m->square[lane] = v_fma(d, d, m->square[lane]);
    }
}

/* Sums of d = x - shift and d^2. The shift is the first element of the part: x minus the mean would lose no more
 * digits. */
KERNEL(cuda_forward_sums) {
    const abn_cuda_pass *p = &pass;
    LET_NEXT_START();
    const abn_place at = sums_place(p, BLOCK);
    abn_walk walk = walk_begin(p, at);
    moments m;
    if (BLOCK == 0 && THREAD == 0 && p->guarded) p->guarded[ABN_WANTED] = p->guarded[ABN_LOSSES] = 0;
    UNROLLED for (int lane = 0; lane < LANES; lane++) {
        const int32_t channel = channel_of(p, at, lane);
        const int64_t first = first_offset(p, at, channel < p->channels ? channel : 0);
        m.shift[lane] = to_real(((const storage *)p->source)[first]);
        m.sum[lane] = m.square[lane] = 0;
    }
    while (walk.count >= AT_ONCE) {
        vector x[AT_ONCE];
        UNROLLED for (int u = 0; u < AT_ONCE; u++, walk_next(&walk)) x[u] = load_vector(p->source, walk.offset);
        UNROLLED for (int u = 0; u < AT_ONCE; u++) add_moments(&m, x[u]);
    }
    for (; walk.count > 0; walk_next(&walk)) add_moments(&m, load_vector(p->source, walk.offset));
    real *partial = (real *)p->partial + at.part * p->channels;
    const int64_t all = p->parts * p->channels;
    store_block_sums(p, at, m.sum, partial);
    store_block_sums(p, at, m.square, partial + all);
    if (is_active(p, at)) { /* the threads of a channel store the same number */
        UNROLLED for (int lane = 0; lane < LANES; lane++) partial[2 * all + channel_of(p, at, lane)] = m.shift[lane];
    }
}

/* ---- statistics and constants of a channel ------------------------------------------------------------------- */

typedef struct {
    double mean, var;
} statistics;

INLINE real number_of(const void *array, int32_t channel, real without) {
    return array ? ((const real *)array)[channel] : without;
}

/* With a momentum of 1, `running` is not used: nothing may have written it. */
INLINE real blended(real running, double momentum, double of_batch) {
    return (real)((momentum == 1 ? 0 : (1 - momentum) * running) + momentum * of_batch);
}

INLINE void update_running(const abn_cuda_pass *p, int32_t channel, statistics s) {
    const double count = p->count;
    real *mean = (real *)p->running_mean, *var = (real *)p->running_var;
    if (p->batches && channel == 0) (*p->batches)++;
    if (!mean) return;
    mean[channel] = blended(mean[channel], p->momentum, s.mean);
    var[channel] = blended(var[channel], p->momentum, s.var * (count / (count - 1)));
}

/* True if xhat cannot be recovered from y = weight * xhat + bias to the working precision (guard.c). */
INLINE int needs_guard(real weight, real bias, real slope, real most_bias) {
    const real size = v_abs(weight);
    if (ABN_KEEPS == KEEPS_Z && ABN_ACTIVATION == ABN_PRELU && !(slope > (real)1e-30)) return 1;
    return !(v_abs(bias) <= most_bias * size && size >= (real)0x1p-100 && size <= (real)0x1p100);
}

/* The channel's slot. Without room in the side buffer, a channel just beyond the limit does without; the next forward
 * has room, since the host reads the report. LESS_DIGITS: the factor by which the error of its xhat may exceed the
 * usual one. */
#define LESS_DIGITS 16
INLINE int32_t slot_of(const abn_cuda_pass *p, real weight, real bias, real slope, int residual_is_large) {
    const real most_bias = (real)p->most_bias;
    if (!residual_is_large && !needs_guard(weight, bias, slope, most_bias)) return ABN_UNGUARDED;
    const int32_t slot = fetch_and_increment(p->guarded + ABN_WANTED); /* results do not depend on which slot it is */
    if (slot < p->capacity) return slot;
    if (!needs_guard(weight, bias, slope, LESS_DIGITS * most_bias)) return ABN_UNGUARDED;
    fetch_and_increment(p->guarded + ABN_LOSSES);
    return ABN_LOST;
}

INLINE void save_number(const abn_cuda_pass *p, int which, int32_t channel, real number) {
    ((real *)p->saved)[which * p->channels + channel] = number;
}

INLINE void finish_forward(const abn_cuda_pass *p, int32_t channel, statistics s, int residual_is_large) {
    const real weight = number_of(p->weight, channel, 1), bias = number_of(p->bias, channel, 0);
    const real slope = number_of(p->slope, channel, (real)p->param);
    const double inv_std = 1 / sqrt(s.var + p->eps);
    const real centre = (real)s.mean;
    const double lost = (centre - s.mean) * inv_std; /* xhat = (x - centre) * inv_std + lost */
    const real xhat_scale = (real)inv_std, xhat_shift = (real)lost;
    const real scale = (real)(weight * inv_std), shift = (real)(bias + weight * lost);
    real *apply = (real *)p->constants + channel;
    apply[ABN_APPLY_CENTRE * p->channels] = centre;
    apply[ABN_APPLY_SCALE * p->channels] = scale;
    apply[ABN_APPLY_SHIFT * p->channels] = shift;
    apply[ABN_APPLY_XHAT_SCALE * p->channels] = xhat_scale;
    apply[ABN_APPLY_XHAT_SHIFT * p->channels] = xhat_shift;

    const int32_t slot = FROM_Y ? slot_of(p, weight, bias, slope, residual_is_large) : ABN_UNGUARDED;
    const int from_xhat = ABN_KEEPS == KEEPS_XHAT || slot >= 0, from_x = ABN_KEEPS == KEEPS_X;
    save_number(p, ABN_SAVED_CENTRE, channel, from_x ? centre : from_xhat ? 0 : bias);
    save_number(p, ABN_SAVED_SCALE, channel, from_x ? scale : from_xhat ? weight : 1);
    save_number(p, ABN_SAVED_SHIFT, channel, from_x ? shift : bias);
    save_number(p, ABN_SAVED_XHAT_SCALE, channel,
                from_x             ? xhat_scale
                : from_xhat        ? 1
                : slot == ABN_LOST ? 0
                                   : 1 / weight);
    save_number(p, ABN_SAVED_XHAT_SHIFT, channel, from_x ? xhat_shift : 0);
    save_number(p, ABN_SAVED_FACTOR, channel, scale);
    save_number(p, ABN_SAVED_SLOPE, channel, slope);
    ((int32_t *)((real *)p->saved + ABN_SAVED * p->channels))[channel] = slot;
}

/* How many of the lane's SAMPLES have a large |residual|. The rounding errors of single elements with a large residual
 * average out in the sums, and hardly matter in dx: a channel is guarded if they are many and LESS_DIGITS larger. */
INLINE int count_large(const abn_cuda_pass *p, int32_t channel, int lane, int lanes) {
    const real limit = LESS_DIGITS * (real)p->most_bias * v_abs(number_of(p->weight, channel, 1)) -
                       v_abs(number_of(p->bias, channel, 0));
    const int64_t all = p->images * p->positions;
    int large = 0;
    for (int i = lane; i < SAMPLES; i += lanes) {
        const int64_t position = all * i / SAMPLES, image = position / p->positions, at = position % p->positions;
        const int64_t offset =
            p->channels_last ? position * p->channels + channel : (image * p->channels + channel) * p->positions + at;
        large += v_abs(to_real(((const storage *)p->residual)[offset])) > limit;
    }
    return large;
}

/* Sums of d = x - shift and d^2 over the parts of a lane, for the shift of the first part. */
INLINE void add_parts(const abn_cuda_pass *p, abn_channel_lane at, double shift, abn_sums_of_channel *sums) {
    const int64_t all = p->parts * p->channels;
    const real *partial = (const real *)p->partial + at.channel;
    FOUR_AT_ONCE for (int part = at.lane; part < p->parts; part += at.lanes) {
        const real *of = partial + part * p->channels;
        const double sum = of[0], square = of[all], d = of[2 * all] - shift, n = (double)part_count(p, part);
        sums->of[0] += sum + n * d;
        sums->of[1] += square + d * (2 * sum + n * d);
    }
}

/* sums: of d = x - shift and d^2 over the batch. */
INLINE statistics statistics_of(const abn_cuda_pass *p, int32_t channel, double shift,
                                const abn_sums_of_channel *sums) {
    if (p->exchange == ABN_READ_TOTAL)
        return LITERAL(statistics){p->exchanged[channel], p->exchanged[p->channels + channel]};
    if (!p->training)
        return LITERAL(statistics){((const real *)p->running_mean)[channel], ((const real *)p->running_var)[channel]};
    const double count = (double)(p->images * p->positions), offset = sums->of[0] / count;
    const double var = sums->of[1] / count - offset * offset;
    return LITERAL(statistics){shift + offset, var < 0 ? 0 : var};
}

FINISH_KERNEL(cuda_forward_finish) {
    const abn_cuda_pass *p = &pass;
    LET_NEXT_START();
    AWAIT_PREVIOUS();
    const abn_channel_lane at = channel_lane();
    const int exists = at.channel < p->channels;
    abn_sums_of_channel sums = {{0, 0, 0}};
    double shift = 0;
    const int has_partials = p->training && p->exchange != ABN_READ_TOTAL;
    if (exists && has_partials) {
        shift = ((const real *)p->partial)[2 * p->parts * p->channels + at.channel];
        add_parts(p, at, shift, &sums);
    }
    if (exists && FROM_Y && ABN_RESIDUAL) sums.of[2] = count_large(p, at.channel, at.lane, at.lanes);
    sum_lanes(&sums);
    if (!exists || at.lane > 0) return;
    const statistics s = statistics_of(p, at.channel, shift, &sums);
    if (p->exchange == ABN_STORE_OWN) {
        p->exchanged[at.channel] = s.mean;
        p->exchanged[p->channels + at.channel] = s.var;
        return;
    }
    if (p->training) update_running(p, at.channel, s);
    finish_forward(p, at.channel, s, sums.of[2] * 8 > SAMPLES);
}

/* ---- z ------------------------------------------------------------------------------------------------------- */

INLINE void forward_constants_of(const abn_cuda_pass *p, abn_place at, forward_constants *k) {
    lane_numbers centre = numbers_at(p, p->constants, ABN_APPLY_CENTRE, at), scale, shift, xhat_scale, xhat_shift,
                 weight, bias, param;
    scale = numbers_at(p, p->constants, ABN_APPLY_SCALE, at);
    shift = numbers_at(p, p->constants, ABN_APPLY_SHIFT, at);
    xhat_scale = numbers_at(p, p->constants, ABN_APPLY_XHAT_SCALE, at);
    xhat_shift = numbers_at(p, p->constants, ABN_APPLY_XHAT_SHIFT, at);
    weight = numbers_at(p, p->saved, ABN_SAVED_SCALE, at);
    bias = numbers_at(p, p->saved, ABN_SAVED_SHIFT, at);
    param = numbers_at(p, p->saved, ABN_SAVED_SLOPE, at);
    UNROLLED for (int lane = 0; lane < LANES; lane++) {
        k[lane].centre = centre.lane[lane];
        k[lane].scale = scale.lane[lane];
        k[lane].shift = shift.lane[lane];
        k[lane].xhat_scale = xhat_scale.lane[lane];
        k[lane].xhat_shift = xhat_shift.lane[lane];
        k[lane].weight = weight.lane[lane];
        k[lane].bias = bias.lane[lane];
        k[lane].param = ABN_ACTIVATION == ABN_PRELU ? param.lane[lane] : (real)p->param;
        k[lane].slot = slot_at(p, channel_of(p, at, lane));
    }
}

/* Backward of a guarded channel of prelu computes the sign of y from the stored xhat. If rounding changed that sign,
 * the adjacent number has it (guard.c). */
INLINE storage settle_sign(storage xhat, real weight, real bias, real y) {
#if defined(ABN_DTYPE_FLOAT16) || defined(ABN_DTYPE_BFLOAT16)
    const real rounded = v_fma(to_real(xhat), weight, bias);
    if (ABN_ACTIVATION != ABN_PRELU || weight == 0 || (rounded < 0) == (y < 0)) return xhat;
    const int up = (y < 0) != (weight > 0);
    if ((xhat & 0x7fff) == 0) return up ? 0x0001 : 0x8001;
    return (storage)((xhat < 0x8000) == up ? xhat + 1 : xhat - 1);
#else
    return xhat;
#endif
}

INLINE void guard_element(const abn_cuda_pass *p, const forward_constants *k, int64_t index, real x, real residual) {
    if (k->slot < 0) return;
    const storage xhat = to_storage(affine_of(x, k->centre, k->xhat_scale, k->xhat_shift));
    ((storage *)p->xhat)[k->slot * p->images * p->positions + index] =
        settle_sign(xhat, k->weight, k->bias + (ABN_RESIDUAL ? residual : 0), y_of(k, x, residual));
}

INLINE void forward_vector(const abn_cuda_pass *p, const forward_constants *k, abn_place at, int64_t unit,
                           int64_t offset, vector x, vector residual) {
    real kept[ABN_WIDTH], z[ABN_WIDTH];
    UNROLLED for (int i = 0; i < ABN_WIDTH; i++) {
        const forward_constants *of = &k[i % LANES];
        const real from = to_real(x.lane[i]), added = ABN_RESIDUAL ? to_real(residual.lane[i]) : 0;
        if (ABN_GUARD) guard_element(p, of, index_in_channel(p, at, unit, i), from, added);
        z[i] = forward_element(of, from, added, &kept[i]);
    }
    if (ABN_KEEPS == KEEPS_XHAT || ABN_KEEPS == KEEPS_Y) store_vector(p->source, offset, kept);
    store_vector(p->destination, offset, z);
}

KERNEL(cuda_forward_apply) {
    const abn_cuda_pass *p = &pass;
    AWAIT_PREVIOUS();
    const abn_place at = apply_place(p, BLOCK);
    abn_walk walk = walk_begin(p, at);
    forward_constants k[LANES];
    if (walk.count == 0) return;
    if (p->report && BLOCK == 0 && THREAD == 0)
        for (int i = 0; i < ABN_COUNTERS; i++) p->report[i] = p->guarded[i];
    forward_constants_of(p, at, k);
    while (walk.count > 0) {
        vector x[AT_ONCE], residual[AT_ONCE];
        int64_t offset[AT_ONCE], unit[AT_ONCE];
        int n = 0;
        UNROLLED for (int u = 0; u < AT_ONCE; u++) {
            if (walk.count == 0) continue;
            offset[u] = walk.offset;
            unit[u] = walk.unit;
            x[u] = load_vector(p->source, walk.offset);
            if (ABN_RESIDUAL) residual[u] = load_vector(p->residual, walk.offset);
            walk_next(&walk);
            n++;
        }
        UNROLLED for (int u = 0; u < AT_ONCE; u++) {
            if (u < n) forward_vector(p, k, at, unit[u], offset[u], x[u], residual[u]);
        }
    }
}

#endif
