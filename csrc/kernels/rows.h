/* Kernels for tiles whose rows belong to one channel each: channels-first batches with long rows. Included by
 * kernels.c.
 *
 * UNROLL vectors are processed at once to hide the latency of additions; the rest of a row is processed vector by
 * vector. Each partial sum of a row is one vector, so that short rows need no reduction across lanes. Sums start at the
 * first element even if it is not aligned, so results do not depend on the address of the batch; passes without sums
 * start at an aligned address.
 *
 * The sums prefetch PREFETCH_DISTANCE ahead in the order of the walk, into the first-level cache. The other passes read
 * from the second-level cache, and prefetch into it what input.ahead points to. */
#ifndef ABN_KERNEL_ROWS_H
#define ABN_KERNEL_ROWS_H

#include "elements.h"

#define UNROLL 4
#define PREFETCH_DISTANCE (4096 / (ptrdiff_t)sizeof(storage)) /* elements */
/* Elements summed in registers before these sums are added to the partial sums. Fewer if a register has few lanes: each
 * lane then adds fewer numbers, and the rounding error of float stays small. */
#define SUM_LENGTH (W < 4 ? 256 : 1024)
#define LANES (ABN_LANE_BYTES / (ptrdiff_t)sizeof(real))

INLINE void add_partial(real *partial, const vec *sums) {
    vec sum = sums[0];
    UNROLLED for (int u = 1; u < UNROLL; u++) sum = v_add(sum, sums[u]);
    v_store_real(partial, v_add(v_load_real(partial), sum));
}

/* A piece of a row that the sums read at once. */
typedef struct {
    ptrdiff_t first, length;
    int crosses; /* True if what is read PREFETCH_DISTANCE later is in another row */
} row_piece;

INLINE row_piece piece_at(ptrdiff_t first, ptrdiff_t row_length) {
    const ptrdiff_t border = row_length - PREFETCH_DISTANCE, left = row_length - first;
    row_piece piece = {first, left < SUM_LENGTH ? left : SUM_LENGTH, first >= border};
    if (!piece.crosses && border - first < piece.length) piece.length = border - first;
    return piece;
}

/* The rows between an element and the one that is read PREFETCH_DISTANCE later, if that is not in the same row. */
INLINE ptrdiff_t rows_to_prefetch(abn_tile tile) {
    const ptrdiff_t rows = tile.length < PREFETCH_DISTANCE ? PREFETCH_DISTANCE / tile.length : 1;
    return rows < tile.rows ? rows : tile.rows;
}

/* The bytes from an element of a piece to the one that is read about PREFETCH_DISTANCE elements later: in the same row,
 * `rows` rows later, or in the next tile, which begins input.ahead bytes after this one. */
INLINE ptrdiff_t ahead_of_piece(abn_input input, abn_tile tile, ptrdiff_t row, ptrdiff_t rows, row_piece piece) {
    const ptrdiff_t size = sizeof(storage), border = tile.length - PREFETCH_DISTANCE;
    if (!piece.crosses) return PREFETCH_DISTANCE * size;
    const ptrdiff_t column = border > 0 ? -border : 0;
    if (row + rows < tile.rows) return (rows * input.stride + column) * size;
    return input.ahead + ((rows - tile.rows) * input.stride + column) * size;
}

/* The last n < W elements of a run, as a whole vector if the run is long enough: partial vectors are slow to load.
 * keep_rest zeroes the other lanes. */
INLINE vec load_rest(const storage *run, ptrdiff_t length, ptrdiff_t n) {
    return length >= W ? v_load(run + length - W) : v_load_first(run, n);
}

INLINE vec keep_rest(vec v, ptrdiff_t length, ptrdiff_t n) { return length >= W ? v_last(v, n) : v_first(v, n); }

INLINE void moments_of_run(const storage *x, ptrdiff_t length, ptrdiff_t ahead, vec centre, real *partial) {
    vec sums[UNROLL], squares[UNROLL];
    ptrdiff_t i = 0;
    UNROLLED for (int u = 0; u < UNROLL; u++) sums[u] = squares[u] = v_zero();
    for (; i + UNROLL * W <= length; i += UNROLL * W) {
        prefetch_vectors(x + i, UNROLL, ahead, 1);
        UNROLLED for (int u = 0; u < UNROLL; u += 2) moments_of_pair(x + i + u * W, centre, sums + u, squares + u);
    }
    for (; i + W <= length; i += W) {
        prefetch_vectors(x + i, 1, ahead, 1);
        moments_of_vector(x + i, W, centre, &sums[0], &squares[0]);
    }
    if (i < length) {
        const vec d = keep_rest(v_sub(load_rest(x, length, length - i), centre), length, length - i);
        prefetch_vectors(x + i, 1, ahead, 1);
        sums[1] = v_add(sums[1], d);
        squares[1] = v_fma(d, d, squares[1]);
    }
    add_partial(partial, sums);
    add_partial(partial + LANES, squares);
}

INLINE void rows_moments(abn_tile tile, abn_constants constants, void *partial) {
    const ptrdiff_t rows = rows_to_prefetch(tile);
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const vec centre = constant(ABN_ROWS, constants, ABN_CENTRE, row);
        for (ptrdiff_t i = 0, length; i < tile.length; i += length) {
            const row_piece piece = piece_at(i, tile.length);
            length = piece.length;
            moments_of_run(element_at(tile.source, row, i), length, ahead_of_piece(tile.source, tile, row, rows, piece),
                           centre, (real *)partial + 2 * row * LANES);
        }
    }
}

/* Computes z of a row. Its first and last vector are computed before any store and stored last, as they overlap others:
 * a partial store is slow, and z may be x. The others are aligned to x, so that a recompute into another z takes the
 * same instructions for each element (abn_recompute in forward.c). Returns how many elements were computed: all, or
 * those before a |residual| above the limit. */
INLINE ptrdiff_t apply_to_row(abn_activation activation, const storage *x, ptrdiff_t x_ahead, const storage *r,
                              ptrdiff_t r_ahead, storage *z, ptrdiff_t length, affine from_x, vec limit,
                              activation_constants k) {
    const ptrdiff_t whole = length < W ? length : W, end = length - whole;
    if (r && any_above_limit(r, 1, whole, limit)) return 0;
    const vec first = value_of_vector(activation, x, r, whole, from_x, k);
    const vec last = value_of_vector(activation, x + end, r ? r + end : NULL, whole, from_x, k);
    ptrdiff_t i = elements_to_whole_vector(x);
    int above = 0;
    for (; i + UNROLL * W <= length; i += UNROLL * W) {
        if (r && (above = any_above_limit(r + i, UNROLL, UNROLL * W, limit))) break;
        prefetch_vectors(x + i, UNROLL, x_ahead, 2);
        if (r) prefetch_vectors(r + i, UNROLL, r_ahead, 2);
        UNROLLED for (int u = 0; u < UNROLL; u += 2)
            apply_to_pair(activation, x + i + u * W, r ? r + i + u * W : NULL, z + i + u * W, from_x, k);
    }
    for (; i + W <= length && !above; i += W) {
        if (r && (above = any_above_limit(r + i, 1, W, limit))) break;
        prefetch_vectors(x + i, 1, x_ahead, 2);
        if (r) prefetch_vectors(r + i, 1, r_ahead, 2);
        apply_to_vector(activation, x + i, r ? r + i : NULL, z + i, W, from_x, k);
    }
    prefetch_vectors(x + end, 1, x_ahead, 2);
    if (r) above = above || any_above_limit(r + end, 1, whole, limit);
    v_store_upto(z, first, whole);
    if (above) return i > whole ? i : whole;
    v_store_upto(z + end, last, whole);
    return length;
}

/* Returns how many elements were computed, row by row: all, or those before a |residual| above its limit. */
INLINE ptrdiff_t rows_apply(abn_activation activation, int with_residual, abn_tile tile, abn_constants constants) {
    const activation_constants k = activation_load(constants.param);
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const vec limit = with_residual ? constant(ABN_ROWS, constants, ABN_RESIDUAL_LIMIT, row) : v_zero();
        const ptrdiff_t computed =
            apply_to_row(activation, element_at(tile.source, row, 0), tile.source.ahead,
                         with_residual ? element_at(tile.residual, row, 0) : NULL, tile.residual.ahead,
                         destination_row(tile, row), tile.length, affine_constants(ABN_ROWS, constants, row), limit, k);
        if (with_residual && computed < tile.length) return row * tile.length + computed;
    }
    return tile.rows * tile.length;
}

/* abn_input.ahead of each input. */
typedef struct {
    ptrdiff_t source, gradient, residual;
} backward_ahead;

INLINE void prefetch_inputs(backward_inputs in, int vectors, backward_ahead ahead, int level) {
    prefetch_vectors(in.source, vectors, ahead.source, level);
    prefetch_vectors(in.gradient, vectors, ahead.gradient, level);
    if (in.residual) prefetch_vectors(in.residual, vectors, ahead.residual, level);
}

INLINE void gradient_sums_of_run(int from, abn_activation activation, backward_inputs run, ptrdiff_t length,
                                 backward_ahead ahead, backward_constants b, activation_constants k, real *partial) {
    vec sums[UNROLL], products[UNROLL];
    ptrdiff_t i = 0;
    UNROLLED for (int u = 0; u < UNROLL; u++) sums[u] = products[u] = v_zero();
    for (; i + UNROLL * W <= length; i += UNROLL * W) {
        prefetch_inputs(inputs_at(run, i), UNROLL, ahead, 1);
        UNROLLED for (int u = 0; u < UNROLL; u += 2)
            gradient_sums_of_pair(from, activation, inputs_at(run, i + u * W), b, k, sums + u, products + u);
    }
    for (; i + W <= length; i += W) {
        prefetch_inputs(inputs_at(run, i), 1, ahead, 1);
        gradient_sums_of_vector(from, activation, inputs_at(run, i), W, b, k, &sums[0], &products[0]);
    }
    if (i < length) {
        const ptrdiff_t whole = length < W ? length : W, n = length - i;
        const backward_pair p = backward_of_vector(from, activation, inputs_at(run, length - whole), whole, b, k);
        const vec dy = keep_rest(p.dy, length, n), w = keep_rest(p.w, length, n);
        prefetch_inputs(inputs_at(run, i), 1, ahead, 1);
        sums[1] = v_add(sums[1], dy);
        products[1] = v_fma(dy, w, products[1]);
    }
    add_partial(partial, sums);
    add_partial(partial + LANES, products);
}

INLINE void rows_gradient_sums(int from, abn_activation activation, int with_residual, abn_tile tile,
                               abn_constants constants, void *partial) {
    const activation_constants k = activation_load(constants.param);
    const ptrdiff_t rows = rows_to_prefetch(tile);
    for (ptrdiff_t row = 0; row < tile.rows; row++) {
        const backward_constants b = all_backward_constants(ABN_ROWS, from, constants, row);
        for (ptrdiff_t i = 0, length; i < tile.length; i += length) {
            const row_piece piece = piece_at(i, tile.length);
            const backward_ahead ahead = {ahead_of_piece(tile.source, tile, row, rows, piece),
                                          ahead_of_piece(tile.gradient, tile, row, rows, piece),
                                          ahead_of_piece(tile.residual, tile, row, rows, piece)};
            length = piece.length;
            gradient_sums_of_run(from, activation, inputs_of(tile, with_residual, row, i), length, ahead, b, k,
                                 (real *)partial + 2 * row * LANES);
        }
    }
}

/* Computes dx, and with a residual its gradient, of a row; its first and last vector as apply_to_row does. dx or dr may
 * be dz. */
INLINE void gradient_of_row(int from, abn_activation activation, backward_inputs in, backward_ahead ahead,
                            backward_outputs to, ptrdiff_t length, backward_constants b, activation_constants k) {
    const ptrdiff_t whole = length < W ? length : W, end = length - whole;
    const gradients first = gradients_of_vector(from, activation, in, to, whole, b, k);
    const gradients last = gradients_of_vector(from, activation, inputs_at(in, end), outputs_at(to, end), whole, b, k);
    ptrdiff_t i = elements_to_whole_vector(to.dx);
    for (; i + UNROLL * W <= length; i += UNROLL * W) {
        prefetch_inputs(inputs_at(in, i), UNROLL, ahead, 2);
        UNROLLED for (int u = 0; u < UNROLL; u += 2)
            store_gradients_of_pair(from, activation, inputs_at(in, i + u * W), outputs_at(to, i + u * W), b, k);
    }
    for (; i + W <= length; i += W) {
        const backward_outputs at = outputs_at(to, i);
        prefetch_inputs(inputs_at(in, i), 1, ahead, 2);
        store_gradients(at, gradients_of_vector(from, activation, inputs_at(in, i), at, W, b, k), W);
    }
    prefetch_inputs(inputs_at(in, end), 1, ahead, 2);
    store_gradients(to, first, whole);
    store_gradients(outputs_at(to, end), last, whole);
}

INLINE void rows_gradient_apply(int from, abn_activation activation, int with_residual, abn_tile tile,
                                abn_constants constants) {
    const activation_constants k = activation_load(constants.param);
    const backward_ahead ahead = {tile.source.ahead, tile.gradient.ahead, tile.residual.ahead};
    for (ptrdiff_t row = 0; row < tile.rows; row++)
        gradient_of_row(from, activation, inputs_of(tile, with_residual, row, 0), ahead,
                        outputs_of(tile, with_residual, constants, row, 0), tile.length,
                        all_backward_constants(ABN_ROWS, from, constants, row), k);
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
