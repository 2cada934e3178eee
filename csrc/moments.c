/* One pass over memory: sums of d = x - centre and of d^2, with a centre near the channel's mean, so that
 * var = mean(d^2) - mean(d)^2 loses no digits. The centre is the mean of a few elements; where these turn out not to
 * speak for the channel, the sums are taken once more around the mean that has been found. */
#include "moments.h"

#include <math.h>

#include "mask.h"

enum { SAMPLE = 8 };

/* mean(d)^2 above this many variances costs more digits than a float sum has to give. */
static const double FAR_FROM_CENTRE = 4;

/* The mean of the first valid elements: SAMPLE of one image, or those of the first images where one has fewer. They lie in
 * one or two cache lines, where the layout allows. */
static double sample_mean(const abn_operation *op, ptrdiff_t channel) {
    const abn_batch *x = &op->source;
    const ptrdiff_t wanted = x->spatial < SAMPLE ? (SAMPLE + x->spatial - 1) / x->spatial * x->spatial : SAMPLE;
    double sum = 0;
    abn_place at = abn_before_first;
    while (at.valid + 1 < wanted && abn_next_place(x, &op->mask, &at))
        sum += abn_load_element(x->dtype, abn_address(x, at.image, channel, at.position));
    const double mean = sum / (double)(at.valid + 1);
    return isfinite(mean) ? mean : 0;
}

void abn_moments_begin(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    for (ptrdiff_t c = channel; c < channel + channels; c++)
        abn_set_constant(op, ABN_SUMS_CENTRE, c, sample_mean(op, c));
}

void abn_moments_sums(const abn_operation *op, const abn_tile *tile, const abn_span *span,
                      const abn_constants *constants, void *partial, int again) {
    (void)span, (void)again;
    abn_constants around = *constants;
    around.of[ABN_CENTRE] = constants->of[ABN_SUMS_CENTRE];
    op->kernels->moments(tile, &around, partial);
}

/* Two passes in double over a channel whose squares leave the range of float (or that is not finite). */
static void exact_moments(const abn_operation *op, ptrdiff_t channel, double *mean, double *var) {
    const abn_batch *x = &op->source;
    double sum = 0, squares = 0;
    for (abn_place at = abn_before_first; abn_next_place(x, &op->mask, &at);)
        sum += abn_load_element(x->dtype, abn_address(x, at.image, channel, at.position));
    *mean = sum / (double)op->per_channel;
    *var = NAN;
    if (!isfinite(sum)) return; /* there is an infinity or NaN among them: no need to look twice */
    for (abn_place at = abn_before_first; abn_next_place(x, &op->mask, &at);) {
        const double d = abn_load_element(x->dtype, abn_address(x, at.image, channel, at.position)) - *mean;
        squares += d * d;
    }
    *var = squares / (double)op->per_channel;
}

/* Squares below float's range are lost. That counts only where neither the others nor eps are far above them. */
static int has_underflown(const abn_operation *op, double var, double eps) {
    const double range = 0x1p-120;
    return op->source.dtype != ABN_FLOAT64 && var < range && eps < range;
}

int abn_moments_finish(abn_operation *op, abn_moments moments, ptrdiff_t channel, ptrdiff_t channels,
                       const double *first, const double *second, int again) {
    const double count = (double)op->per_channel;
    int more = 0;
    for (ptrdiff_t i = 0; i < channels; i++) {
        const ptrdiff_t c = channel + i;
        const double offset = first[i] / count, square = offset * offset;
        double mean = abn_get_constant(op, ABN_SUMS_CENTRE, c) + offset, var = second[i] / count - square;
        if (!isfinite(var) || has_underflown(op, var, moments.eps))
            exact_moments(op, c, &mean, &var);
        else if (!again && square > FAR_FROM_CENTRE * var) {
            abn_set_constant(op, ABN_SUMS_CENTRE, c, mean);
            more = 1;
        }
        moments.mean[c] = mean;
        moments.var[c] = var > 0 || isnan(var) ? var : 0;
    }
    return more;
}

typedef struct {
    abn_operation op; /* first: the steps cast back */
    abn_moments moments;
} statistics_operation;

static int finish_statistics(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first,
                             const double *second, int again) {
    return abn_moments_finish(op, ((statistics_operation *)op)->moments, channel, channels, first, second, again);
}

abn_status abn_statistics(const abn_machine *machine, const abn_batch *x, const abn_mask *mask, double *mean,
                          double *var) {
    statistics_operation statistics = {
        .op = {.source = *x,
               .arrays = 1,
               .begin = abn_moments_begin,
               .sums = abn_moments_sums,
               .finish = finish_statistics,
               .sums_use = 1 << ABN_SUMS_CENTRE},
        .moments = {mean, var, 0},
    };
    if (mask) statistics.op.mask = *mask;
    abn_status status = abn_operation_open(&statistics.op, machine, NULL);
    if (status != ABN_OK) return status;
    status = abn_walk(&statistics.op);
    abn_operation_close(&statistics.op);
    return status;
}
