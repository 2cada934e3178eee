/* Kernels for tiles whose columns belong to channels (abn_columns): channels-last batches, and channels-first batches
 * with short rows, where a row of the tile is a whole image. Included by kernels.c.
 *
 * Rows without gaps between them are computed one by one, in the order of memory. Otherwise ROWS_AT_ONCE rows share
 * each load of constants and each update of the partial sums, which stay in L1. Each column adds its rows in the same
 * order either way, so results do not depend on how channels are divided into tiles. */
#ifndef ABN_KERNEL_COLUMNS_H
#define ABN_KERNEL_COLUMNS_H

#include "elements.h"

#define ROWS_AT_ONCE (sizeof(storage) == 2 ? 8 : 4)

/* Vectors of a cache line, or 1 if they are longer. */
#define LINE_VECTORS ((int)(W * sizeof(storage) < CACHE_LINE ? CACHE_LINE / (W * sizeof(storage)) : 1))

/* Calls step(..., row, rows, column, n) for one row, or for ROWS_AT_ONCE rows from `row` on, and n columns from `column`
 * on. `rows` and n are compile-time constants except for the n of the last columns, so the loops of a step unroll. */
#define FOR_STEPS_OF_ROW(tile, step, row, ...)                                                            \
    do {                                                                                                  \
        ptrdiff_t j_ = 0;                                                                                 \
        for (; j_ + LINE_VECTORS * W <= (tile).length; j_ += LINE_VECTORS * W) {                          \
            prefetch_from(tile, row, j_);                                                                 \
            UNROLLED for (int v_ = 0; v_ < LINE_VECTORS; v_++) step(__VA_ARGS__, row, 1, j_ + v_ * W, W); \
        }                                                                                                 \
        for (; j_ + W <= (tile).length; j_ += W) step(__VA_ARGS__, row, 1, j_, W);                        \
        if (j_ < (tile).length) step(__VA_ARGS__, row, 1, j_, (tile).length - j_);                        \
    } while (0)
/* Not unrolled over the vectors of a cache line, and the last columns row by row: each would be another copy of the step
 * to compile, without a gain in speed. */
#define FOR_STEPS_OF_GROUPED_ROWS(tile, step, row, ...)                                       \
    do {                                                                                      \
        ptrdiff_t j_ = 0;                                                                     \
        for (; j_ + W <= (tile).length; j_ += W) step(__VA_ARGS__, row, ROWS_AT_ONCE, j_, W); \
        for (int r_ = 0; j_ < (tile).length && r_ < ROWS_AT_ONCE; r_++)                       \
            step(__VA_ARGS__, (row) + r_, 1, j_, (tile).length - j_);                         \
    } while (0)
#define FOR_STEPS(tile, step, ...)                                                                              \
    do {                                                                                                        \
        const ptrdiff_t grouped_ = grouped_rows(tile);                                                          \
        ptrdiff_t row_ = 0;                                                                                     \
        for (; row_ < grouped_; row_ += ROWS_AT_ONCE) FOR_STEPS_OF_GROUPED_ROWS(tile, step, row_, __VA_ARGS__); \
        for (; row_ < (tile).rows; row_++) FOR_STEPS_OF_ROW(tile, step, row_, __VA_ARGS__);                     \
    } while (0)

/* The number of rows to compute ROWS_AT_ONCE at a time: none if there are no gaps between rows. */
INLINE ptrdiff_t grouped_rows(abn_tile tile) {
    return tile.source.stride == tile.length ? 0 : tile.rows - tile.rows % ROWS_AT_ONCE;
}

INLINE void prefetch_from(abn_tile tile, ptrdiff_t row, ptrdiff_t column) {
    prefetch_vectors(element_at(tile.source, row, column), LINE_VECTORS, tile.source.ahead, 1);
    if (tile.gradient.data)
        prefetch_vectors(element_at(tile.gradient, row, column), LINE_VECTORS, tile.gradient.ahead, 1);
}

INLINE void add_to_columns(real *partial, vec sum) { v_store_real(partial, v_add(v_load_real(partial), sum)); }

INLINE void moments_step(abn_tile tile, abn_constants constants, real *sums, ptrdiff_t row, int rows, ptrdiff_t j,
                         ptrdiff_t n) {
    real *squares = sums + ABN_COLUMNS_STRIDE;
    const vec centre = constant(ABN_COLUMNS, constants, ABN_CENTRE, j);
    vec sum = v_load_real(sums + j), square = v_load_real(squares + j);
    UNROLLED for (int r = 0; r < rows; r++)
        moments_of_vector(element_at(tile.source, row + r, j), n, centre, &sum, &square);
    v_store_real(sums + j, sum);
    v_store_real(squares + j, square);
}

INLINE void columns_moments(abn_tile tile, abn_constants constants, void *partial) {
    FOR_STEPS(tile, moments_step, tile, constants, partial);
}

INLINE void apply_step(abn_activation activation, int with_residual, abn_tile tile, abn_constants constants,
                       activation_constants k, ptrdiff_t row, int rows, ptrdiff_t j, ptrdiff_t n) {
    const affine from_x = affine_constants(ABN_COLUMNS, constants, j);
    UNROLLED for (int r = 0; r < rows; r++) {
        const storage *x = element_at(tile.source, row + r, j);
        const storage *residual = with_residual ? element_at(tile.residual, row + r, j) : NULL;
        apply_to_vector(activation, x, residual, destination_row(tile, row + r) + j, n, from_x, k);
    }
}

INLINE int columns_any_above_limit(abn_tile tile, abn_constants constants, ptrdiff_t row, ptrdiff_t rows) {
    for (ptrdiff_t r = row; r < row + rows; r++)
        for (ptrdiff_t j = 0; j < tile.length; j += W) {
            const vec limit = constant(ABN_COLUMNS, constants, ABN_RESIDUAL_LIMIT, j);
            if (any_above_limit(element_at(tile.residual, r, j), 1, tile.length - j, limit)) return 1;
        }
    return 0;
}

/* Returns the same as rows_apply. */
INLINE ptrdiff_t columns_apply(abn_activation activation, int with_residual, abn_tile tile, abn_constants constants) {
    const activation_constants k = activation_load(constants.param);
    const ptrdiff_t grouped = grouped_rows(tile);
    ptrdiff_t row = 0;
    for (; row < grouped; row += ROWS_AT_ONCE) {
        if (with_residual && columns_any_above_limit(tile, constants, row, ROWS_AT_ONCE)) return row * tile.length;
        FOR_STEPS_OF_GROUPED_ROWS(tile, apply_step, row, activation, with_residual, tile, constants, k);
    }
    for (; row < tile.rows; row++) {
        if (with_residual && columns_any_above_limit(tile, constants, row, 1)) return row * tile.length;
        FOR_STEPS_OF_ROW(tile, apply_step, row, activation, with_residual, tile, constants, k);
    }
    return tile.rows * tile.length;
}

INLINE void gradient_sums_step(int from, abn_activation activation, int with_residual, abn_tile tile,
                               abn_constants constants, activation_constants k, real *sums, ptrdiff_t row, int rows,
                               ptrdiff_t j, ptrdiff_t n) {
    real *products = sums + ABN_COLUMNS_STRIDE;
    const backward_constants b = all_backward_constants(ABN_COLUMNS, from, constants, j);
    vec sum = v_load_real(sums + j), product = v_load_real(products + j);
    UNROLLED for (int r = 0; r < rows; r++) {
        const backward_inputs in = inputs_of(tile, with_residual, row + r, j);
        gradient_sums_of_vector(from, activation, in, n, b, k, &sum, &product);
    }
    v_store_real(sums + j, sum);
    v_store_real(products + j, product);
}

INLINE void columns_gradient_sums(int from, abn_activation activation, int with_residual, abn_tile tile,
                                  abn_constants constants, void *partial) {
    const activation_constants k = activation_load(constants.param);
    FOR_STEPS(tile, gradient_sums_step, from, activation, with_residual, tile, constants, k, partial);
}

INLINE void gradient_apply_step(int from, abn_activation activation, int with_residual, abn_tile tile,
                                abn_constants constants, activation_constants k, ptrdiff_t row, int rows, ptrdiff_t j,
                                ptrdiff_t n) {
    const backward_constants b = all_backward_constants(ABN_COLUMNS, from, constants, j);
    UNROLLED for (int r = 0; r < rows; r++) {
        const backward_inputs in = inputs_of(tile, with_residual, row + r, j);
        const backward_outputs to = outputs_of(tile, with_residual, constants, row + r, j);
        store_gradients(to, gradients_of_vector(from, activation, in, to, n, b, k), n);
    }
}

INLINE void columns_gradient_apply(int from, abn_activation activation, int with_residual, abn_tile tile,
                                   abn_constants constants) {
    const activation_constants k = activation_load(constants.param);
    FOR_STEPS(tile, gradient_apply_step, from, activation, with_residual, tile, constants, k);
}

/* Sum of `count` neighbouring partial sums: in vectors first, then across lanes in double. */
INLINE double sum_of_columns(const real *sums, ptrdiff_t count) {
    vec sum = v_zero();
    real lanes[W];
    double total = 0;
    for (ptrdiff_t j = 0; j < count; j += W) {
        const ptrdiff_t n = count - j;
        const vec run = v_load_real(sums + j);
        sum = v_add(sum, n < W ? v_first(run, n) : run);
    }
    v_store_real(lanes, sum);
    for (int l = 0; l < W; l++) total += lanes[l];
    return total;
}

static void columns_fold(void *partial, abn_columns columns, double *first, double *second) {
    real *sums = partial, *others = sums + ABN_COLUMNS_STRIDE;
    const ptrdiff_t width = columns.channels * columns.positions_per_channel * columns.positions_per_row;
    if (columns.positions_per_channel > 1) {
        for (ptrdiff_t c = 0; c < columns.channels; c++) {
            first[c] += sum_of_columns(sums + c * columns.positions_per_channel, columns.positions_per_channel);
            second[c] += sum_of_columns(others + c * columns.positions_per_channel, columns.positions_per_channel);
        }
    } else {
        for (ptrdiff_t j = 0; j < width; j += columns.channels) {
            for (ptrdiff_t c = 0; c < columns.channels; c++) {
                first[c] += sums[j + c];
                second[c] += others[j + c];
            }
        }
    }
    memset(sums, 0, (size_t)width * sizeof *sums);
    memset(others, 0, (size_t)width * sizeof *others);
}

static void columns_expand(const void *constants, abn_columns columns, void *expanded) {
    const real *from = constants;
    real *to = expanded;
    for (ptrdiff_t r = 0; r < columns.positions_per_row; r++) {
        for (ptrdiff_t c = 0; c < columns.channels; c++, to += columns.positions_per_channel) {
            const vec value = v_set1(from[c]);
            /* The last vector may write into the columns of the next channel, which follow, or into the padding. */
            for (ptrdiff_t s = 0; s < columns.positions_per_channel; s += W) v_store_real(to + s, value);
        }
    }
}

#endif
