#include "backward_exact.h"

#include <stdint.h>

#include "activations.h"
#include "branch_mask.h"
#include "element.h"
#include "escapes.h"
#include "guard.h"
#include "valid.h"

typedef struct {
    double y, dy, xhat;
} exact_values;

static double exact_dx(const abn_backward_operation *b, ptrdiff_t channel, exact_values values) {
    const abn_norm *norm = &b->context->norm;
    double dx = values.dy;
    if (b->count > 0) dx -= (b->sums.dy[channel] + values.xhat * b->sums.dy_xhat[channel]) / b->count;
    return dx * norm->weight[channel] * norm->inv_std[channel];
}

/* One element of each array; xhat is that of a guarded channel. */
typedef struct {
    double kept, xhat, dz, residual;
} exact_inputs;

/* y, dy and xhat of one element: from its saved xhat if it is escaped or its channel guarded, else from what is
 * kept. */
static exact_values exact_element(const abn_backward_operation *b, ptrdiff_t channel, int64_t index, exact_inputs in) {
    const abn_context *context = b->context;
    const abn_norm *norm = &context->norm;
    const abn_escapes *escapes = &context->escapes;
    const ptrdiff_t e = escapes->count > 0 ? abn_escapes_from(escapes, index) : 0;
    const int is_escaped = e < escapes->count && escapes->index[e] == index;
    const double weight = norm->weight[channel], bias = norm->bias[channel];
    const double param = abn_param_at(context, channel);
    const int is_saved = is_escaped || abn_is_guarded(b, channel);
    exact_values values = {.y = in.kept, .xhat = is_escaped ? escapes->xhat[e] : in.xhat};
    if (!is_saved && context->keep == ABN_KEEP_Z) {
        uint64_t left = 0;
        if (context->branch_mask) abn_branch_mask_get(context->branch_mask, index, &left, 1);
        values.y = abn_activation_inverse(context->activation, param, in.kept, left & 1);
    }
    if (!is_saved && context->keep == ABN_KEEP_X)
        values.xhat = (in.kept - norm->mean[channel]) * norm->inv_std[channel];
    else if (!is_saved && context->keep == ABN_KEEP_XHAT)
        values.xhat = in.kept;
    else if (!is_saved)
        values.xhat = (values.y - in.residual - bias) / weight;
    if (context->keep != ABN_KEEP_Y && (is_saved || context->keep != ABN_KEEP_Z))
        values.y = weight * values.xhat + bias + in.residual;
    values.dy = in.dz * abn_activation_derivative(context->activation, param, values.y);
    return values;
}

/* The residual from what is given for it. */
static double residual_of(const abn_backward_operation *b, double given) {
    const abn_context *context = b->context;
    const abn_dtype dtype = b->op.source.dtype;
    double rounded;
    if (context->residual_activation == ABN_IDENTITY) return given;
    abn_store_element(dtype, &rounded,
                      abn_activation_value(context->residual_activation, context->residual_param, given));
    return abn_load_element(dtype, &rounded);
}

static double load_at(const abn_batch *batch, ptrdiff_t channel, abn_place place) {
    if (!batch->data) return 0;
    return abn_load_element(batch->dtype, abn_address(batch, place.image, channel, place.position));
}

abn_exact_sums abn_backward_exact_sums(const abn_backward_operation *b, ptrdiff_t channel) {
    const abn_operation *op = &b->op;
    abn_exact_sums sums = {0, 0, 0};
    for (abn_place place = abn_before_first; abn_next_place(&op->source, &op->mask, &place);) {
        const abn_element at = {channel, place.valid};
        const void *xhat = abn_is_guarded(b, channel) ? abn_guarded_at(op, &b->context->guard, at) : NULL;
        const exact_inputs in = {.kept = load_at(&op->source, channel, place),
                                 .xhat = xhat ? abn_load_element(op->source.dtype, xhat) : 0,
                                 .dz = load_at(&op->gradient, channel, place),
                                 .residual = residual_of(b, load_at(&op->residual, channel, place))};
        const exact_values values = exact_element(b, channel, abn_index_of(op, channel, place.valid), in);
        sums.dy += values.dy;
        sums.dy_xhat += values.dy * values.xhat;
        sums.param += in.dz * abn_below_zero(values.y);
    }
    return sums;
}

void abn_backward_exact_apply(const abn_backward_operation *b, const abn_channel_run *run) {
    const abn_operation *op = &b->op;
    const abn_dtype dtype = op->source.dtype;
    for (abn_segment segment = {0}; abn_next_segment(op, run, &segment);) {
        for (ptrdiff_t i = 0; i < segment.tile.length; i++) {
            const ptrdiff_t c = abn_element_of(op, &run->span, segment.row, segment.column + i).channel;
            const exact_inputs in = {.kept = abn_element_from(op, segment.tile.source, i),
                                     .xhat = abn_element_from(op, segment.xhat, i),
                                     .dz = abn_element_from(op, segment.tile.gradient, i),
                                     .residual = residual_of(b, abn_element_from(op, segment.tile.residual, i))};
            const exact_values values = exact_element(b, c, segment.index + i, in);
            abn_store_element(dtype, abn_at(op, segment.tile.destination.data, 0, 0, i), exact_dx(b, c, values));
            if (!segment.tile.residual_gradient.data) continue;
            void *to = abn_at(op, segment.tile.residual_gradient.data, 0, 0, i);
            abn_store_element(dtype, to, values.dy + (op->add_to_residual ? abn_load_element(dtype, to) : 0));
        }
    }
}
