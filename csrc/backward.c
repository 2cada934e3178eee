/* dz -> dx and the two sums. One pass for the sums, one that applies them, whatever was kept:
 *
 *     w = xhat, or weight * xhat (ABN_SCHEME_II)      dx = dy * dy_factor + w * w_factor + offset
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "abn.h"
#include "activations.h"
#include "parts.h"

typedef struct {
    abn_operation op; /* first: the steps cast back */
    const abn_context *context;
    const abn_activation_kernels *kernels;
    int from;
    double escape_below;
    double *sum_dy, *sum_dy_xhat; /* given, or filled by the sums */
    double count;                 /* elements behind the sums; 0: evaluation mode */
    double *escaped_dz;           /* dz of the escaped elements: dx may be written over it */
} backward_operation;

static int is_guarded(const backward_operation *b, ptrdiff_t channel) {
    return b->context->guard.count > 0 && b->context->guard.slot[channel] >= 0;
}

/* w = weight * xhat rather than xhat? Not with weights that could take dy * w out of float's range. */
static int is_scaled(const backward_operation *b, ptrdiff_t channel) {
    const double size = fabs(b->context->norm.weight[channel]);
    return b->context->keep == ABN_KEEP_Z && b->context->scheme == ABN_SCHEME_II && !is_guarded(b, channel) &&
           size >= 0x1p-20 && size <= 0x1p20;
}

static void set_source_constants(backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const double weight = norm->weight[c], bias = norm->bias[c];
    double centre = 0, scale = 1, shift = 0;
    if (b->context->keep == ABN_KEEP_X) {
        centre = abn_round_to_real(b->op.source.dtype, norm->mean[c]);
        scale = norm->inv_std[c];
        shift = isfinite(centre) ? (centre - norm->mean[c]) * scale : 0;
    } else if (b->context->keep == ABN_KEEP_Z && !is_guarded(b, c)) {
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
static int source_is_exact(const backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const abn_dtype dtype = b->op.source.dtype;
    return b->context->keep == ABN_KEEP_X && !(abn_constant_fits(dtype, norm->inv_std[c]) &&
                                               abn_centre_fits(dtype, norm->mean[c], norm->var[c], b->op.per_channel));
}

static void set_result_constants(backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const double factor = norm->weight[c] * norm->inv_std[c], per_element = b->count > 0 ? 1 / b->count : 0;
    const double w_factor = (is_scaled(b, c) ? norm->inv_std[c] : factor) * b->sum_dy_xhat[c] * per_element;
    const double offset = b->count > 0 ? -factor * b->sum_dy[c] * per_element : 0;
    const abn_dtype dtype = b->op.source.dtype;
    abn_set_constant(&b->op, ABN_DY_FACTOR, c, factor);
    abn_set_constant(&b->op, ABN_W_FACTOR, c, b->count > 0 ? -w_factor : 0);
    abn_set_constant(&b->op, ABN_OFFSET, c, offset);
    if (!abn_constant_fits(dtype, factor) || (isfinite(w_factor) && fabs(w_factor) > FLT_MAX) ||
        (isfinite(offset) && fabs(offset) > FLT_MAX) || source_is_exact(b, c))
        b->op.kinds[c] |= ABN_EXACT;
}

static char *element_at(const abn_batch *batch, ptrdiff_t channel, int64_t position) {
    return abn_address(batch, (ptrdiff_t)(position / batch->spatial), channel, (ptrdiff_t)(position % batch->spatial));
}

static double escaped_dy(const backward_operation *b, ptrdiff_t channel, ptrdiff_t e) {
    const abn_context *context = b->context;
    const double y = context->norm.weight[channel] * context->escapes.xhat[e] + context->norm.bias[channel];
    return b->escaped_dz[e] * abn_activation_derivative(context->activation, context->activation_param, y);
}

static void begin(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    backward_operation *b = (backward_operation *)op;
    const abn_escapes *escapes = &b->context->escapes;
    for (ptrdiff_t c = channel; c < channel + channels; c++) {
        set_source_constants(b, c);
        if (!op->sums) set_result_constants(b, c);
        if (!escapes->count) continue;
        for (ptrdiff_t e = escapes->first[c]; e < escapes->first[c + 1]; e++)
            b->escaped_dz[e] = abn_load_element(op->gradient.dtype, element_at(&op->gradient, c, escapes->position[e]));
    }
}

/* ---- element by element, in double --------------------------------------------------------------------- */

typedef struct {
    double dy, xhat;
} exact_pair;

static double exact_result(const backward_operation *b, ptrdiff_t channel, exact_pair pair) {
    const abn_norm *norm = &b->context->norm;
    double dx = pair.dy;
    if (b->count > 0) dx -= (b->sum_dy[channel] + pair.xhat * b->sum_dy_xhat[channel]) / b->count;
    return dx * norm->weight[channel] * norm->inv_std[channel];
}

static exact_pair exact_element(const backward_operation *b, ptrdiff_t channel, double kept, double dz) {
    const abn_context *context = b->context;
    const abn_norm *norm = &context->norm;
    const double weight = norm->weight[channel], bias = norm->bias[channel], param = context->activation_param;
    double y, xhat = kept;
    if (context->keep == ABN_KEEP_Z && !is_guarded(b, channel)) {
        y = abn_activation_inverse(context->activation, param, kept);
        xhat = (y - bias) / weight;
    } else {
        if (context->keep == ABN_KEEP_X) xhat = (kept - norm->mean[channel]) * norm->inv_std[channel];
        y = weight * xhat + bias;
    }
    return (exact_pair){dz * abn_activation_derivative(context->activation, param, y), xhat};
}

/* The sums of a channel whose sums left the range of float (or that is not finite), without escaped elements. */
static exact_pair exact_sums(const backward_operation *b, ptrdiff_t channel) {
    const abn_operation *op = &b->op;
    const abn_batch *kept = &op->source, *dz = &op->gradient;
    const abn_escapes *escapes = &b->context->escapes;
    ptrdiff_t e = escapes->count ? escapes->first[channel] : 0;
    const ptrdiff_t last = escapes->count ? escapes->first[channel + 1] : 0;
    exact_pair sums = {0, 0};
    for (ptrdiff_t position = 0; position < op->per_channel; position++) {
        if (e < last && escapes->position[e] == position) {
            e++;
            continue;
        }
        const abn_element at = {channel, position};
        const void *source =
            is_guarded(b, channel) ? abn_guarded_at(op, &b->context->guard, at) : element_at(kept, channel, position);
        const exact_pair pair = exact_element(b, channel, abn_load_element(kept->dtype, source),
                                              abn_load_element(dz->dtype, element_at(dz, channel, position)));
        sums.dy += pair.dy;
        sums.xhat += pair.dy * pair.xhat;
    }
    return sums;
}

static void exact_gradient(const backward_operation *b, const abn_part *part) {
    const abn_operation *op = &b->op;
    const abn_dtype dtype = op->source.dtype;
    const abn_input source = part->kind & ABN_GUARDED ? part->xhat : part->tile.source, dz = part->tile.gradient;
    for (ptrdiff_t row = 0; row < part->tile.rows; row++) {
        for (ptrdiff_t column = 0; column < part->tile.length; column++) {
            const ptrdiff_t c = abn_element_of(op, &part->span, row, column).channel;
            const exact_pair pair =
                exact_element(b, c, abn_load_element(dtype, abn_at(op, source.data, source.stride, row, column)),
                              abn_load_element(dtype, abn_at(op, dz.data, dz.stride, row, column)));
            abn_store_element(dtype, abn_at(op, part->tile.destination, part->tile.destination_stride, row, column),
                              exact_result(b, c, pair));
        }
    }
}

/* ---- the steps ----------------------------------------------------------------------------------------- */

/* The kernels have left the escaped elements out of the sums. */
static int finish(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first, const double *second,
                  int again) {
    backward_operation *b = (backward_operation *)op;
    const abn_escapes *escapes = &b->context->escapes;
    (void)again;
    for (ptrdiff_t i = 0; i < channels; i++) {
        const ptrdiff_t c = channel + i;
        double sum_dy = first[i], sum_dy_xhat = is_scaled(b, c) ? second[i] / b->context->norm.weight[c] : second[i];
        const int was_finite = isfinite(b->context->norm.inv_std[c]); /* else there is nothing to be rescued */
        if (was_finite && (!isfinite(first[i]) || !isfinite(second[i]))) {
            const exact_pair exact = exact_sums(b, c);
            sum_dy = exact.dy;
            sum_dy_xhat = exact.xhat;
            op->kinds[c] |= ABN_EXACT;
        }
        for (ptrdiff_t e = escapes->count ? escapes->first[c] : 0; escapes->count && e < escapes->first[c + 1]; e++) {
            const double dy = escaped_dy(b, c, e);
            sum_dy += dy;
            sum_dy_xhat += dy * escapes->xhat[e];
        }
        b->sum_dy[c] = sum_dy;
        b->sum_dy_xhat[c] = sum_dy_xhat;
        if (op->apply) set_result_constants(b, c);
    }
    return 0;
}

static void end(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    const backward_operation *b = (const backward_operation *)op;
    const abn_escapes *escapes = &b->context->escapes;
    for (ptrdiff_t c = channel; c < channel + channels; c++) {
        for (ptrdiff_t e = escapes->first[c]; e < escapes->first[c + 1]; e++) {
            const exact_pair pair = {escaped_dy(b, c, e), escapes->xhat[e]};
            abn_store_element(op->destination.dtype, element_at(&op->destination, c, escapes->position[e]),
                              exact_result(b, c, pair));
        }
    }
}

/* Sums (with partial) or dx of each part, with xhat for a source where channels are guarded. */
static void for_each_part(const backward_operation *b, const abn_tile *tile, const abn_span *span,
                          const abn_constants *constants, void *partial) {
    const abn_operation *op = &b->op;
    const ptrdiff_t sum_bytes =
        op->layout == ABN_ROWS ? 2 * ABN_LANE_BYTES : (ptrdiff_t)abn_real_size(op->source.dtype);
    for (abn_part part = {0}; abn_next_part(op, &b->context->guard, tile, span, constants, &part);) {
        const int guarded = part.kind & ABN_GUARDED, from = guarded ? ABN_FROM_X : b->from;
        if (!partial && part.kind & ABN_EXACT) {
            exact_gradient(b, &part);
            continue;
        }
        part.constants.param = b->context->activation_param;
        part.constants.escape_below = b->escape_below;
        if (guarded) part.tile.source = part.xhat;
        if (partial)
            b->kernels->gradient_sums[from](&part.tile, &part.constants, (char *)partial + part.offset * sum_bytes);
        else
            b->kernels->gradient_apply[from](&part.tile, &part.constants);
    }
}

static void sums(const abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                 void *partial) {
    for_each_part((const backward_operation *)op, tile, span, constants, partial);
}

static void apply(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                  int thread) {
    (void)thread;
    for_each_part((const backward_operation *)op, tile, span, constants, NULL);
}

static abn_status run(const abn_machine *machine, backward_operation *b, const abn_batch *dz) {
    const abn_context *context = b->context;
    abn_operation *op = &b->op;
    op->source = context->kept;
    op->gradient = *dz;
    op->arrays = op->destination.data && op->destination.data != dz->data ? 3 : 2;
    op->begin = begin;
    op->sums_use = 1 << ABN_CENTRE | 1 << ABN_SCALE | 1 << ABN_SHIFT;
    if (context->keep != ABN_KEEP_Z || context->guard.count > 0) op->sums_use |= 1 << ABN_WEIGHT | 1 << ABN_BIAS;
    op->apply_use = op->sums_use | 1 << ABN_DY_FACTOR | 1 << ABN_W_FACTOR | 1 << ABN_OFFSET;
    b->from = context->keep == ABN_KEEP_Z ? ABN_FROM_Z : ABN_FROM_X;
    b->escape_below = abn_escape_rule_of(context->activation, context->activation_param, dz->dtype).escape_below;
    abn_status status = abn_operation_open(op, machine, &context->guard);
    if (status != ABN_OK) return status;
    b->kernels = &op->kernels->of[context->activation];
    if (context->escapes.count > 0) {
        b->escaped_dz = malloc((size_t)context->escapes.count * sizeof(double));
        if (b->escaped_dz == NULL) status = ABN_NO_MEMORY;
        if (op->apply) op->end = end;
    }
    if (status == ABN_OK) status = abn_walk(op);
    free(b->escaped_dz);
    abn_operation_close(op);
    return status;
}

abn_status abn_backward_reduce(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                               double *sum_dy, double *sum_dy_xhat) {
    backward_operation b = {
        .op = {.sums = sums, .finish = finish}, .context = context, .sum_dy = sum_dy, .sum_dy_xhat = sum_dy_xhat};
    return run(machine, &b, dz);
}

abn_status abn_backward_apply(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                              const abn_batch *dx, const double *sum_dy, const double *sum_dy_xhat, double count) {
    backward_operation b = {.op = {.destination = *dx, .apply = apply},
                            .context = context,
                            .sum_dy = (double *)(uintptr_t)sum_dy,
                            .sum_dy_xhat = (double *)(uintptr_t)sum_dy_xhat,
                            .count = count};
    return run(machine, &b, dz);
}

abn_status abn_backward(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                        const abn_batch *dx, double *sum_dy, double *sum_dy_xhat, int training) {
    backward_operation b = {.op = {.destination = *dx, .sums = sums, .finish = finish, .apply = apply},
                            .context = context,
                            .sum_dy = sum_dy,
                            .sum_dy_xhat = sum_dy_xhat,
                            .count = training ? (double)dz->batch * (double)dz->spatial : 0};
    return run(machine, &b, dz);
}
