/* Kernels for ABN_KEEP_Y, of both layouts: y over x and z elsewhere in one pass, and gradients from y. Included by
 * kernels.c.
 *
 * They go through a tile row by row; a row has one set of constants (ABN_ROWS) or one per column (ABN_COLUMNS). `dx`
 * may be dz or y, and dr may be dz: every vector is loaded before its results are stored. */
#ifndef ABN_KERNEL_PRE_ACTIVATION_H
#define ABN_KERNEL_PRE_ACTIVATION_H

#include "columns.h"
#include "escape_scan.h"
#include "rows.h"

/* y stored over x, and z, of the first min(n, W) elements. z is computed from the stored, rounded y. */
INLINE void keep_y_of_vector(abn_activation activation, storage *x, const storage *residual, storage *z, ptrdiff_t n,
                             affine from_x, activation_constants k) {
    vec y = affine_apply(v_load_upto(x, n), from_x);
    if (residual) y = v_add(y, v_load_upto(residual, n));
    v_store_upto(x, y, n);
    if (sizeof(storage) < sizeof(real)) y = v_load_upto(x, n);
    v_store_upto(z, cheap_value(activation, y, k.param), n);
}

/* Returns how many elements were computed: all, or those before a |residual| above its limit. */
INLINE ptrdiff_t keep_y_of_row(int layout, abn_activation activation, storage *x, const storage *r, storage *z,
                               ptrdiff_t length, abn_constants constants, activation_constants k) {
    affine from_x = affine_constants(layout, constants, 0);
    vec limit = r ? residual_limit(layout, constants, 0) : v_zero();
    for (ptrdiff_t i = 0; i < length; i += W) {
        if (layout == ABN_COLUMNS) from_x = affine_constants(layout, constants, i);
        if (layout == ABN_COLUMNS && r) limit = residual_limit(layout, constants, i);
        if (r && any_above_limit(r + i, 1, length - i, limit)) return i;
        keep_y_of_vector(activation, x + i, r ? r + i : NULL, z + i, length - i, from_x, k);
    }
    return length;
}

/* The constants of a row of the tile. */
INLINE abn_constants constants_of_row(int layout, abn_constants constants, ptrdiff_t row) {
    if (layout == ABN_ROWS)
        for (int which = 0; which < ABN_CONSTANTS; which++)
            constants.of[which] = (const real *)constants.of[which] + row;
    return constants;
}

INLINE ptrdiff_t tile_keep_y(int layout, abn_activation activation, int with_residual, abn_tile tile,
                             abn_constants constants) {
    const activation_constants k = activation_load(constants.param);
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const storage *r = with_residual ? element_at(tile.residual, row, 0) : NULL;
        const ptrdiff_t done =
            keep_y_of_row(layout, activation, (storage *)(uintptr_t)element_at(tile.source, row, 0), r,
                          destination_row(tile, row), tile.length, constants_of_row(layout, constants, row), k);
        if (done < tile.length) return row * tile.length + done;
    }
    return tile.rows * tile.length;
}

/* What a row of the gradient kernels reads. residual == NULL: none; otherwise it is clamped to [low, high]: that is the
 * identity, relu or relu6 of another y. */
typedef struct {
    const storage *y, *dz, *residual;
    vec low, high;
} kept_row;

INLINE kept_row kept_row_of(abn_tile tile, int with_residual, abn_constants c, ptrdiff_t row) {
    return (kept_row){element_at(tile.source, row, 0), element_at(tile.gradient, row, 0),
                      with_residual ? element_at(tile.residual, row, 0) : NULL, v_set1((real)c.residual_low),
                      v_set1((real)c.residual_high)};
}

INLINE slope_and_w slope_and_w_from_y(abn_activation activation, kept_row row, ptrdiff_t i, ptrdiff_t n,
                                      backward_constants b, activation_constants k) {
    const vec y = v_load_upto(row.y + i, n);
    vec normal = y;
    if (row.residual) normal = v_sub(y, v_min(row.high, v_max(row.low, v_load_upto(row.residual + i, n))));
    return (slope_and_w){cheap_slope(activation, y, k.param), v_fma(normal, b.from.scale, b.from.shift)};
}

/* dy and w of min(n, W) elements from i on. */
INLINE backward_pair pair_from_y(abn_activation activation, kept_row row, ptrdiff_t i, ptrdiff_t n,
                                 backward_constants b, activation_constants k) {
    const slope_and_w at = slope_and_w_from_y(activation, row, i, n, b, k);
    return (backward_pair){v_mul(v_load_upto(row.dz + i, n), at.slope), at.w};
}

INLINE backward_pair first_lanes_of(backward_pair p, ptrdiff_t n) {
    return n < W ? (backward_pair){v_first(p.dy, n), v_first(p.w, n)} : p;
}

/* Sums of up to SUM_LENGTH elements of a row with one set of constants. */
INLINE void kept_sums_of_run(abn_activation activation, kept_row row, ptrdiff_t first, ptrdiff_t end,
                             backward_constants b, activation_constants k, real *partial) {
    vec sums[UNROLL], products[UNROLL];
    ptrdiff_t i = first;
    UNROLLED for (int u = 0; u < UNROLL; u++) sums[u] = products[u] = v_zero();
    for (; i + UNROLL * W <= end; i += UNROLL * W) UNROLLED for (int u = 0; u < UNROLL; u++) {
            const backward_pair p = pair_from_y(activation, row, i + u * W, W, b, k);
            sums[u] = v_add(sums[u], p.dy);
            products[u] = v_fma(p.dy, p.w, products[u]);
        }
    for (; i < end; i += W) {
        const backward_pair p = first_lanes_of(pair_from_y(activation, row, i, end - i, b, k), end - i);
        sums[0] = v_add(sums[0], p.dy);
        products[0] = v_fma(p.dy, p.w, products[0]);
    }
    add_partial(partial, sums);
    add_partial(partial + LANES, products);
}

INLINE void tile_kept_sums(int layout, abn_activation activation, int with_residual, abn_tile tile,
                           abn_constants constants, real *partial) {
    const activation_constants k = activation_load(constants.param);
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const kept_row at = kept_row_of(tile, with_residual, constants, row);
        if (layout == ABN_ROWS) {
            const backward_constants b = all_backward_constants(layout, ABN_FROM_Y, constants, row);
            for (ptrdiff_t i = 0; i < tile.length; i += SUM_LENGTH)
                kept_sums_of_run(activation, at, i, tile.length - i < SUM_LENGTH ? tile.length : i + SUM_LENGTH, b, k,
                                 partial + 2 * row * LANES);
            continue;
        }
        for (ptrdiff_t j = 0; j < tile.length; j += W) {
            const backward_constants b = all_backward_constants(layout, ABN_FROM_Y, constants, j);
            const ptrdiff_t n = tile.length - j;
            const backward_pair p = first_lanes_of(pair_from_y(activation, at, j, n, b, k), n);
            real *products = partial + ABN_COLUMNS_STRIDE + j;
            add_to_columns(partial + j, p.dy);
            v_store_real(products, v_fma(p.dy, p.w, v_load_real(products)));
        }
    }
}

/* dx, and with a residual its gradient dr = dy, or dr += dy if `add`. */
INLINE void tile_kept_gradient(int layout, abn_activation activation, int with_residual, abn_tile tile,
                               abn_constants constants) {
    const activation_constants k = activation_load(constants.param);
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const kept_row at = kept_row_of(tile, with_residual, constants, row);
        storage *dx = destination_row(tile, row);
        storage *dr = (storage *)tile.residual_gradient.data + row * tile.residual_gradient.stride;
        backward_constants b = all_backward_constants(layout, ABN_FROM_Y, constants, layout == ABN_ROWS ? row : 0);
        for (ptrdiff_t i = 0; i < tile.length; i += W) {
            const ptrdiff_t n = tile.length - i;
            if (layout == ABN_COLUMNS) b = all_backward_constants(layout, ABN_FROM_Y, constants, i);
            const slope_and_w from_y = slope_and_w_from_y(activation, at, i, n, b, k);
            const vec dz = v_load_upto(at.dz + i, n);
            vec dy = v_mul(dz, from_y.slope);
            if (with_residual && constants.add_to_residual) dy = v_add(v_load_upto(dr + i, n), dy);
            v_store_upto(dx + i, backward_result(dz, from_y, b), n);
            if (with_residual) v_store_upto(dr + i, dy, n);
        }
    }
}

#define DEFINE_FROM_Y(layout, LAYOUT, name, activation)                                            \
    static ptrdiff_t layout##_keep_y_##name(const abn_tile *t, const abn_constants *c) {           \
        if (t->residual.data) return tile_keep_y(LAYOUT, activation, 1, *t, *c);                   \
        return tile_keep_y(LAYOUT, activation, 0, *t, *c);                                         \
    }                                                                                              \
    static void layout##_sums_y_##name(const abn_tile *t, const abn_constants *c, void *partial) { \
        if (t->residual.data)                                                                      \
            tile_kept_sums(LAYOUT, activation, 1, *t, *c, partial);                                \
        else                                                                                       \
            tile_kept_sums(LAYOUT, activation, 0, *t, *c, partial);                                \
    }                                                                                              \
    static void layout##_gradient_y_##name(const abn_tile *t, const abn_constants *c) {            \
        if (t->residual.data)                                                                      \
            tile_kept_gradient(LAYOUT, activation, 1, *t, *c);                                     \
        else                                                                                       \
            tile_kept_gradient(LAYOUT, activation, 0, *t, *c);                                     \
    }

#endif
