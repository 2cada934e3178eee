/* The backward as an operation, shared by its implementations: kernels (backward.c) and double (backward_exact.c). */
#ifndef ABN_BACKWARD_OPERATION_H
#define ABN_BACKWARD_OPERATION_H

#include "abn.h"
#include "channel_runs.h"

typedef struct {
    abn_operation op; /* must be first: steps cast abn_operation * to this type */
    const abn_context *context;
    const abn_tile_kernels *kernels; /* compute whole tiles; NULL: compute segment by segment */
    int from;                        /* ABN_FROM_Z or ABN_FROM_X */
    abn_sums sums;                   /* supplied by the caller, or computed by the step `sums` */
    int sums_are_given;              /* by the caller: the step `sums`, if run, only detects ABN_EXACT channels */
    double count;                    /* number of elements in each sum; 0: evaluation mode */
} abn_backward_operation;

static inline int abn_is_guarded(const abn_backward_operation *b, ptrdiff_t channel) {
    return b->context->guard.count > 0 && b->context->guard.slot[channel] >= 0;
}

/* min(y, 0): the derivative of prelu with respect to its parameter. NaN propagates. */
static inline double abn_below_zero(double y) { return y > 0 ? 0 : y; }

#endif
