/* Mean and variance of channels, as the first half of the forward and as an operation of its own. */
#ifndef ABN_MOMENTS_H
#define ABN_MOMENTS_H

#include "operation.h"

/* Where the channels' results go: arrays over all channels. eps is what will be added to var. */
typedef struct {
    double *mean, *var;
    double eps;
} abn_moments;

/* The sums' centre has a place of its own: where some channels' sums are taken again, those of the others, whose
 * constants may be set by then, must come out as before. The forward has no other use for it. */
enum { ABN_SUMS_CENTRE = ABN_OFFSET };

/* The steps `begin`, `sums` and `finish` of an operation on op->source; ABN_SUMS_CENTRE is theirs. finish says whether
 * the sums have to be taken again. */
void abn_moments_begin(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels);
void abn_moments_sums(const abn_operation *op, const abn_tile *tile, const abn_span *span,
                      const abn_constants *constants, void *partial, int again);
int abn_moments_finish(abn_operation *op, abn_moments moments, ptrdiff_t channel, ptrdiff_t channels,
                       const double *first, const double *second, int again);

#endif
