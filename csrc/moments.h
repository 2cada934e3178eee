/* Mean and variance of every channel: the first half of abn_forward, and abn_statistics. */
#ifndef ABN_MOMENTS_H
#define ABN_MOMENTS_H

#include "operation.h"

/* mean and var: results, one entry per channel. eps: the caller adds it to var later, so squares of d that underflow
 * do not matter if eps is large (float_range.h). */
typedef struct {
    double *mean, *var;
    double eps;
} abn_moments;

/* The steps begin, sums and finish of an operation on op->source. They use the constant ABN_SUMS_CENTRE. finish returns
 * nonzero if the sums of any channel must be computed a second time. */
void abn_moments_begin(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels);
void abn_moments_sums(const abn_operation *op, const abn_tile *tile, const abn_span *span,
                      const abn_constants *constants, void *partial, int resumming);
int abn_moments_finish(abn_operation *op, abn_moments moments, ptrdiff_t channel, ptrdiff_t channels,
                       const double *first, const double *second, int resumming);

#endif
