/* Kernels for tiles whose rows belong to one channel each: channels-first batches with long rows. Included by
 * kernels.c.
 *
 * UNROLL vectors are processed at once to hide the latency of additions; the rest of a row is processed vector by
 * vector, the last one in part. Each partial sum of a row is one vector, so that short rows need no reduction across
 * lanes. Sums start at the first element even if it is not aligned, so results do not depend on the address of the
 * batch; passes without sums start with a partial vector up to an aligned address. */
#ifndef ABN_KERNEL_ROWS_H
#define ABN_KERNEL_ROWS_H

#include "elements.h"

#define UNROLL 4
#define SUM_LENGTH 1024 /* elements summed in registers before these sums are added to the partial sums */
#define LANES (ABN_LANE_BYTES / (ptrdiff_t)sizeof(real))

INLINE const storage *row_of(abn_input input, ptrdiff_t row) {
    return (const storage *)input.data + row * input.stride;
}

INLINE void add_partial(real *partial, const vec *sums) {
    vec sum = sums[0];
    UNROLLED for (int u = 1; u < UNROLL; u++) sum = v_add(sum, sums[u]);
    v_store_real(partial, v_add(v_load_real(partial), sum));
}

INLINE void moments_of_run(const storage *x, ptrdiff_t length, vec centre, real *partial) {
    vec sums[UNROLL], squares[UNROLL];
    ptrdiff_t i = 0;
    UNROLLED for (int u = 0; u < UNROLL; u++) sums[u] = squares[u] = v_zero();
    for (; i + UNROLL * W <= length; i += UNROLL * W)
        UNROLLED for (int u = 0; u < UNROLL; u++) moments_of_vector(x + i + u * W, W, centre, &sums[u], &squares[u]);
    for (; i < length; i += W) moments_of_vector(x + i, length - i, centre, &sums[0], &squares[0]);
    add_partial(partial, sums);
    add_partial(partial + LANES, squares);
}

INLINE void rows_moments(abn_tile tile, abn_constants constants, void *partial) {
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const vec centre = constant(ABN_ROWS, constants, ABN_CENTRE, row);
        for (ptrdiff_t i = 0; i < tile.length; i += SUM_LENGTH) {
            const ptrdiff_t left = tile.length - i;
            moments_of_run(row_of(tile.source, row) + i, left < SUM_LENGTH ? left : SUM_LENGTH, centre,
                           (real *)partial + 2 * row * LANES);
        }
    }
}

/* Returns how many elements were computed, row by row: all, or those before a |residual| above its limit. */
INLINE ptrdiff_t rows_apply(abn_activation activation, int with_residual, abn_tile tile, abn_constants constants) {
    const activation_constants k = activation_load(constants.param);
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const storage *x = row_of(tile.source, row), *r = with_residual ? row_of(tile.residual, row) : NULL;
        storage *z = destination_row(tile, row);
        const affine from_x = affine_constants(ABN_ROWS, constants, row);
        const vec limit = r ? constant(ABN_ROWS, constants, ABN_RESIDUAL_LIMIT, row) : v_zero();
        ptrdiff_t i = elements_to_alignment(x, tile.length);
        if (r && any_far(r, 1, i, limit)) return row * tile.length;
        if (i > 0) apply_to_vector(activation, x, r, z, i, from_x, k);
        for (; i + UNROLL * W <= tile.length; i += UNROLL * W) {
            if (r && any_far(r + i, UNROLL, UNROLL * W, limit)) return row * tile.length + i;
            UNROLLED for (int u = 0; u < UNROLL; u++)
                apply_to_vector(activation, x + i + u * W, r ? r + i + u * W : NULL, z + i + u * W, W, from_x, k);
        }
        for (; i < tile.length; i += W) {
            if (r && any_far(r + i, 1, tile.length - i, limit)) return row * tile.length + i;
            apply_to_vector(activation, x + i, r ? r + i : NULL, z + i, tile.length - i, from_x, k);
        }
    }
    return tile.rows * tile.length;
}

INLINE void gradient_sums_of_run(int from, abn_activation activation, const storage *source, const storage *gradient,
                                 ptrdiff_t length, backward_constants b, activation_constants k, real *partial) {
    vec sums[UNROLL], products[UNROLL];
    ptrdiff_t i = 0;
    UNROLLED for (int u = 0; u < UNROLL; u++) sums[u] = products[u] = v_zero();
    for (; i + UNROLL * W <= length; i += UNROLL * W)
        UNROLLED for (int u = 0; u < UNROLL; u++) gradient_sums_of_vector(
            from, activation, source + i + u * W, gradient + i + u * W, W, b, k, &sums[u], &products[u]);
    for (; i < length; i += W)
        gradient_sums_of_vector(from, activation, source + i, gradient + i, length - i, b, k, &sums[0], &products[0]);
    add_partial(partial, sums);
    add_partial(partial + LANES, products);
}

INLINE void rows_gradient_sums(int from, abn_activation activation, abn_tile tile, abn_constants constants,
                               void *partial) {
    const activation_constants k = activation_load(constants.param);
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const backward_constants b = all_backward_constants(ABN_ROWS, from, constants, row);
        for (ptrdiff_t i = 0; i < tile.length; i += SUM_LENGTH) {
            const ptrdiff_t left = tile.length - i;
            gradient_sums_of_run(from, activation, row_of(tile.source, row) + i, row_of(tile.gradient, row) + i,
                                 left < SUM_LENGTH ? left : SUM_LENGTH, b, k, (real *)partial + 2 * row * LANES);
        }
    }
}

INLINE void rows_gradient_apply(int from, abn_activation activation, abn_tile tile, abn_constants constants) {
    const activation_constants k = activation_load(constants.param);
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const storage *source = row_of(tile.source, row), *gradient = row_of(tile.gradient, row);
        storage *dx = destination_row(tile, row);
        const backward_constants b = all_backward_constants(ABN_ROWS, from, constants, row);
        ptrdiff_t i = elements_to_alignment(source, tile.length);
        if (i > 0) gradient_of_vector(from, activation, source, gradient, dx, i, b, k);
        for (; i + UNROLL * W <= tile.length; i += UNROLL * W)
            UNROLLED for (int u = 0; u < UNROLL; u++)
                gradient_of_vector(from, activation, source + i + u * W, gradient + i + u * W, dx + i + u * W, W, b, k);
        for (; i < tile.length; i += W)
            gradient_of_vector(from, activation, source + i, gradient + i, dx + i, tile.length - i, b, k);
    }
}

static void rows_fold(void *partial, abn_columns rows, double *first, double *second) {
    real *lanes = partial;
    for (ptrdiff_t c = 0; c < rows.channels; c++) {
        for (int which = 0; which < 2; which++, lanes += LANES) {
            double sum[W];
            for (int l = 0; l < W; l++) sum[l] = lanes[l];
            for (int half = W / 2; half; half /= 2)
                for (int l = 0; l < half; l++) sum[l] += sum[l + half];
            *(which ? second + c : first + c) += sum[0];
            v_store_real(lanes, v_zero());
        }
    }
}

#endif
