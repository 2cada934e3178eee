/* dz -> dx and the two sums. One pass for the sums, one that applies them, whatever was kept:
 *
 *     w = xhat, or weight * xhat (ABN_SCHEME_II)      dx = (dy + w * w_factor + offset) * dx_factor
 *
 * Cheap activations (ABN_CHEAP) have kernels for whole tiles. The others, and batches with a residual or escaped elements,
 * go piece by piece through arrays in the nearest cache, where the escaped elements are put in place. Channels whose
 * numbers leave the range of float go element by element, in double: backward_exact.c. */
#include <float.h>
#include <math.h>
#include <stdint.h>

#include "activations.h"
#include "backward.h"
#include "escapes.h"
#include "mask.h"
#include "parts.h"
#include "sides.h"

/* w = weight * xhat rather than xhat? Not with weights that could take dy * w out of float's range, at either end. */
static int is_scaled(const abn_backward_operation *b, ptrdiff_t channel) {
    const double size = fabs(b->context->norm.weight[channel]);
    return b->context->keep == ABN_KEEP_Z && b->context->scheme == ABN_SCHEME_II && !abn_is_guarded(b, channel) &&
           size >= 1 && size <= 0x1p20;
}

static void set_source_constants(abn_backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const double weight = norm->weight[c], bias = norm->bias[c];
    double centre = 0, scale = 1, shift = 0;
    if (b->context->keep == ABN_KEEP_X) {
        centre = abn_round_to_real(b->op.source.dtype, norm->mean[c]);
        scale = norm->inv_std[c];
        shift = isfinite(centre) ? (centre - norm->mean[c]) * scale : 0;
    } else if (b->context->keep == ABN_KEEP_Z && !abn_is_guarded(b, c)) {
        scale = is_scaled(b, c) ? 1 : 1 / weight;
        shift = is_scaled(b, c) ? -bias : -bias / weight;
    }
    abn_set_constant(&b->op, ABN_CENTRE, c, centre);
    abn_set_constant(&b->op, ABN_SCALE, c, scale);
    abn_set_constant(&b->op, ABN_SHIFT, c, shift);
    abn_set_constant(&b->op, ABN_WEIGHT, c, weight);
    abn_set_constant(&b->op, ABN_BIAS, c, bias);
}

/* Is what the kernels make of the source not good enough? */
static int source_is_exact(const abn_backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const abn_dtype dtype = b->op.source.dtype;
    return b->context->keep == ABN_KEEP_X && !(abn_constant_fits(dtype, norm->inv_std[c]) &&
                                               abn_centre_fits(dtype, norm->mean[c], norm->var[c], b->op.per_channel));
}

/* Do the sums that were given tell of a dy or xhat beyond float? Those of our own have been looked at. */
static int may_be_far(const abn_backward_operation *b, ptrdiff_t c) {
    return b->are_given &&
           (fabs(b->sums.dy[c]) > FLT_MAX || (b->context->keep == ABN_KEEP_X && fabs(b->sums.dy_xhat[c]) > FLT_MAX));
}

/* Up to this size w's part of a sum with dy, itself a float, takes none beyond the largest float. */
static const double largest_part = FLT_MAX * 0x1p-26;

static void set_result_constants(abn_backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const abn_dtype dtype = b->op.source.dtype;
    const double factor = norm->weight[c] * norm->inv_std[c], per_element = b->count > 0 ? -1 / b->count : 0;
    const double xhat_factor = b->count > 0 ? b->sums.dy_xhat[c] * per_element : 0;
    const double w_factor = is_scaled(b, c) ? xhat_factor / norm->weight[c] : xhat_factor;
    const double offset = b->count > 0 ? b->sums.dy[c] * per_element : 0;
    const double largest = fabs(xhat_factor) * sqrt(b->count) + fabs(offset); /* |xhat| <= sqrt(count) in training */
    const int leaves_float =
        dtype != ABN_FLOAT64 && (may_be_far(b, c) || (isfinite(largest) && largest > largest_part));
    abn_set_constant(&b->op, ABN_W_FACTOR, c, w_factor);
    abn_set_constant(&b->op, ABN_OFFSET, c, offset);
    abn_set_constant(&b->op, ABN_DX_FACTOR, c, factor);
    if (leaves_float || !abn_constant_fits(dtype, factor) || !abn_constant_fits(dtype, w_factor) ||
        !abn_constant_fits(dtype, offset) || source_is_exact(b, c))
        b->op.kinds[c] |= ABN_EXACT;
}

static void begin(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    abn_backward_operation *b = (abn_backward_operation *)op;
    for (ptrdiff_t c = channel; c < channel + channels; c++) {
        set_source_constants(b, c);
        if (b->context->channel_param) abn_set_constant(op, ABN_PARAM, c, b->context->channel_param[c]);
        if (!op->sums) set_result_constants(b, c);
    }
}

/* ---- piece by piece ------------------------------------------------------------------------------------- */

/* Where a piece's w and slopes are. */
typedef struct {
    void *w, *slopes;
} recovered;

enum { SLOPE_BY_Y, SLOPE_BY_PARAM }; /* activation'(y), or the activation's derivative by its parameter */

/* What neither z nor the stored xhat tells comes from the list. */
static void put_escapes(const abn_backward_operation *b, const abn_part *part, const abn_piece *piece, int slope,
                        recovered to) {
    const abn_context *context = b->context;
    const abn_escapes *escapes = &context->escapes;
    const int64_t end = piece->index + piece->tile.length;
    for (ptrdiff_t e = abn_escapes_from(escapes, piece->index); e < escapes->count && escapes->index[e] < end; e++) {
        const ptrdiff_t i = (ptrdiff_t)(escapes->index[e] - piece->index);
        const ptrdiff_t c = abn_element_of(&b->op, &part->span, piece->row, piece->column + i).channel;
        const double normal = context->norm.weight[c] * escapes->xhat[e];
        const double y = normal + context->norm.bias[c] + abn_element_from(&b->op, piece->tile.residual, i);
        abn_set_real(&b->op, to.w, i, is_scaled(b, c) ? normal : escapes->xhat[e]);
        abn_set_real(&b->op, to.slopes, i,
                     slope == SLOPE_BY_PARAM
                         ? abn_below_zero(y)
                         : abn_activation_derivative(context->activation, abn_param_at(context, c), y));
    }
}

static void from_z(const abn_backward_operation *b, const abn_part *part, const abn_piece *piece, int slope,
                   abn_bench *bench, recovered to) {
    const abn_context *context = b->context;
    const abn_piece_kernels *kernels = &b->op.kernels->piece;
    const abn_activation_kernels *activations = b->op.set->activations;
    const ptrdiff_t n = piece->tile.length;
    kernels->widen(piece->tile.source.data, n, to.w);
    if (context->sides) abn_sides_get(context->sides, piece->index, bench->sides, n);
    activations->of[context->activation].invert(to.w, to.slopes, n, abn_piece_param(&b->op, context, piece, bench),
                                                bench->sides);
    if (slope == SLOPE_BY_PARAM) activations->below_zero(to.w, to.slopes, n);
    kernels->recover(piece->tile.residual.data, n, &piece->constants, to.w);
    if (context->escapes.count > 0) put_escapes(b, part, piece, slope, to);
}

/* From x or xhat. y is in the place of the slope. */
static void from_x(const abn_backward_operation *b, const abn_part *part, const abn_piece *piece, int slope,
                   abn_bench *bench, recovered to) {
    const abn_input source = part->kind & ABN_GUARDED ? piece->xhat : piece->tile.source;
    const abn_piece_kernels *kernels = &b->op.kernels->piece;
    const abn_activation_kernels *activations = b->op.set->activations;
    const ptrdiff_t n = piece->tile.length;
    kernels->normalize(source.data, n, &piece->constants, to.w);
    kernels->scale(to.w, n, &piece->constants, to.slopes);
    if (piece->tile.residual.data) kernels->add(piece->tile.residual.data, n, to.slopes);
    if (slope == SLOPE_BY_PARAM)
        activations->below_zero(to.slopes, to.slopes, n);
    else
        activations->of[b->context->activation].slope(to.slopes, to.slopes, n,
                                                      abn_piece_param(&b->op, b->context, piece, bench));
    if (b->context->escapes.count > 0) put_escapes(b, part, piece, slope, to);
}

static recovered in_memo(const abn_operation *op, abn_output memo) {
    return (recovered){memo.data, (char *)memo.data + op->memo_apart * (ptrdiff_t)abn_real_size(op->source.dtype)};
}

/* w and the slope of each piece of a part, then their sums (with partial), or dx. */
static void for_each_piece(const abn_backward_operation *b, const abn_part *part, void *partial, int slope) {
    const abn_operation *op = &b->op;
    const abn_piece_kernels *kernels = &op->kernels->piece;
    abn_bench bench;
    for (abn_piece piece = {0}; abn_next_piece(op, part, &piece);) {
        const abn_tile *tile = &piece.tile;
        const int has_memo = tile->memo.data && slope == SLOPE_BY_Y;
        const recovered at = has_memo ? in_memo(op, tile->memo) : (recovered){bench.y, bench.slope};
        if (!partial && has_memo)
            ; /* the sums have left them there */
        else if (part->kind & ABN_GUARDED || b->from == ABN_FROM_X)
            from_x(b, part, &piece, slope, &bench, at);
        else
            from_z(b, part, &piece, slope, &bench, at);
        if (partial)
            kernels->sums(at.w, at.slopes, tile->gradient.data, tile->length,
                          abn_partial_at(op, partial, piece.partial_offset));
        else
            kernels->gradient(at.w, at.slopes, tile->gradient.data, tile->length, &piece.constants,
                              tile->destination.data, tile->residual_gradient.data, op->add_to_residual);
    }
}

/* ---- the steps ----------------------------------------------------------------------------------------- */

static int finish(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first, const double *second,
                  int again) {
    abn_backward_operation *b = (abn_backward_operation *)op;
    for (ptrdiff_t i = 0; i < channels; i++) {
        const ptrdiff_t c = channel + i;
        const int was_finite = isfinite(b->context->norm.inv_std[c]); /* else there is nothing to be rescued */
        const int exactly = was_finite && !(isfinite(first[i]) && isfinite(second[i]));
        abn_exact_sums sums = {first[i], is_scaled(b, c) ? second[i] / b->context->norm.weight[c] : second[i],
                               first[i]};
        if (exactly && !b->are_given) sums = abn_backward_exact_sums(b, c);
        if (again) {
            b->sums.param[c] = sums.param;
            continue;
        }
        if (exactly) op->kinds[c] |= ABN_EXACT;
        if (!b->are_given) {
            b->sums.dy[c] = sums.dy;
            b->sums.dy_xhat[c] = sums.dy_xhat;
        }
        if (op->apply) set_result_constants(b, c);
    }
    return b->sums.param != NULL && !again;
}

/* Sums (with partial) or dx of each part, with xhat for a source where channels are guarded. */
static void for_each_part(const abn_backward_operation *b, const abn_tile *tile, const abn_span *span,
                          const abn_constants *constants, void *partial, int slope) {
    const abn_operation *op = &b->op;
    for (abn_part part = {0}; abn_next_part(op, &b->context->guard, tile, span, constants, &part);) {
        const int guarded = part.kind & ABN_GUARDED, from = guarded ? ABN_FROM_X : b->from;
        part.constants.param = b->context->activation_param;
        part.constants.training = b->count > 0;
        if (!partial && part.kind & ABN_EXACT) {
            abn_backward_exact_apply(b, &part);
            continue;
        }
        if (!b->kernels) {
            for_each_piece(b, &part, partial, slope);
            continue;
        }
        if (guarded) part.tile.source = part.xhat;
        if (partial)
            b->kernels->gradient_sums[from](&part.tile, &part.constants, abn_partial_at(op, partial, part.offset));
        else
            b->kernels->gradient_apply[from](&part.tile, &part.constants);
    }
}

static void sums(const abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                 void *partial, int again) {
    for_each_part((const abn_backward_operation *)op, tile, span, constants, partial,
                  again ? SLOPE_BY_PARAM : SLOPE_BY_Y);
}

static void apply(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                  int thread) {
    (void)thread;
    for_each_part((const abn_backward_operation *)op, tile, span, constants, NULL, SLOPE_BY_Y);
}

/* True if inverting an activation twice costs more than storing y and the slope and reading them again. */
static int is_worth_a_memo(const abn_backward_operation *b) {
    const int cheap = abn_activation_table[b->context->activation].traits & ABN_CHEAP;
    const abn_dtype dtype = b->context->kept.dtype;
    return !cheap && b->op.sums && b->op.apply && abn_real_size(dtype) == abn_dtype_size(dtype);
}

/* How many different arrays pass through the cache? */
static int count_arrays(const abn_backward_operation *b) {
    const abn_operation *op = &b->op;
    return 2 + (op->destination.data && op->destination.data != op->gradient.data) + (op->residual.data != NULL) +
           (op->residual_gradient.data != NULL) + 2 * op->wants_memo;
}

static abn_status run(const abn_machine *machine, abn_backward_operation *b, const abn_batch *dz) {
    const abn_context *context = b->context;
    abn_operation *op = &b->op;
    op->source = context->kept;
    op->gradient = *dz;
    op->residual = context->residual;
    op->mask = context->mask;
    op->wants_memo = is_worth_a_memo(b);
    op->arrays = count_arrays(b);
    op->begin = begin;
    op->sums_use = 1 << ABN_CENTRE | 1 << ABN_SCALE | 1 << ABN_SHIFT;
    if (context->channel_param) op->sums_use |= 1 << ABN_PARAM;
    if (context->keep != ABN_KEEP_Z || context->guard.count > 0) op->sums_use |= 1 << ABN_WEIGHT | 1 << ABN_BIAS;
    op->apply_use = op->sums_use | 1 << ABN_W_FACTOR | 1 << ABN_OFFSET | 1 << ABN_DX_FACTOR;
    b->from = context->keep == ABN_KEEP_Z ? ABN_FROM_Z : ABN_FROM_X;
    abn_status status = abn_operation_open(op, machine, &context->guard);
    if (status != ABN_OK) return status;
    if (op->kernels->of[context->activation].apply && !context->residual.data && context->escapes.count == 0)
        b->kernels = &op->kernels->of[context->activation];
    status = abn_walk(op);
    abn_operation_close(op);
    return status;
}

abn_status abn_backward_reduce(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                               const abn_sums *to) {
    abn_backward_operation b = {.op = {.sums = sums, .finish = finish}, .context = context, .sums = *to};
    return run(machine, &b, dz);
}

/* Caller-supplied sums can hide that a dy or xhat overflows float; true if the sums have to be recomputed to detect it. In
 * evaluation xhat is not bounded, and a slope above 1 may take dy beyond float. (Slopes above y = 0 are ignored: they are
 * 1.5 at most, for hardswish, so dz would have to be in the last third of float's range.) */
static int must_recompute_sums(const abn_context *context, double count) {
    if (count == 0) return 1;
    const abn_slopes slopes = abn_slopes_left_of_zero(context);
    return slopes.highest > 1 || slopes.lowest < -1;
}

abn_status abn_backward_apply(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                              const abn_gradients *to, const abn_sums *given, double count) {
    const int recomputes = must_recompute_sums(context, count);
    abn_backward_operation b = {
        .op = {.destination = to->dx,
               .residual_gradient = to->residual,
               .add_to_residual = to->add_to_residual,
               .sums = recomputes ? sums : NULL,
               .finish = recomputes ? finish : NULL,
               .apply = apply},
        .context = context,
        .sums = {given->dy, given->dy_xhat, NULL},
        .are_given = 1,
        .count = count,
    };
    return run(machine, &b, dz);
}

abn_status abn_backward(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                        const abn_gradients *to, const abn_sums *filled, int training) {
    abn_backward_operation b = {
        .op = {.destination = to->dx,
               .residual_gradient = to->residual,
               .add_to_residual = to->add_to_residual,
               .sums = sums,
               .finish = finish,
               .apply = apply},
        .context = context,
        .sums = *filled,
        .count = training ? (double)abn_valid_positions(dz, &context->mask) : 0,
    };
    return run(machine, &b, dz);
}
