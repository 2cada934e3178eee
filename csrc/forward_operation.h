/* The forward as an operation, shared by its implementations: kernels (forward.c) and double (forward_exact.c). */
#ifndef ABN_FORWARD_OPERATION_H
#define ABN_FORWARD_OPERATION_H

#include "abn.h"
#include "channel_runs.h"
#include "element.h"
#include "escapes.h"
#include "guard.h"

typedef struct {
    abn_operation op; /* must be first: steps cast abn_operation * to this type */
    abn_context *context;
    const abn_tile_kernels *identity;     /* writes xhat of whole tiles */
    const abn_tile_kernels *tile_kernels; /* NULL: the activation is computed segment by segment */
    abn_escape_rule rule;
    abn_escape_list *escape_lists; /* one per thread; NULL: no element can be escaped */
    double largest_xhat;           /* larger |xhat| are escaped; INFINITY: the batch's own statistics bound xhat */
    int recomputing;               /* abn_recompute: the context is read only */
} abn_forward_operation;

static inline double abn_xhat_of(const abn_forward_operation *f, ptrdiff_t channel, double x) {
    return (x - f->context->norm.mean[channel]) * f->context->norm.inv_std[channel];
}

/* True if rounding xhat to the storage type may move y, computed from it, to the other side of a kink at zero. */
static inline int abn_needs_settled_sign(const abn_forward_operation *f) {
    return f->context->keep == ABN_KEEP_Z && abn_activation_table[f->context->activation].traits & ABN_KINKED &&
           abn_dtype_size(f->op.source.dtype) == sizeof(uint16_t);
}

/* Applies abn_settle_sign to the saved xhat of the i-th element of a segment; its channel is guarded. */
static inline void abn_settle_sign_at(const abn_forward_operation *f, const abn_segment *segment, ptrdiff_t channel,
                                      ptrdiff_t i, double y) {
    const abn_operation *op = &f->op;
    const abn_norm *norm = &f->context->norm;
    const double bias = norm->bias[channel] + abn_element_from(op, segment->tile.residual, i);
    abn_settle_sign(op->source.dtype, abn_at(op, segment->xhat.data, 0, 0, i), norm->weight[channel], bias, y);
}

#endif
