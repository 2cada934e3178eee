/* What the backward's two ways share: by kernels (backward.c), and element by element in double (backward_exact.c). */
#ifndef ABN_BACKWARD_H
#define ABN_BACKWARD_H

#include "abn.h"
#include "guard.h"
#include "parts.h"

typedef struct {
    abn_operation op; /* first: the steps cast back */
    const abn_context *context;
    const abn_tile_kernels *kernels; /* for whole tiles; NULL: piece by piece */
    int from;
    abn_sums sums; /* given, or filled by the sums */
    int are_given; /* sums that are taken all the same only tell which channels are to be worked on in double */
    double count;  /* elements behind the sums; 0: evaluation mode */
} abn_backward_operation;

static inline int abn_is_guarded(const abn_backward_operation *b, ptrdiff_t channel) {
    return b->context->guard.count > 0 && b->context->guard.slot[channel] >= 0;
}

/* min(y, 0), the activation's derivative by a slope; NaN stays. */
static inline double abn_below_zero(double y) { return y > 0 ? 0 : y; }

typedef struct {
    double dy, dy_xhat, param;
} abn_exact_sums;

/* The sums of a channel whose sums left the range of float (or that is not finite). */
abn_exact_sums abn_backward_exact_sums(const abn_backward_operation *b, ptrdiff_t channel);

/* dx, and the residual's gradient, of a part of such channels. */
void abn_backward_exact_apply(const abn_backward_operation *b, const abn_part *part);

#endif
