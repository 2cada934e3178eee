/* The backward of ABN_EXACT channels (float_range.h): element by element, in double. */
#ifndef ABN_BACKWARD_EXACT_H
#define ABN_BACKWARD_EXACT_H

#include "backward_operation.h"

typedef struct {
    double dy, dy_xhat, param;
} abn_exact_sums;

/* The sums of one channel over the whole batch. */
abn_exact_sums abn_backward_exact_sums(const abn_backward_operation *b, ptrdiff_t channel);

/* Writes dx, and the gradient of the residual, of a channel run. */
void abn_backward_exact_apply(const abn_backward_operation *b, const abn_channel_run *run);

#endif
