/* dz -> dx and the sums of dy and dy * xhat. One pass computes the sums, one applies them:
 *
 *     w = xhat, or weight * xhat (ABN_SCHEME_II)      dx = (dy + w * w_factor + offset) * dx_factor
 *
 * Cheap activations (ABN_CHEAP) have kernels for whole tiles, some also with a residual. The other batches, and those
 * with escaped elements, are computed segment by segment, in arrays in first-level cache; escaped elements take their
 * saved xhat there. ABN_EXACT channels: backward_exact.c. */
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

/* True if w = weight * xhat, not xhat: with ABN_SCHEME_II, unless the weight is so small or large that dy * w could
 * underflow or overflow where dy * xhat does not. */
static int is_scaled(const abn_backward_operation *b, ptrdiff_t channel) {
    const double size = fabs(b->context->norm.weight[channel]);
    return abn_recovers_xhat(b->context) && b->context->scheme == ABN_SCHEME_II && !abn_is_guarded(b, channel) &&
           size >= 1 && size <= 0x1p20;
}

/* The constants with which kernels compute w and y from the source (kernels.h):
 *
 *     x            w = xhat = (x - centre) * scale + shift    scale = inv_std; as in forward
 *     y or z       w = y * scale + shift                      = (y - bias) / weight, or y - bias if w is scaled
 *     saved xhat   w = xhat                                   scale = 1, shift = 0
 */
static void set_source_constants(abn_backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const double weight = norm->weight[c], bias = norm->bias[c];
    double centre = 0, scale = 1, shift = 0;
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

/* True if the kernels cannot compute xhat from x, or w from z < 0, in float. */
static int source_leaves_range(const abn_backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const abn_dtype dtype = b->op.source.dtype;
    if (b->from == ABN_FROM_Z && b->context->activation == ABN_LEAKY_RELU)
        return !abn_constant_fits(dtype, abn_get_constant(&b->op, ABN_SCALE, c) / b->context->activation_param);
    return b->context->keep == ABN_KEEP_X && !(abn_constant_fits(dtype, norm->inv_std[c]) &&
                                               abn_centre_fits(dtype, norm->mean[c], norm->var[c], b->op.per_channel));
}

/* The constants of dx = (dy + w * w_factor + offset) * dx_factor, from the sums of a channel:
 *
 *     offset = -sum(dy) / count,  w_factor = -sum(dy * xhat) / count for w = xhat,  dx_factor = weight * inv_std
 *
 * Flags the channel ABN_EXACT if float does not suffice. */
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

/* Arrays of reals, one entry per element of a segment. A slope is the derivative of the activation, with respect to
 * y or, for SUM_PARAM, to its parameter. */
typedef struct {
    void *w, *slopes;
} w_and_slopes;

/* What is computed from w and slopes. */
typedef enum {
    SUM_DY,    /* the sums of dy and of dy * w */
    SUM_PARAM, /* the gradient of channel_param: the sum of dz times slopes with respect to the parameter */
    WRITE_DX,  /* dx, and the gradient of the residual */
} goal;

/* Recomputes w and slopes of escaped elements from their saved xhat. With a kept y the slopes are right already. */
static void replace_escaped(const abn_backward_operation *b, const abn_channel_run *run, const abn_segment *segment,
                            goal goal, w_and_slopes result) {
    const abn_context *context = b->context;
    const abn_escapes *escapes = &context->escapes;
    const int64_t end = segment->index + segment->tile.length;
    for (ptrdiff_t e = abn_escapes_from(escapes, segment->index); e < escapes->count && escapes->index[e] < end; e++) {
        const ptrdiff_t i = (ptrdiff_t)(escapes->index[e] - segment->index);
        const ptrdiff_t c = abn_element_of(&b->op, &run->span, segment->row, segment->column + i).channel;
        const double weighted = context->norm.weight[c] * escapes->xhat[e];
        const double y = weighted + context->norm.bias[c] + abn_element_from(&b->op, segment->tile.residual, i);
        abn_set_real(b->op.source.dtype, result.w, i, is_scaled(b, c) ? weighted : escapes->xhat[e]);
        if (context->keep == ABN_KEEP_Y) continue;
        abn_set_real(b->op.source.dtype, result.slopes, i,
                     goal == SUM_PARAM ? abn_below_zero(y)
                                       : abn_activation_derivative(context->activation, abn_param_at(context, c), y));
    }
}

/* w and slopes from z. */
static void recover_from_z(const abn_backward_operation *b, const abn_channel_run *run, const abn_segment *segment,
                           goal goal, abn_workspace *workspace, w_and_slopes result) {
    const abn_context *context = b->context;
    const abn_segment_kernels *kernels = &b->op.kernels->segment;
    const abn_activation_kernels *activations = b->op.set->activations;
    const ptrdiff_t n = segment->tile.length;
    kernels->widen(segment->tile.source.data, n, result.w);
    if (context->branch_mask) abn_branch_mask_get(context->branch_mask, segment->index, workspace->branch_mask, n);
    activations->of[context->activation].invert(
        result.w, result.slopes, n, abn_segment_param(&b->op, context, segment, workspace), workspace->branch_mask);
    if (goal == SUM_PARAM) activations->below_zero(result.w, result.slopes, n);
    kernels->recover(segment->tile.residual.data, n, &segment->constants, result.w);
    if (context->escapes.count > 0) replace_escaped(b, run, segment, goal, result);
}

/* w and slopes from x or xhat. `slopes` first holds y, then the slopes. */
static void recover_from_x(const abn_backward_operation *b, const abn_channel_run *run, const abn_segment *segment,
                           goal goal, abn_workspace *workspace, w_and_slopes result) {
    const abn_input source = run->flags & ABN_GUARDED ? segment->xhat : segment->tile.source;
    const abn_segment_kernels *kernels = &b->op.kernels->segment;
    const abn_activation_kernels *activations = b->op.set->activations;
    const ptrdiff_t n = segment->tile.length;
    kernels->normalize(source.data, n, &segment->constants, result.w);
    kernels->scale(result.w, n, &segment->constants, result.slopes);
    if (segment->tile.residual.data) kernels->add(segment->tile.residual.data, n, result.slopes);
    if (goal == SUM_PARAM)
        activations->below_zero(result.slopes, result.slopes, n);
    else
        activations->of[b->context->activation].slope(result.slopes, result.slopes, n,
                                                      abn_segment_param(&b->op, b->context, segment, workspace));
    if (b->context->escapes.count > 0) replace_escaped(b, run, segment, goal, result);
}

/* The residual of a segment, in the storage type: `residual`, or residual_activation of it, computed in `space`. */
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
static void recover_from_y(const abn_backward_operation *b, const abn_channel_run *run, const abn_segment *segment,
                           goal goal, abn_workspace *workspace, w_and_slopes result) {
    const abn_context *context = b->context;
    const abn_segment_kernels *kernels = &b->op.kernels->segment;
    const abn_activation_kernels *activations = b->op.set->activations;
    const void *y = segment->tile.source.data;
    const ptrdiff_t n = segment->tile.length;
    kernels->widen(run->flags & ABN_GUARDED ? segment->xhat.data : y, n, result.w);
    if (!(run->flags & ABN_GUARDED))
        kernels->recover(residual_of(b, segment, workspace, result.slopes), n, &segment->constants, result.w);
    kernels->widen(y, n, result.slopes);
    if (goal == SUM_PARAM)
        activations->below_zero(result.slopes, result.slopes, n);
    else
        activations->of[context->activation].slope(result.slopes, result.slopes, n,
                                                   abn_segment_param(&b->op, context, segment, workspace));
    if (context->escapes.count > 0) replace_escaped(b, run, segment, goal, result);
}

static w_and_slopes in_scratch(const abn_operation *op, abn_output scratch) {
    return (w_and_slopes){scratch.data,
                          (char *)scratch.data + op->scratch_offset * (ptrdiff_t)abn_real_size(op->source.dtype)};
}

/* Computes w and slopes of each segment, and from them the goal; sums are added to `partial`. */
static void for_each_segment(const abn_backward_operation *b, const abn_channel_run *run, goal goal, void *partial) {
    const abn_operation *op = &b->op;
    const abn_segment_kernels *kernels = &op->kernels->segment;
    abn_workspace workspace;
    for (abn_segment segment = {0}; abn_next_segment(op, run, &segment);) {
        const abn_tile *tile = &segment.tile;
        if (goal != WRITE_DX) abn_prefetch_next_segment(op, run, &segment);
        const int has_scratch = tile->scratch.data && goal != SUM_PARAM;
        const w_and_slopes values =
            has_scratch ? in_scratch(op, tile->scratch) : (w_and_slopes){workspace.y, workspace.slope};
        if (goal == WRITE_DX && has_scratch)
            ; /* sum_tile left w and slopes in scratch */
        else if (b->from == ABN_FROM_Y)
            recover_from_y(b, run, &segment, goal, &workspace, values);
        else if (run->flags & ABN_GUARDED || b->from == ABN_FROM_X)
            recover_from_x(b, run, &segment, goal, &workspace, values);
        else
            recover_from_z(b, run, &segment, goal, &workspace, values);
        if (goal == WRITE_DX)
            kernels->gradient(values.w, values.slopes, tile, &segment.constants);
        else
            kernels->sums(values.w, values.slopes, tile, abn_partial_at(op, partial, segment.partial_offset));
    }
}

/* ---- the steps ----------------------------------------------------------------------------------------- */

/* first: sums of dy, second: sums of dy * w. Computes the results, and the constants for write_tile. Sums beyond the
 * range of float are computed again in double. Returns nonzero if the gradient of channel_param is still to be summed;
 * the second time `first` holds that. */
static int finish_sums(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first,
                       const double *second, int resumming) {
    abn_backward_operation *b = (abn_backward_operation *)op;
    for (ptrdiff_t i = 0; i < channels; i++) {
        const ptrdiff_t c = channel + i;
        const int can_be_finite = isfinite(b->context->norm.inv_std[c]); /* otherwise double does not help either */
        const int has_sums = isfinite(first[i]) && isfinite(second[i]) && !source_leaves_range(b, c);
        const int exact = can_be_finite && !has_sums;
        abn_exact_sums sums = {first[i], is_scaled(b, c) ? second[i] / b->context->norm.weight[c] : second[i],
                               first[i]};
        if (exact && !b->sums_are_given) sums = abn_backward_exact_sums(b, c);
        if (resumming) {
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

/* Computes the goal channel run by channel run; sums are added to `partial`. The source of guarded channels is their
 * saved xhat. */
static void for_each_run(const abn_backward_operation *b, const abn_tile *tile, const abn_span *span,
                         const abn_constants *constants, goal goal, void *partial) {
    const abn_operation *op = &b->op;
    for (abn_channel_run run = {0}; abn_next_channel_run(op, &b->context->guard, tile, span, constants, &run);) {
        const int guarded = run.flags & ABN_GUARDED, from = guarded && b->from == ABN_FROM_Z ? ABN_FROM_X : b->from;
        run.constants.param = b->context->activation_param;
        run.constants.training = b->count > 0;
        /* The identity, relu and relu6 of the residual are clamps; the others have no kernel for whole tiles. */
        run.constants.residual_low = b->context->residual_activation == ABN_IDENTITY ? -INFINITY : 0;
        run.constants.residual_high = b->context->residual_activation == ABN_RELU6 ? 6 : INFINITY;
        run.constants.add_to_residual = op->add_to_residual;
        if (goal == WRITE_DX && run.flags & ABN_EXACT) {
            abn_backward_exact_apply(b, &run);
            continue;
        }
        const int guarded_by_segment = guarded && (b->from == ABN_FROM_Y || tile->residual.data);
        if (!b->kernels || guarded_by_segment || run.flags & ABN_ESCAPED) {
            for_each_segment(b, &run, goal, partial);
            continue;
        }
        if (guarded) run.tile.source = run.xhat;
        if (goal == WRITE_DX)
            b->kernels->gradient_apply[from](&run.tile, &run.constants);
        else
            b->kernels->gradient_sums[from](&run.tile, &run.constants, abn_partial_at(op, partial, run.offset));
    }
}

static void sum_tile(const abn_operation *op, const abn_tile *tile, const abn_span *span,
                     const abn_constants *constants, void *partial, int resumming) {
    for_each_run((const abn_backward_operation *)op, tile, span, constants, resumming ? SUM_PARAM : SUM_DY, partial);
}

static void write_tile(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                       int thread) {
    (void)thread;
    for_each_run((const abn_backward_operation *)op, tile, span, constants, WRITE_DX, NULL);
}

/* True if sum_tile should leave w and the slopes in scratch for write_tile: computing them twice would cost more than
 * storing and loading them. */
static int wants_scratch(const abn_backward_operation *b) {
    const int cheap = abn_activation_table[b->context->activation].traits & ABN_CHEAP;
    const abn_dtype dtype = b->context->kept.dtype;
    return !cheap && b->op.sums && b->op.apply && abn_real_size(dtype) == abn_dtype_size(dtype);
}

/* The number of arrays of the batch's size that pass through the cache: what forward kept, dz, and others if used. */
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
    const int takes_residual = b->from == ABN_FROM_Y ? clamps : b->from == ABN_FROM_Z;
    if (context->residual.data && !takes_residual) return 0;
    return b->op.kernels->of[context->activation].gradient_sums[b->from] != NULL;
}

/* Sets ABN_ESCAPED for channels with escaped elements. Channels-last, for all: runs of a few columns are slow. */
static void mark_escaped_channels(const abn_backward_operation *b) {
    const abn_operation *op = &b->op;
    const abn_escapes *escapes = &b->context->escapes;
    const int all = op->layout == ABN_COLUMNS && op->positions_per_channel == 1;
    const ptrdiff_t channels = op->source.channels;
    for (ptrdiff_t e = 0; e < (all ? 0 : escapes->count); e++)
        op->channel_flags[escapes->index[e] / op->positions % channels] |= ABN_ESCAPED;
    for (ptrdiff_t c = 0; all && escapes->count > 0 && c < channels; c++) op->channel_flags[c] |= ABN_ESCAPED;
}

static abn_status run_backward(const abn_machine *machine, abn_backward_operation *b, const abn_batch *dz) {
    const abn_context *context = b->context;
    abn_operation *op = &b->op;
    op->source = context->kept;
    op->gradient = *dz;
    op->residual = context->residual;
    op->mask = context->mask;
    op->wants_scratch = wants_scratch(b);
    op->arrays = count_arrays(b);
    op->begin = begin;
    op->sums_constants = 1 << ABN_CENTRE | 1 << ABN_SCALE | 1 << ABN_SHIFT;
    if (context->channel_param) op->sums_constants |= 1 << ABN_PARAM;
    if (!abn_recovers_xhat(context) || context->guard.count > 0) op->sums_constants |= 1 << ABN_WEIGHT | 1 << ABN_BIAS;
    op->apply_constants = op->sums_constants | 1 << ABN_W_FACTOR | 1 << ABN_OFFSET | 1 << ABN_DX_FACTOR;
    b->from = context->keep == ABN_KEEP_Z ? ABN_FROM_Z : context->keep == ABN_KEEP_Y ? ABN_FROM_Y : ABN_FROM_X;
    abn_status status = abn_walk_open(op, machine, &context->guard);
    if (status != ABN_OK) return status;
    if (has_tile_kernels(b)) {
        b->kernels = &op->kernels->of[context->activation];
        mark_escaped_channels(b);
    }
    status = abn_walk(op);
    abn_walk_close(op);
    return status;
}

abn_status abn_backward_reduce(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                               const abn_sums *sums) {
    abn_backward_operation b = {.op = {.sums = sum_tile, .finish = finish_sums}, .context = context, .sums = *sums};
    return run_backward(machine, &b, dz);
}

abn_status abn_backward_apply(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                              const abn_gradients *to, const abn_sums *sums, double count) {
    const int recomputes = abn_sums_may_hide_overflow(context, count);
    abn_backward_operation b = {
        .op = {.destination = to->dx,
               .residual_gradient = to->residual,
               .add_to_residual = to->add_to_residual,
               .sums = recomputes ? sum_tile : NULL,
               .finish = recomputes ? finish_sums : NULL,
               .apply = write_tile},
        .context = context,
        .sums = {sums->dy, sums->dy_xhat, NULL},
        .sums_are_given = 1,
        .count = count,
    };
    return run_backward(machine, &b, dz);
}

abn_status abn_backward(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                        const abn_gradients *to, const abn_sums *sums, int training) {
    abn_backward_operation b = {
        .op = {.destination = to->dx,
               .residual_gradient = to->residual,
               .add_to_residual = to->add_to_residual,
               .sums = sum_tile,
               .finish = finish_sums,
               .apply = write_tile},
        .context = context,
        .sums = *sums,
        .count = training ? (double)abn_valid_positions(dz, &context->mask) : 0,
    };
    return run_backward(machine, &b, dz);
}
