#include "forward_exact.h"

#include <math.h>

#include "activations.h"
#include "branch_mask.h"

static void store_xhat(const abn_forward_operation *f, const abn_segment *segment, ptrdiff_t i, double xhat,
                       const void *to, abn_escape_list *list) {
    if (fabs(xhat) > f->largest_xhat) abn_escape_push(list, (abn_escape){segment->index + i, xhat});
    abn_store_element(f->op.source.dtype, abn_at(&f->op, to, 0, 0, i), xhat);
}

void abn_forward_exact_xhat(const abn_forward_operation *f, const abn_channel_run *run, const abn_segment *segment,
                            const void *to, abn_escape_list *list) {
    const abn_operation *op = &f->op;
    for (ptrdiff_t i = 0; i < segment->tile.length; i++) {
        const ptrdiff_t channel = abn_element_of(op, &run->span, segment->row, segment->column + i).channel;
        store_xhat(f, segment, i, abn_xhat_of(f, channel, abn_element_from(op, segment->tile.source, i)), to, list);
    }
}

/* y of the i-th element of a segment. + 0.0 avoids -0.0, which backward treats as y < 0. */
static double y_of(const abn_forward_operation *f, const abn_segment *segment, ptrdiff_t channel, ptrdiff_t i,
                   double xhat) {
    const abn_norm *norm = &f->context->norm;
    return norm->weight[channel] * xhat + norm->bias[channel] + abn_element_from(&f->op, segment->tile.residual, i) +
           0.0;
}

/* Stores y over x; returns the stored, rounded y. */
static double store_y(const abn_forward_operation *f, const abn_segment *segment, ptrdiff_t i, double y) {
    const abn_dtype dtype = f->op.source.dtype;
    void *to = abn_at(&f->op, segment->tile.source.data, 0, 0, i);
    abn_store_element(dtype, to, y);
    return abn_load_element(dtype, to);
}

/* z of the i-th element of a segment, and what is saved with it. */
static void apply_element(const abn_forward_operation *f, const abn_segment *segment, abn_element at, ptrdiff_t i,
                          abn_escape_list *list) {
    const abn_operation *op = &f->op;
    const abn_context *context = f->context;
    const abn_dtype dtype = op->source.dtype;
    const double xhat = abn_xhat_of(f, at.channel, abn_element_from(op, segment->tile.source, i));
    const double weight = context->norm.weight[at.channel], bias = context->norm.bias[at.channel];
    const double residual = abn_element_from(op, segment->tile.residual, i);
    const double y = y_of(f, segment, at.channel, i, xhat);
    const int keeps_y = context->keep == ABN_KEEP_Y;
    const double rounded_y = keeps_y ? store_y(f, segment, i, y) : y;
    void *to = abn_at(op, segment->tile.destination.data, 0, 0, i);
    abn_store_element(dtype, to,
                      abn_activation_value(context->activation, abn_param_at(context, at.channel), rounded_y));
    const void *kept = keeps_y ? abn_at(op, segment->tile.source.data, 0, 0, i) : to;
    if (segment->xhat.data) {
        store_xhat(f, segment, i, xhat, segment->xhat.data, list);
        if (abn_needs_settled_sign(f)) abn_settle_sign_at(f, segment, at.channel, i, y);
    } else if (abn_recovers_xhat(context)) {
        const uint64_t left = y < f->rule.minimum;
        if (list && (abn_is_escaped(f->rule, y) || isinf(abn_load_element(dtype, kept)) ||
                     fabs(residual) > abn_residual_limit(dtype, weight, bias)))
            abn_escape_push(list, (abn_escape){segment->index + i, xhat});
        if (context->branch_mask) abn_branch_mask_put(context->branch_mask, segment->index + i, &left, 1);
    }
}

/* z of the i-th element of a segment, from its kept y. */
static void recompute_element(const abn_forward_operation *f, const abn_segment *segment, ptrdiff_t channel,
                              ptrdiff_t i) {
    const abn_context *context = f->context;
    const double y = abn_element_from(&f->op, segment->tile.source, i);
    abn_store_element(f->op.source.dtype, abn_at(&f->op, segment->tile.destination.data, 0, 0, i),
                      abn_activation_value(context->activation, abn_param_at(context, channel), y));
}

void abn_forward_exact_apply(const abn_forward_operation *f, const abn_channel_run *run, abn_escape_list *list) {
    const int from_y = f->recomputing && f->context->keep == ABN_KEEP_Y;
    for (abn_segment segment = {0}; abn_next_segment(&f->op, run, &segment);)
        for (ptrdiff_t i = 0; i < segment.tile.length; i++) {
            const abn_element at = abn_element_of(&f->op, &run->span, segment.row, segment.column + i);
            if (from_y)
                recompute_element(f, &segment, at.channel, i);
            else
                apply_element(f, &segment, at, i, list);
        }
}
