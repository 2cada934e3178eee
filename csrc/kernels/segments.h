/* Kernels for segments: up to ABN_SEGMENT elements of one row, between memory and arrays of reals in first-level cache
 * (abn_segment_kernels). Included by kernels.c.
 *
 * Constants are per row or per column (`layout`). The arrays have room for whole vectors past their end. */
#ifndef ABN_KERNEL_SEGMENTS_H
#define ABN_KERNEL_SEGMENTS_H

#include "columns.h"
#include "escape_scan.h"
#include "rows.h"

INLINE void segment_normalize(int layout, const storage *x, ptrdiff_t n, abn_constants c, real *restrict w) {
    for (ptrdiff_t i = 0; i < n; i += W) {
        const affine from_x = affine_constants(layout, c, constants_at(layout, i));
        v_store_real(w + i, affine_apply(v_load_upto(x + i, n - i), from_x));
    }
}

INLINE void segment_scale(int layout, const real *w, ptrdiff_t n, abn_constants c, real *restrict y) {
    for (ptrdiff_t i = 0; i < n; i += W) {
        const ptrdiff_t at = constants_at(layout, i);
        const vec weight = constant(layout, c, ABN_WEIGHT, at), bias = constant(layout, c, ABN_BIAS, at);
        v_store_real(y + i, v_fma(v_load_real(w + i), weight, bias));
    }
}

INLINE void segment_recover(int layout, const storage *residual, ptrdiff_t n, abn_constants c, real *restrict y) {
    for (ptrdiff_t i = 0; i < n; i += W) {
        const ptrdiff_t at = constants_at(layout, i);
        const vec scale = constant(layout, c, ABN_SCALE, at), shift = constant(layout, c, ABN_SHIFT, at);
        vec normal = v_load_real(y + i);
        if (residual) normal = v_sub(normal, v_load_upto(residual + i, n - i));
        v_store_real(y + i, v_fma(normal, scale, shift));
    }
}

INLINE void segment_add(const storage *residual, ptrdiff_t n, real *restrict y) {
    for (ptrdiff_t i = 0; i < n; i += W)
        v_store_real(y + i, v_add(v_load_real(y + i), v_load_upto(residual + i, n - i)));
}

INLINE void segment_widen(const storage *from, ptrdiff_t n, real *to) {
    for (ptrdiff_t i = 0; i < n; i += W) v_store_real(to + i, v_load_upto(from + i, n - i));
}

INLINE void segment_narrow(const real *from, ptrdiff_t n, storage *to) {
    for (ptrdiff_t i = 0; i < n; i += W) v_store_upto(to + i, v_load_real(from + i), n - i);
}

/* dy and w of min(n, W) elements from i on. */
INLINE backward_pair segment_pair(const real *w, const real *slope, const storage *dz, ptrdiff_t i, ptrdiff_t n) {
    backward_pair p = {v_mul(v_load_upto(dz + i, n), v_load_real(slope + i)), v_load_real(w + i)};
    if (n < W) {
        p.dy = v_first(p.dy, n);
        p.w = v_first(p.w, n);
    }
    return p;
}

INLINE void prefetch_inputs_at_word(abn_tile segment, ptrdiff_t i, int level) {
    prefetch_at_word(segment.source, i, level);
    prefetch_at_word(segment.gradient, i, level);
}

INLINE void segment_sums(int layout, const real *w, const real *slope, abn_tile segment, real *partial) {
    const storage *dz = segment.gradient.data;
    const ptrdiff_t n = segment.length;
    vec sums[UNROLL], products[UNROLL];
    UNROLLED for (int u = 0; u < UNROLL; u++) sums[u] = products[u] = v_zero();
    ptrdiff_t i = 0;
    if (layout == ABN_ROWS) {
        for (; i + UNROLL * W <= n; i += UNROLL * W) {
            prefetch_inputs_at_word(segment, i, 1);
            UNROLLED for (int u = 0; u < UNROLL; u++) {
                const backward_pair p = segment_pair(w, slope, dz, i + u * W, W);
                sums[u] = v_add(sums[u], p.dy);
                products[u] = v_fma(p.dy, p.w, products[u]);
            }
        }
    }
    for (; i < n; i += W) {
        const backward_pair p = segment_pair(w, slope, dz, i, n - i);
        prefetch_inputs_at_word(segment, i, 1);
        if (layout == ABN_ROWS) {
            sums[0] = v_add(sums[0], p.dy);
            products[0] = v_fma(p.dy, p.w, products[0]);
        } else {
            real *product = partial + ABN_COLUMNS_STRIDE + i;
            add_to_columns(partial + i, p.dy);
            v_store_real(product, v_fma(p.dy, p.w, v_load_real(product)));
        }
    }
    if (layout == ABN_ROWS) {
        add_partial(partial, sums);
        add_partial(partial + LANES, products);
    }
}

INLINE void segment_gradient(int layout, const real *w, const real *slope, abn_tile segment, abn_constants c) {
    const storage *dz = segment.gradient.data;
    storage *dx = segment.destination.data, *dr = segment.residual_gradient.data;
    const ptrdiff_t n = segment.length;
    for (ptrdiff_t i = 0; i < n; i += W) {
        prefetch_inputs_at_word(segment, i, 2);
        const backward_constants b = all_backward_constants(layout, ABN_FROM_Z, c, constants_at(layout, i));
        const vec z_gradient = v_load_upto(dz + i, n - i);
        const slope_and_w at = {v_load_real(slope + i), v_load_real(w + i)};
        v_store_upto(dx + i, backward_result(z_gradient, at, b), n - i);
        if (!dr) continue;
        const vec dy = v_mul(z_gradient, at.slope);
        v_store_upto(dr + i, c.add_to_residual ? v_add(v_load_upto(dr + i, n - i), dy) : dy, n - i);
    }
}

#define DEFINE_SEGMENT(layout, LAYOUT)                                                                                 \
    static void layout##_normalize(const void *x, ptrdiff_t n, const abn_constants *c, void *w) {                      \
        segment_normalize(LAYOUT, x, n, *c, w);                                                                        \
    }                                                                                                                  \
    static void layout##_scale(const void *w, ptrdiff_t n, const abn_constants *c, void *y) {                          \
        segment_scale(LAYOUT, w, n, *c, y);                                                                            \
    }                                                                                                                  \
    static void layout##_add(const void *residual, ptrdiff_t n, void *y) { segment_add(residual, n, y); }              \
    static int layout##_scan(const abn_tile *segment, const abn_constants *c, const abn_escape_rule *rule, void *y,    \
                             uint64_t *branch_mask, uint64_t *escaped) {                                               \
        const escape_limits limits = {v_set1((real)rule->below), v_set1((real)rule->above),                            \
                                      v_set1((real)rule->minimum), v_set1((real)rule->near)};                          \
        if (segment->residual.data) return segment_scan(LAYOUT, 1, *segment, *c, limits, y, branch_mask, escaped);     \
        return segment_scan(LAYOUT, 0, *segment, *c, limits, y, branch_mask, escaped);                                 \
    }                                                                                                                  \
    static void layout##_recover(const void *residual, ptrdiff_t n, const abn_constants *c, void *y) {                 \
        segment_recover(LAYOUT, residual, n, *c, y);                                                                   \
    }                                                                                                                  \
    static void layout##_sums(const void *w, const void *slope, const abn_tile *segment, void *partial) {              \
        segment_sums(LAYOUT, w, slope, *segment, partial);                                                             \
    }                                                                                                                  \
    static void layout##_gradient(const void *w, const void *slope, const abn_tile *segment, const abn_constants *c) { \
        segment_gradient(LAYOUT, w, slope, *segment, *c);                                                              \
    }
DEFINE_SEGMENT(rows, ABN_ROWS)
DEFINE_SEGMENT(columns, ABN_COLUMNS)

static void segment_widen_(const void *from, ptrdiff_t n, void *to) { segment_widen(from, n, to); }

static void segment_narrow_(const void *from, ptrdiff_t n, void *to) { segment_narrow(from, n, to); }

#define SEGMENT_KERNELS(layout)                                                              \
    {layout##_normalize, layout##_scale,  layout##_add,  layout##_scan,    layout##_recover, \
     segment_widen_,     segment_narrow_, layout##_sums, layout##_gradient}

#endif
