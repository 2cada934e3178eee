/* The arithmetic of one vector of elements, for every layout. */
#ifndef ABN_KERNEL_ELEMENTS_H
#define ABN_KERNEL_ELEMENTS_H

#include "activations.h"
#include "kernels.h"
#include "storage.h"

#define CACHE_LINE 64 /* bytes */

/* Prefetches what is read `ahead` bytes after these vectors, into the first-level or the second-level cache. */
INLINE void prefetch_vectors(const storage *at, int vectors, ptrdiff_t ahead, int level) {
    if (W == 1) return; /* one instruction per few elements would cost more than it saves */
    const uintptr_t first = (uintptr_t)at + (uintptr_t)ahead, bytes = (uintptr_t)vectors * W * sizeof(storage);
    UNROLLED for (uintptr_t byte = 0; byte < bytes; byte += CACHE_LINE) {
        if (level == 1)
            prefetch_line((const void *)(first + byte), 1);
        else
            prefetch_line((const void *)(first + byte), 2);
    }
}

/* Prefetches for the next 64 elements of a segment, once for each 64 elements. */
INLINE void prefetch_at_word(abn_input segment, ptrdiff_t i, int level) {
    if (i % 64 == 0) prefetch_vectors((const storage *)segment.data + i, 64 / W, segment.ahead, level);
}

/* w = (x - centre) * scale + shift. Subtracting first avoids cancellation if |mean| is much larger than sqrt(var). */
typedef struct {
    vec centre, scale, shift;
} affine;

INLINE vec affine_apply(vec x, affine a) { return v_fma(v_sub(x, a.centre), a.scale, a.shift); }

typedef struct {
    affine from;
    vec weight, bias;
    vec w_factor, offset, dx_factor;
    mask training;
    vec residual_low, residual_high;
} backward_constants;

typedef struct {
    const storage *source, *gradient;
    const storage *residual; /* NULL: none. Only with a source of z or y */
} backward_inputs;

INLINE backward_inputs inputs_at(backward_inputs in, ptrdiff_t i) {
    return (backward_inputs){in.source + i, in.gradient + i, in.residual ? in.residual + i : NULL};
}

/* What backward_inputs point to, as vectors. */
typedef struct {
    vec source, gradient, residual;
    int has_residual;
} backward_values;

INLINE backward_values load_inputs(backward_inputs in, ptrdiff_t n) {
    return (backward_values){v_load_upto(in.source, n), v_load_upto(in.gradient, n),
                             in.residual ? v_load_upto(in.residual, n) : v_zero(), in.residual != NULL};
}

/* The next 2 * W elements, in the order of v_load_pair. */
INLINE void load_inputs_of_pair(backward_inputs in, backward_values *values) {
    vec source[2], gradient[2], residual[2] = {v_zero(), v_zero()};
    v_load_pair(in.source, source);
    v_load_pair(in.gradient, gradient);
    if (in.residual) v_load_pair(in.residual, residual);
    UNROLLED for (int u = 0; u < 2; u++) values[u] =
        (backward_values){source[u], gradient[u], residual[u], in.residual != NULL};
}

typedef struct {
    vec slope, w; /* slope = activation'(y) */
} slope_and_w;

/* w = (activation^-1(z) - residual) * scale + shift. Without a residual, the inverse of leaky_relu is part of the
 * scale: w = z * (scale / slope) + shift left of 0. */
INLINE slope_and_w slope_and_w_from_z(abn_activation activation, backward_values in, backward_constants b,
                                      activation_constants k) {
    const int leaky = activation == ABN_LEAKY_RELU;
    const vec z = in.source;
    const mask left = is_left_of_zero(z);
    const vec slope = leaky ? v_select(left, k.param, v_set1(1)) : v_set1(1);
    if (in.has_residual) {
        const vec y = leaky ? v_select(left, v_div(z, k.param), z) : z; /* as curve_invert */
        const vec normal = v_sub(y, in.residual);
        return (slope_and_w){slope, v_fma(normal, b.from.scale, b.from.shift)};
    }
    const vec scale = leaky ? v_select(left, v_mul(b.from.scale, k.inverse), b.from.scale) : b.from.scale;
    return (slope_and_w){slope, v_fma(z, scale, b.from.shift)};
}

/* w = (y - residual) * scale + shift. The residual is clamped: that is the identity, relu or relu6 of another y. */
INLINE slope_and_w slope_and_w_from_y(abn_activation activation, backward_values in, backward_constants b,
                                      activation_constants k) {
    const vec clamped = v_min(b.residual_high, v_max(b.residual_low, in.residual));
    const vec normal = in.has_residual ? v_sub(in.source, clamped) : in.source;
    return (slope_and_w){cheap_slope(activation, in.source, k.param), v_fma(normal, b.from.scale, b.from.shift)};
}

INLINE slope_and_w slope_and_w_of(int from, abn_activation activation, backward_values in, backward_constants b,
                                  activation_constants k) {
    if (from == ABN_FROM_Z) return slope_and_w_from_z(activation, in, b, k);
    if (from == ABN_FROM_Y) return slope_and_w_from_y(activation, in, b, k);
    const vec w = affine_apply(in.source, b.from);
    return (slope_and_w){cheap_slope(activation, v_fma(w, b.weight, b.bias), k.param), w};
}

typedef struct {
    vec dy, w;
} backward_pair;

/* w * w_factor + offset. In evaluation w, which may be infinite or NaN, is replaced by 0. */
INLINE vec statistics_term(vec w, backward_constants b) {
    return v_fma(v_select(b.training, w, v_zero()), b.w_factor, b.offset);
}

/* dx. */
INLINE vec backward_result(vec dz, slope_and_w at, backward_constants b) {
    return v_mul(v_fma(dz, at.slope, statistics_term(at.w, b)), b.dx_factor);
}

INLINE backward_pair backward_of_values(int from, abn_activation activation, backward_values in, backward_constants b,
                                        activation_constants k) {
    const slope_and_w at = slope_and_w_of(from, activation, in, b, k);
    return (backward_pair){activation == ABN_IDENTITY ? in.gradient : v_mul(in.gradient, at.slope), at.w};
}

/* dy and w of the first n elements; 0 in the other lanes, whatever constants are there. */
INLINE backward_pair backward_of_vector(int from, abn_activation activation, backward_inputs in, ptrdiff_t n,
                                        backward_constants b, activation_constants k) {
    backward_pair p = backward_of_values(from, activation, load_inputs(in, n), b, k);
    if (n < W) {
        p.dy = v_first(p.dy, n);
        p.w = v_first(p.w, n);
    }
    return p;
}

INLINE void moments_of_vector(const storage *x, ptrdiff_t n, vec centre, vec *sum, vec *square) {
    vec d = v_sub(v_load_upto(x, n), centre);
    if (n < W) d = v_first(d, n);
    *sum = v_add(*sum, d);
    *square = v_fma(d, d, *square);
}

/* Of 2 * W elements, into two sums each. */
INLINE void moments_of_pair(const storage *x, vec centre, vec *sums, vec *squares) {
    vec values[2];
    v_load_pair(x, values);
    UNROLLED for (int u = 0; u < 2; u++) {
        const vec d = v_sub(values[u], centre);
        sums[u] = v_add(sums[u], d);
        squares[u] = v_fma(d, d, squares[u]);
    }
}

INLINE void add_gradient_sums(backward_pair p, vec *sum, vec *product) {
    *sum = v_add(*sum, p.dy);
    *product = v_fma(p.dy, p.w, *product);
}

INLINE void gradient_sums_of_vector(int from, abn_activation activation, backward_inputs in, ptrdiff_t n,
                                    backward_constants b, activation_constants k, vec *sum, vec *product) {
    add_gradient_sums(backward_of_vector(from, activation, in, n, b, k), sum, product);
}

/* Of 2 * W elements, into two sums each. */
INLINE void gradient_sums_of_pair(int from, abn_activation activation, backward_inputs in, backward_constants b,
                                  activation_constants k, vec *sums, vec *products) {
    backward_values values[2];
    load_inputs_of_pair(in, values);
    UNROLLED for (int u = 0; u < 2; u++)
        add_gradient_sums(backward_of_values(from, activation, values[u], b, k), &sums[u], &products[u]);
}

/* z of the first min(n, W) elements at x. residual may be NULL. */
INLINE vec value_of_vector(abn_activation activation, const storage *x, const storage *residual, ptrdiff_t n,
                           affine from_x, activation_constants k) {
    vec y = affine_apply(v_load_upto(x, n), from_x);
    if (residual) y = v_add(y, v_load_upto(residual, n));
    return cheap_value(activation, y, k.param);
}

INLINE void apply_to_vector(abn_activation activation, const storage *x, const storage *residual, storage *z,
                            ptrdiff_t n, affine from_x, activation_constants k) {
    v_store_upto(z, value_of_vector(activation, x, residual, n, from_x, k), n);
}

/* The same for 2 * W elements. */
INLINE void apply_to_pair(abn_activation activation, const storage *x, const storage *residual, storage *z,
                          affine from_x, activation_constants k) {
    vec y[2], r[2];
    v_load_pair(x, y);
    if (residual) v_load_pair(residual, r);
    UNROLLED for (int u = 0; u < 2; u++) {
        y[u] = affine_apply(y[u], from_x);
        if (residual) y[u] = v_add(y[u], r[u]);
        y[u] = cheap_value(activation, y[u], k.param);
    }
    v_store_pair(z, y);
}

typedef struct {
    storage *dx, *dr; /* dr: the gradient of the residual; NULL: none */
    int adds;         /* dr += dy, not dr = dy */
} backward_outputs;

INLINE backward_outputs outputs_at(backward_outputs to, ptrdiff_t i) {
    return (backward_outputs){to.dx + i, to.dr ? to.dr + i : NULL, to.adds};
}

typedef struct {
    vec dx, dr;
} gradients;

/* The gradients, except for what is already in dr. */
INLINE gradients gradients_of_values(int from, abn_activation activation, backward_values in, backward_constants b,
                                     activation_constants k) {
    const slope_and_w at = slope_and_w_of(from, activation, in, b, k);
    return (gradients){backward_result(in.gradient, at, b), v_mul(in.gradient, at.slope)};
}

/* The gradients of the first min(n, W) elements. */
INLINE gradients gradients_of_vector(int from, abn_activation activation, backward_inputs in, backward_outputs to,
                                     ptrdiff_t n, backward_constants b, activation_constants k) {
    gradients g = gradients_of_values(from, activation, load_inputs(in, n), b, k);
    if (to.dr && to.adds) g.dr = v_add(v_load_upto(to.dr, n), g.dr);
    return g;
}

INLINE void store_gradients(backward_outputs to, gradients g, ptrdiff_t n) {
    v_store_upto(to.dx, g.dx, n);
    if (to.dr) v_store_upto(to.dr, g.dr, n);
}

/* Computes and stores the gradients of 2 * W elements. */
INLINE void store_gradients_of_pair(int from, abn_activation activation, backward_inputs in, backward_outputs to,
                                    backward_constants b, activation_constants k) {
    backward_values values[2];
    vec dx[2], dr[2], before[2] = {v_zero(), v_zero()};
    load_inputs_of_pair(in, values);
    if (to.dr && to.adds) v_load_pair(to.dr, before);
    UNROLLED for (int u = 0; u < 2; u++) {
        const gradients g = gradients_of_values(from, activation, values[u], b, k);
        dx[u] = g.dx;
        dr[u] = to.adds ? v_add(before[u], g.dr) : g.dr;
    }
    v_store_pair(to.dx, dx);
    if (to.dr) v_store_pair(to.dr, dr);
}

/* The constant of channel `at` in every lane (ABN_ROWS), or those of W channels from `at` on (ABN_COLUMNS). The
 * arrays are padded, so the last load of a tile may reach past its channels. */
INLINE vec constant(int layout, abn_constants constants, int which, ptrdiff_t at) {
    const real *of = (const real *)constants.of[which] + at;
    return layout == ABN_ROWS ? v_set1(*of) : v_load_real(of);
}

/* True if |residual| of any of the n elements, in `vectors` vectors, exceeds the limit. False for NaN. */
INLINE int any_above_limit(const storage *residual, int vectors, ptrdiff_t n, vec limit) {
    vec largest = v_zero();
    UNROLLED for (int u = 0; u < vectors; u++) largest =
        v_max(v_abs(v_load_upto(residual + u * W, n - u * W)), largest);
    return v_any(v_lt(limit, largest));
}

INLINE const storage *element_at(abn_input input, ptrdiff_t row, ptrdiff_t column) {
    return (const storage *)input.data + row * input.stride + column;
}

INLINE storage *destination_row(abn_tile tile, ptrdiff_t row) {
    return (storage *)tile.destination.data + row * tile.destination.stride;
}

INLINE backward_inputs inputs_of(abn_tile tile, int with_residual, ptrdiff_t row, ptrdiff_t column) {
    return (backward_inputs){element_at(tile.source, row, column), element_at(tile.gradient, row, column),
                             with_residual ? element_at(tile.residual, row, column) : NULL};
}

INLINE backward_outputs outputs_of(abn_tile tile, int with_residual, abn_constants constants, ptrdiff_t row,
                                   ptrdiff_t column) {
    storage *dr = with_residual ? tile.residual_gradient.data : NULL;
    if (dr) dr += row * tile.residual_gradient.stride + column;
    return (backward_outputs){destination_row(tile, row) + column, dr, constants.add_to_residual};
}

INLINE affine affine_constants(int layout, abn_constants c, ptrdiff_t at) {
    return (affine){constant(layout, c, ABN_CENTRE, at), constant(layout, c, ABN_SCALE, at),
                    constant(layout, c, ABN_SHIFT, at)};
}

/* The sums kernels do not use the factors: there the compiler removes their loads. */
INLINE backward_constants all_backward_constants(int layout, int from, abn_constants c, ptrdiff_t at) {
    backward_constants b = {affine_constants(layout, c, at),
                            v_zero(),
                            v_zero(),
                            constant(layout, c, ABN_W_FACTOR, at),
                            constant(layout, c, ABN_OFFSET, at),
                            constant(layout, c, ABN_DX_FACTOR, at),
                            v_bits_mask(c.training ? ~0u : 0),
                            v_set1((real)c.residual_low),
                            v_set1((real)c.residual_high)};
    if (from == ABN_FROM_X) {
        b.weight = constant(layout, c, ABN_WEIGHT, at);
        b.bias = constant(layout, c, ABN_BIAS, at);
    }
    return b;
}

#endif
