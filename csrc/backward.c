/* dz -> dx and the sums of dy and dy * xhat. One pass computes the sums, one applies them:
 *
 *     w = xhat, or weight * xhat (ABN_SCHEME_II)      dx = (dy + w * w_factor + offset) * dx_factor
 *
 * Cheap activations (ABN_CHEAP) have kernels for whole tiles. Other activations, and batches with a residual or escaped
 * elements, are computed segment by segment, in arrays in first-level cache; escaped elements take their saved xhat
 * there. ABN_EXACT channels: backward_exact.c. */
#include <math.h>
#include <stdint.h>

#include "activations.h"
#include "backward_exact.h"
#include "branch_mask.h"
#include "element.h"
#include "escapes.h"
#include "float_range.h"
#include "guard.h"
#include "valid.h"
#include "walk.h"

/* True if w = weight * xhat, not xhat: with ABN_SCHEME_II, for weights that keep dy * w within the range of float. */
static int is_scaled(const abn_backward_operation *b, ptrdiff_t channel) {
    const double size = fabs(b->context->norm.weight[channel]);
    return abn_recovers_xhat(b->context) && b->context->scheme == ABN_SCHEME_II && !abn_is_guarded(b, channel) &&
           size >= 1 && size <= 0x1p20;
}

static void set_source_constants(abn_backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const double weight = norm->weight[c], bias = norm->bias[c];
    double centre = 0, scale = 1, shift = 0; /* w = (x - centre) * scale + shift, or w = y * scale + shift */
    if (b->context->keep == ABN_KEEP_X) {
        centre = abn_round_to_real(b->op.source.dtype, norm->mean[c]);
        scale = norm->inv_std[c];
        shift = isfinite(centre) ? (centre - norm->mean[c]) * scale : 0;
    } else if (abn_recovers_xhat(b->context) && !abn_is_guarded(b, c)) {
        scale = is_scaled(b, c) ? 1 : 1 / weight;
        shift = is_scaled(b, c) ? -bias : -bias / weight;
    }
    abn_set_constant(&b->op, ABN_CENTRE, c, centre);
    abn_set_constant(&b->op, ABN_SCALE, c, scale);
    abn_set_constant(&b->op, ABN_SHIFT, c, shift);
    abn_set_constant(&b->op, ABN_WEIGHT, c, weight);
    abn_set_constant(&b->op, ABN_BIAS, c, bias);
}

/* True if the kernels cannot compute xhat from x in float. */
static int source_leaves_range(const abn_backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const abn_dtype dtype = b->op.source.dtype;
    return b->context->keep == ABN_KEEP_X && !(abn_constant_fits(dtype, norm->inv_std[c]) &&
                                               abn_centre_fits(dtype, norm->mean[c], norm->var[c], b->op.per_channel));
}

static void set_result_constants(abn_backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const abn_dtype dtype = b->op.source.dtype;
    const double factor = norm->weight[c] * norm->inv_std[c], per_element = b->count > 0 ? -1 / b->count : 0;
    const double xhat_factor = b->count > 0 ? b->sums.dy_xhat[c] * per_element : 0;
    const double w_factor = is_scaled(b, c) ? xhat_factor / norm->weight[c] : xhat_factor;
    const double offset = b->count > 0 ? b->sums.dy[c] * per_element : 0;
    const double xhat_sum = b->context->keep == ABN_KEEP_X ? b->sums.dy_xhat[c] : 0;
    const int sums_fit = !b->sums_are_given || abn_given_sums_fit(dtype, b->sums.dy[c], xhat_sum);
    abn_set_constant(&b->op, ABN_W_FACTOR, c, w_factor);
    abn_set_constant(&b->op, ABN_OFFSET, c, offset);
    abn_set_constant(&b->op, ABN_DX_FACTOR, c, factor);
    if (!sums_fit || !abn_correction_fits(dtype, xhat_factor, offset, b->count) || !abn_constant_fits(dtype, factor) ||
        !abn_constant_fits(dtype, w_factor) || !abn_constant_fits(dtype, offset) || source_leaves_range(b, c))
        b->op.channel_flags[c] |= ABN_EXACT;
}

static void begin(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    abn_backward_operation *b = (abn_backward_operation *)op;
    for (ptrdiff_t c = channel; c < channel + channels; c++) {
        set_source_constants(b, c);
        if (b->context->channel_param) abn_set_constant(op, ABN_PARAM, c, b->context->channel_param[c]);
        if (!op->sums) set_result_constants(b, c);
    }
}

/* ---- segment by segment ------------------------------------------------------------------------------------- */

/* Arrays of w and activation'(y), one entry per element of a segment. */
typedef struct {
    void *w, *slopes;
} recovered;

enum { SLOPE_BY_Y, SLOPE_BY_PARAM }; /* derivative with respect to y, or to the parameter */

/* Recomputes w and slopes of escaped elements from their saved xhat. A kept y has the slope of every element. */
static void put_escapes(const abn_backward_operation *b, const abn_channel_run *run, const abn_segment *segment,
                        int slope, recovered to) {
    const abn_context *context = b->context;
    const abn_escapes *escapes = &context->escapes;
    const int64_t end = segment->index + segment->tile.length;
    for (ptrdiff_t e = abn_escapes_from(escapes, segment->index); e < escapes->count && escapes->index[e] < end; e++) {
        const ptrdiff_t i = (ptrdiff_t)(escapes->index[e] - segment->index);
        const ptrdiff_t c = abn_element_of(&b->op, &run->span, segment->row, segment->column + i).channel;
        const double normal = context->norm.weight[c] * escapes->xhat[e];
        const double y = normal + context->norm.bias[c] + abn_element_from(&b->op, segment->tile.residual, i);
        abn_set_real(b->op.source.dtype, to.w, i, is_scaled(b, c) ? normal : escapes->xhat[e]);
        if (context->keep == ABN_KEEP_Y) continue;
        abn_set_real(b->op.source.dtype, to.slopes, i,
                     slope == SLOPE_BY_PARAM
                         ? abn_below_zero(y)
                         : abn_activation_derivative(context->activation, abn_param_at(context, c), y));
    }
}

/* w and slopes from z. */
static void from_z(const abn_backward_operation *b, const abn_channel_run *run, const abn_segment *segment, int slope,
                   abn_workspace *workspace, recovered to) {
    const abn_context *context = b->context;
    const abn_segment_kernels *kernels = &b->op.kernels->segment;
    const abn_activation_kernels *activations = b->op.set->activations;
    const ptrdiff_t n = segment->tile.length;
    kernels->widen(segment->tile.source.data, n, to.w);
    if (context->branch_mask) abn_branch_mask_get(context->branch_mask, segment->index, workspace->branch_mask, n);
    activations->of[context->activation].invert(
        to.w, to.slopes, n, abn_segment_param(&b->op, context, segment, workspace), workspace->branch_mask);
    if (slope == SLOPE_BY_PARAM) activations->below_zero(to.w, to.slopes, n);
    kernels->recover(segment->tile.residual.data, n, &segment->constants, to.w);
    if (context->escapes.count > 0) put_escapes(b, run, segment, slope, to);
}

/* w and slopes from x or xhat. `slopes` first holds y, then the slopes. */
static void from_x(const abn_backward_operation *b, const abn_channel_run *run, const abn_segment *segment, int slope,
                   abn_workspace *workspace, recovered to) {
    const abn_input source = run->flags & ABN_GUARDED ? segment->xhat : segment->tile.source;
    const abn_segment_kernels *kernels = &b->op.kernels->segment;
    const abn_activation_kernels *activations = b->op.set->activations;
    const ptrdiff_t n = segment->tile.length;
    kernels->normalize(source.data, n, &segment->constants, to.w);
    kernels->scale(to.w, n, &segment->constants, to.slopes);
    if (segment->tile.residual.data) kernels->add(segment->tile.residual.data, n, to.slopes);
    if (slope == SLOPE_BY_PARAM)
        activations->below_zero(to.slopes, to.slopes, n);
    else
        activations->of[b->context->activation].slope(to.slopes, to.slopes, n,
                                                      abn_segment_param(&b->op, b->context, segment, workspace));
    if (b->context->escapes.count > 0) put_escapes(b, run, segment, slope, to);
}

/* The residual of a segment, in the storage type: as it is given, or its activation, written to `space`. */
static const void *residual_of(const abn_backward_operation *b, const abn_segment *segment, abn_workspace *workspace,
                               void *space) {
    const abn_context *context = b->context;
    const abn_segment_kernels *kernels = &b->op.kernels->segment;
    const void *residual = segment->tile.residual.data;
    const ptrdiff_t n = segment->tile.length;
    if (!residual || context->residual_activation == ABN_IDENTITY) return residual;
    abn_set_real(b->op.source.dtype, workspace->param, 0, context->residual_param);
    kernels->widen(residual, n, space);
    b->op.set->activations->of[context->residual_activation].value(space, space, n, workspace->param);
    kernels->narrow(space, n, space);
    return space;
}

/* w and slopes from y. `slopes` first holds the residual, then y, then the slopes. */
static void from_y(const abn_backward_operation *b, const abn_channel_run *run, const abn_segment *segment, int slope,
                   abn_workspace *workspace, recovered to) {
    const abn_context *context = b->context;
    const abn_segment_kernels *kernels = &b->op.kernels->segment;
    const abn_activation_kernels *activations = b->op.set->activations;
    const void *y = segment->tile.source.data;
    const ptrdiff_t n = segment->tile.length;
    kernels->widen(run->flags & ABN_GUARDED ? segment->xhat.data : y, n, to.w);
    if (!(run->flags & ABN_GUARDED))
        kernels->recover(residual_of(b, segment, workspace, to.slopes), n, &segment->constants, to.w);
    kernels->widen(y, n, to.slopes);
    if (slope == SLOPE_BY_PARAM)
        activations->below_zero(to.slopes, to.slopes, n);
    else
        activations->of[context->activation].slope(to.slopes, to.slopes, n,
                                                   abn_segment_param(&b->op, context, segment, workspace));
    if (context->escapes.count > 0) put_escapes(b, run, segment, slope, to);
}

static recovered in_scratch(const abn_operation *op, abn_output scratch) {
    return (recovered){scratch.data,
                       (char *)scratch.data + op->scratch_offset * (ptrdiff_t)abn_real_size(op->source.dtype)};
}

/* Computes w and slopes of each segment, and from them the sums, added to `partial`, or, if that is NULL, dx. */
static void for_each_segment(const abn_backward_operation *b, const abn_channel_run *run, void *partial, int slope) {
    const abn_operation *op = &b->op;
    const abn_segment_kernels *kernels = &op->kernels->segment;
    abn_workspace workspace;
    for (abn_segment segment = {0}; abn_next_segment(op, run, &segment);) {
        const abn_tile *tile = &segment.tile;
        const int has_scratch = tile->scratch.data && slope == SLOPE_BY_Y;
        const recovered at = has_scratch ? in_scratch(op, tile->scratch) : (recovered){workspace.y, workspace.slope};
        if (!partial && has_scratch)
            ; /* the step sums left w and slopes in scratch */
        else if (b->from == ABN_FROM_Y)
            from_y(b, run, &segment, slope, &workspace, at);
        else if (run->flags & ABN_GUARDED || b->from == ABN_FROM_X)
            from_x(b, run, &segment, slope, &workspace, at);
        else
            from_z(b, run, &segment, slope, &workspace, at);
        if (partial)
            kernels->sums(at.w, at.slopes, tile->gradient.data, tile->length,
                          abn_partial_at(op, partial, segment.partial_offset));
        else
            kernels->gradient(at.w, at.slopes, tile->gradient.data, tile->length, &segment.constants,
                              tile->destination.data, tile->residual_gradient.data, op->add_to_residual);
    }
}

/* ---- the steps ----------------------------------------------------------------------------------------- */

static int finish(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first, const double *second,
                  int resumming) {
    abn_backward_operation *b = (abn_backward_operation *)op;
    for (ptrdiff_t i = 0; i < channels; i++) {
        const ptrdiff_t c = channel + i;
        const int can_be_finite = isfinite(b->context->norm.inv_std[c]); /* otherwise double does not help either */
        const int exact = can_be_finite && !(isfinite(first[i]) && isfinite(second[i]));
        abn_exact_sums sums = {first[i], is_scaled(b, c) ? second[i] / b->context->norm.weight[c] : second[i],
                               first[i]};
        if (exact && !b->sums_are_given) sums = abn_backward_exact_sums(b, c);
        if (resumming) { /* these sums are of SLOPE_BY_PARAM: only the gradient of channel_param is new */
            b->sums.param[c] = sums.param;
            continue;
        }
        if (exact) op->channel_flags[c] |= ABN_EXACT;
        if (!b->sums_are_given) {
            b->sums.dy[c] = sums.dy;
            b->sums.dy_xhat[c] = sums.dy_xhat;
        }
        if (op->apply) set_result_constants(b, c);
    }
    return b->sums.param != NULL && !resumming;
}

/* Channel run by channel run: adds to the sums in `partial` or, if that is NULL, computes dx. The source of guarded
 * channels is their saved xhat. */
static void for_each_run(const abn_backward_operation *b, const abn_tile *tile, const abn_span *span,
                         const abn_constants *constants, void *partial, int slope) {
    const abn_operation *op = &b->op;
    for (abn_channel_run run = {0}; abn_next_channel_run(op, &b->context->guard, tile, span, constants, &run);) {
        const int guarded = run.flags & ABN_GUARDED, from = guarded && b->from == ABN_FROM_Z ? ABN_FROM_X : b->from;
        run.constants.param = b->context->activation_param;
        run.constants.training = b->count > 0;
        run.constants.residual_low = b->context->residual_activation == ABN_IDENTITY ? -INFINITY : 0;
        run.constants.residual_high = b->context->residual_activation == ABN_RELU6 ? 6 : INFINITY;
        run.constants.add_to_residual = op->add_to_residual;
        if (!partial && run.flags & ABN_EXACT) {
            abn_backward_exact_apply(b, &run);
            continue;
        }
        if (!b->kernels || (guarded && b->from == ABN_FROM_Y)) {
            for_each_segment(b, &run, partial, slope);
            continue;
        }
        if (guarded) run.tile.source = run.xhat;
        if (partial)
            b->kernels->gradient_sums[from](&run.tile, &run.constants, abn_partial_at(op, partial, run.offset));
        else
            b->kernels->gradient_apply[from](&run.tile, &run.constants);
    }
}

static void sums(const abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                 void *partial, int resumming) {
    for_each_run((const abn_backward_operation *)op, tile, span, constants, partial,
                 resumming ? SLOPE_BY_PARAM : SLOPE_BY_Y);
}

static void apply(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                  int thread) {
    (void)thread;
    for_each_run((const abn_backward_operation *)op, tile, span, constants, NULL, SLOPE_BY_Y);
}

/* True if computing w and the slopes twice, in sums and in apply, costs more than storing and reloading them. */
static int is_worth_scratch(const abn_backward_operation *b) {
    const int cheap = abn_activation_table[b->context->activation].traits & ABN_CHEAP;
    const abn_dtype dtype = b->context->kept.dtype;
    return !cheap && b->op.sums && b->op.apply && abn_real_size(dtype) == abn_dtype_size(dtype);
}

/* The number of arrays of the batch's size that pass through the cache. */
static int count_arrays(const abn_backward_operation *b) {
    const abn_operation *op = &b->op;
    return 2 + (op->destination.data && op->destination.data != op->gradient.data) + (op->residual.data != NULL) +
           (op->residual_gradient.data != NULL) + 2 * op->wants_scratch;
}

/* True if kernels of whole tiles can compute the backward. */
static int has_tile_kernels(const abn_backward_operation *b) {
    const abn_context *context = b->context;
    const abn_activation of_residual = context->residual_activation;
    const int clamps = of_residual == ABN_IDENTITY || of_residual == ABN_RELU || of_residual == ABN_RELU6;
    const int takes_residual = b->from == ABN_FROM_Y && clamps;
    if (context->escapes.count > 0 || (context->residual.data && !takes_residual)) return 0;
    return b->op.kernels->of[context->activation].gradient_sums[b->from] != NULL;
}

static abn_status run(const abn_machine *machine, abn_backward_operation *b, const abn_batch *dz) {
    const abn_context *context = b->context;
    abn_operation *op = &b->op;
    op->source = context->kept;
    op->gradient = *dz;
    op->residual = context->residual;
    op->mask = context->mask;
    op->wants_scratch = is_worth_scratch(b);
    op->arrays = count_arrays(b);
    op->begin = begin;
    op->sums_constants = 1 << ABN_CENTRE | 1 << ABN_SCALE | 1 << ABN_SHIFT;
    if (context->channel_param) op->sums_constants |= 1 << ABN_PARAM;
    if (!abn_recovers_xhat(context) || context->guard.count > 0) op->sums_constants |= 1 << ABN_WEIGHT | 1 << ABN_BIAS;
    op->apply_constants = op->sums_constants | 1 << ABN_W_FACTOR | 1 << ABN_OFFSET | 1 << ABN_DX_FACTOR;
    b->from = context->keep == ABN_KEEP_Z ? ABN_FROM_Z : context->keep == ABN_KEEP_Y ? ABN_FROM_Y : ABN_FROM_X;
    abn_status status = abn_walk_open(op, machine, &context->guard);
    if (status != ABN_OK) return status;
    if (has_tile_kernels(b)) b->kernels = &op->kernels->of[context->activation];
    status = abn_walk(op);
    abn_walk_close(op);
    return status;
}

abn_status abn_backward_reduce(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                               const abn_sums *to) {
    abn_backward_operation b = {.op = {.sums = sums, .finish = finish}, .context = context, .sums = *to};
    return run(machine, &b, dz);
}

abn_status abn_backward_apply(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                              const abn_gradients *to, const abn_sums *given, double count) {
    const int recomputes = abn_sums_may_hide_overflow(context, count);
    abn_backward_operation b = {
        .op = {.destination = to->dx,
               .residual_gradient = to->residual,
               .add_to_residual = to->add_to_residual,
               .sums = recomputes ? sums : NULL,
               .finish = recomputes ? finish : NULL,
               .apply = apply},
        .context = context,
        .sums = {given->dy, given->dy_xhat, NULL},
        .sums_are_given = 1,
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
