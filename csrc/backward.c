/* dz -> dx and the two sums. One pass for the sums, one that applies them, whatever was kept:
 *
 *     w = xhat, or weight * xhat (ABN_SCHEME_II)      dx = dy * dy_factor + w * w_factor + offset
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "abn.h"
#include "activations.h"
#include "guard.h"
#include "operation.h"

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

/* w = weight * xhat rather than xhat */
static int is_scaled(const backward_operation *b, ptrdiff_t channel) {
    return b->context->keep == ABN_KEEP_Z && b->context->scheme == ABN_SCHEME_II && !is_guarded(b, channel);
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
        scale = b->context->scheme == ABN_SCHEME_I ? 1 / weight : 1;
        shift = b->context->scheme == ABN_SCHEME_I ? -bias / weight : -bias;
    }
    abn_set_constant(&b->op, ABN_CENTRE, c, centre);
    abn_set_constant(&b->op, ABN_SCALE, c, scale);
    abn_set_constant(&b->op, ABN_SHIFT, c, shift);
    abn_set_constant(&b->op, ABN_WEIGHT, c, weight);
    abn_set_constant(&b->op, ABN_BIAS, c, bias);
}

static void set_result_constants(backward_operation *b, ptrdiff_t c) {
    const abn_norm *norm = &b->context->norm;
    const double factor = norm->weight[c] * norm->inv_std[c], per_element = b->count > 0 ? 1 / b->count : 0;
    const double w_factor = (is_scaled(b, c) ? norm->inv_std[c] : factor) * b->sum_dy_xhat[c] * per_element;
    abn_set_constant(&b->op, ABN_DY_FACTOR, c, factor);
    abn_set_constant(&b->op, ABN_W_FACTOR, c, b->count > 0 ? -w_factor : 0);
    abn_set_constant(&b->op, ABN_OFFSET, c, b->count > 0 ? -factor * b->sum_dy[c] * per_element : 0);
}

static char *escaped_at(const abn_batch *batch, ptrdiff_t channel, int64_t position) {
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
            b->escaped_dz[e] = abn_load_element(op->gradient.dtype, escaped_at(&op->gradient, c, escapes->position[e]));
    }
}

/* The kernels have left the escaped elements out of the sums. */
static int finish(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first, const double *second,
                  int again) {
    backward_operation *b = (backward_operation *)op;
    const abn_escapes *escapes = &b->context->escapes;
    (void)again;
    for (ptrdiff_t i = 0; i < channels; i++) {
        const ptrdiff_t c = channel + i;
        double sum_dy = first[i], sum_dy_xhat = is_scaled(b, c) ? second[i] / b->context->norm.weight[c] : second[i];
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
    const abn_norm *norm = &b->context->norm;
    for (ptrdiff_t c = channel; c < channel + channels; c++) {
        for (ptrdiff_t e = escapes->first[c]; e < escapes->first[c + 1]; e++) {
            double dx = escaped_dy(b, c, e);
            if (b->count > 0) dx -= (b->sum_dy[c] + escapes->xhat[e] * b->sum_dy_xhat[c]) / b->count;
            abn_store_element(op->destination.dtype, escaped_at(&op->destination, c, escapes->position[e]),
                              dx * norm->weight[c] * norm->inv_std[c]);
        }
    }
}

/* Calls sums or apply for each run of channels, with xhat for a source where channels are guarded. */
static void for_each_run(const backward_operation *b, const abn_tile *tile, const abn_span *span,
                         const abn_constants *constants, void *partial) {
    const abn_operation *op = &b->op;
    const ptrdiff_t real_size = op->source.dtype == ABN_FLOAT64 ? (ptrdiff_t)sizeof(double) : (ptrdiff_t)sizeof(float);
    const ptrdiff_t sum_bytes = op->layout == ABN_ROWS ? 2 * ABN_LANE_BYTES : op->spread * real_size;
    abn_span left = *span;
    while (left.channels > 0) {
        int guarded;
        const abn_span run = abn_guard_run(op, &b->context->guard, &left, &guarded);
        const ptrdiff_t skipped = run.channel - span->channel;
        abn_tile part = abn_guard_part(op, tile, span, &run);
        abn_constants of_part = abn_constants_moved(op, constants, skipped);
        of_part.param = b->context->activation_param;
        of_part.escape_below = b->escape_below;
        if (guarded) part.source = abn_guard_xhat(op, &b->context->guard, &run);
        const int from = guarded ? ABN_FROM_X : b->from;
        if (partial)
            b->kernels->gradient_sums[from](&part, &of_part, (char *)partial + skipped * sum_bytes);
        else
            b->kernels->gradient_apply[from](&part, &of_part);
        left.channel += run.channels;
        left.channels -= run.channels;
    }
}

static void sums(const abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                 void *partial) {
    for_each_run((const backward_operation *)op, tile, span, constants, partial);
}

static void apply(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                  int thread) {
    (void)thread;
    for_each_run((const backward_operation *)op, tile, span, constants, NULL);
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
    abn_status status = abn_operation_open(op, machine, context->guard.count > 0);
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
