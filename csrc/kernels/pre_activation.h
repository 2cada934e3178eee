/* The forward kernels for ABN_KEEP_Y, of both layouts: y over x and z elsewhere in one pass. Included by kernels.c. */
#ifndef ABN_KERNEL_PRE_ACTIVATION_H
#define ABN_KERNEL_PRE_ACTIVATION_H

#include "columns.h"
#include "escape_scan.h"
#include "rows.h"

/* A row: y is written over x. residual == NULL: none. */
typedef struct {
    storage *x, *z;
    const storage *residual;
    ptrdiff_t ahead; /* abn_input.ahead of x */
} kept_row;

/* y stored over x, and z, of the first min(n, W) elements. z is computed from the stored, rounded y. */
INLINE void keep_y_of_vector(abn_activation activation, storage *x, const storage *residual, storage *z, ptrdiff_t n,
                             affine from_x, activation_constants k) {
    vec y = affine_apply(v_load_upto(x, n), from_x);
    if (residual) y = v_add(y, v_load_upto(residual, n));
    v_store_upto(x, y, n);
    if (sizeof(storage) < sizeof(real)) y = v_load_upto(x, n);
    v_store_upto(z, cheap_value(activation, y, k.param), n);
}

/* Columns [first, end) of a row, which has one set of constants (ABN_ROWS) or one per column (ABN_COLUMNS). `vectors`
 * of W elements are computed between two checks of the residual; if there are fewer than that many elements left, the
 * last vector may be a part of one. Returns how many columns from 0 on were computed: end, or fewer if a |residual| is
 * above its limit. */
INLINE ptrdiff_t keep_y_of_columns(int layout, abn_activation activation, kept_row row, ptrdiff_t first, ptrdiff_t end,
                                   int vectors, abn_constants constants, activation_constants k) {
    for (ptrdiff_t i = first; i < end; i += vectors * W) {
        const ptrdiff_t n = vectors > 1 ? vectors * W : end - i;
        if (row.residual) {
            int above = 0;
            UNROLLED for (int v = 0; v < vectors; v++) above |=
                any_above_limit(row.residual + i + v * W, 1, n - v * W, residual_limit(layout, constants, i + v * W));
            if (above) return i;
        }
        prefetch_vectors(row.x + i, vectors, row.ahead, layout == ABN_ROWS ? 2 : 1);
        UNROLLED for (int v = 0; v < vectors; v++) keep_y_of_vector(
            activation, row.x + i + v * W, row.residual ? row.residual + i + v * W : NULL, row.z + i + v * W, n - v * W,
            affine_constants(layout, constants, constants_at(layout, i + v * W)), k);
    }
    return end;
}

/* The constants of a row of the tile. */
INLINE abn_constants constants_of_row(int layout, abn_constants constants, ptrdiff_t row) {
    if (layout == ABN_ROWS)
        for (int which = 0; which < ABN_CONSTANTS; which++)
            constants.of[which] = (const real *)constants.of[which] + row;
    return constants;
}

/* Row by row. Returns how many elements were computed: all, or those before a |residual| above its limit. */
INLINE ptrdiff_t tile_keep_y(int layout, abn_activation activation, int with_residual, abn_tile tile,
                             abn_constants constants) {
    const activation_constants k = activation_load(constants.param);
    const ptrdiff_t whole = tile.length - tile.length % (UNROLL * W);
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const kept_row at = {(storage *)(uintptr_t)element_at(tile.source, row, 0), destination_row(tile, row),
                             with_residual ? element_at(tile.residual, row, 0) : NULL, tile.source.ahead};
        const abn_constants of_row = constants_of_row(layout, constants, row);
        ptrdiff_t done = keep_y_of_columns(layout, activation, at, 0, whole, UNROLL, of_row, k);
        if (done == whole) done = keep_y_of_columns(layout, activation, at, whole, tile.length, 1, of_row, k);
        if (done < tile.length) return row * tile.length + done;
    }
    return tile.rows * tile.length;
}

#define DEFINE_KEEP_Y(layout, LAYOUT, name, activation)                                  \
    static ptrdiff_t layout##_keep_y_##name(const abn_tile *t, const abn_constants *c) { \
        if (t->residual.data) return tile_keep_y(LAYOUT, activation, 1, *t, *c);         \
        return tile_keep_y(LAYOUT, activation, 0, *t, *c);                               \
    }

#endif
