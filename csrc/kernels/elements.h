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
} backward_constants;

typedef struct {
    vec slope, w; /* slope = activation'(y) */
} slope_and_w;

typedef struct {
    vec dy, w;
} backward_pair;

/* Left of 0, the scale includes the inverse of leaky_relu: w = z * (scale / slope) + shift. */
INLINE slope_and_w slope_and_w_of(int from, abn_activation activation, vec source, backward_constants b,
                                  activation_constants k) {
    if (from == ABN_FROM_Z && activation == ABN_LEAKY_RELU) {
        const mask left = is_left_of_zero(source);
        const vec scale = v_select(left, v_mul(b.from.scale, k.inverse), b.from.scale);
        return (slope_and_w){v_select(left, k.param, v_set1(1)), v_fma(source, scale, b.from.shift)};
    }
    if (from == ABN_FROM_Z) return (slope_and_w){v_set1(1), v_fma(source, b.from.scale, b.from.shift)};
    const vec w = affine_apply(source, b.from);
    return (slope_and_w){cheap_slope(activation, v_fma(w, b.weight, b.bias), k.param), w};
}

INLINE backward_pair backward_element(int from, abn_activation activation, vec source, vec dz, backward_constants b,
                                      activation_constants k) {
    const slope_and_w at = slope_and_w_of(from, activation, source, b, k);
    return (backward_pair){activation == ABN_IDENTITY ? dz : v_mul(dz, at.slope), at.w};
}

/* w * w_factor + offset. In evaluation w, which may be infinite or NaN, is replaced by 0. */
INLINE vec statistics_term(vec w, backward_constants b) {
    return v_fma(v_select(b.training, w, v_zero()), b.w_factor, b.offset);
}

/* dx. */
INLINE vec backward_result(vec dz, slope_and_w at, backward_constants b) {
    return v_mul(v_fma(dz, at.slope, statistics_term(at.w, b)), b.dx_factor);
}

/* dy and w of the first n elements; 0 in the other lanes, whatever constants are there. */
INLINE backward_pair backward_of_vector(int from, abn_activation activation, const storage *source,
                                        const storage *gradient, ptrdiff_t n, backward_constants b,
                                        activation_constants k) {
    backward_pair p = backward_element(from, activation, v_load_upto(source, n), v_load_upto(gradient, n), b, k);
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

INLINE void gradient_sums_of_vector(int from, abn_activation activation, const storage *source, const storage *gradient,
                                    ptrdiff_t n, backward_constants b, activation_constants k, vec *sum, vec *product) {
    const backward_pair p = backward_of_vector(from, activation, source, gradient, n, b, k);
    *sum = v_add(*sum, p.dy);
    *product = v_fma(p.dy, p.w, *product);
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

/* dx of the first min(n, W) elements. */
INLINE vec dx_of_vector(int from, abn_activation activation, const storage *source, const storage *gradient,
                        ptrdiff_t n, backward_constants b, activation_constants k) {
    const slope_and_w at = slope_and_w_of(from, activation, v_load_upto(source, n), b, k);
    return backward_result(v_load_upto(gradient, n), at, b);
}

INLINE void gradient_of_vector(int from, abn_activation activation, const storage *source, const storage *gradient,
                               storage *dx, ptrdiff_t n, backward_constants b, activation_constants k) {
    v_store_upto(dx, dx_of_vector(from, activation, source, gradient, n, b, k), n);
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

INLINE storage *destination_row(abn_tile tile, ptrdiff_t row) {
    return (storage *)tile.destination.data + row * tile.destination.stride;
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
                            v_bits_mask(c.training ? ~0u : 0)};
    if (from == ABN_FROM_X) {
        b.weight = constant(layout, c, ABN_WEIGHT, at);
        b.bias = constant(layout, c, ABN_BIAS, at);
    }
    return b;
}

#endif
