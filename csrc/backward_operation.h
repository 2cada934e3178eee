/* The backward as an operation, for its two implementations: by kernels (backward.c), and in double (backward_exact.c). */
#ifndef ABN_BACKWARD_OPERATION_H
#define ABN_BACKWARD_OPERATION_H

#include "abn.h"
#include "channel_runs.h"

typedef struct {
    abn_operation op; /* first: steps cast abn_operation * back */
    const abn_context *context;
    const abn_tile_kernels *kernels; /* of whole tiles; NULL: segment by segment */
    int from;                        /* ABN_FROM_Z or ABN_FROM_X */
    abn_sums sums;                   /* supplied by the caller, or computed by the step `sums` */
    int sums_are_given;              /* sums that are computed all the same only detect ABN_EXACT channels */
    double count;                    /* elements behind the sums; 0: evaluation mode */
} abn_backward_operation;

static inline int abn_is_guarded(const abn_backward_operation *b, ptrdiff_t channel) {
    return b->context->guard.count > 0 && b->context->guard.slot[channel] >= 0;
}

/* min(y, 0): the derivative of prelu by its slope. NaN propagates. */
static inline double abn_below_zero(double y) { return y > 0 ? 0 : y; }

#endif
