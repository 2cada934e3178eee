/* One pass over memory: sums of d = x - centre and of d^2, with a centre near the mean of the channel, so that
 *
 *     mean = centre + mean(d),   var = mean(d^2) - mean(d)^2
 *
 * lose no digits. The centre is the mean of a few elements. If it turns out to be far from the mean, the sums are
 * computed a second time around the mean of the first. */
#include "moments.h"

#include <math.h>

#include "element.h"
#include "float_range.h"
#include "valid.h"
#include "walk.h"

enum {
    SAMPLE = 8,    /* elements of a channel */
    TOGETHER = 64, /* channels that are sampled together, in the order of memory if the layout is channels-last */
};

/* If mean(d)^2 exceeds this multiple of var, the subtraction loses too many digits of a float sum. */
static const double FAR_FROM_CENTRE = 4;

/* The means of the first valid elements: SAMPLE of one image, or of several images if S < SAMPLE. Where the layout
 * allows, those of a channel are in one or two cache lines. */
static void sample_means(const abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, double *means) {
    const abn_batch *x = &op->source;
    const ptrdiff_t wanted = x->spatial < SAMPLE ? (SAMPLE + x->spatial - 1) / x->spatial * x->spatial : SAMPLE;
    const ptrdiff_t bytes = x->channel_stride * (ptrdiff_t)abn_dtype_size(x->dtype);
    abn_place place = abn_before_first;
    for (ptrdiff_t c = 0; c < channels; c++) means[c] = 0;
    while (place.valid + 1 < wanted && abn_next_place(x, &op->mask, &place)) {
        const char *element = abn_address(x, place.image, channel, place.position);
        for (ptrdiff_t c = 0; c < channels; c++, element += bytes) means[c] += abn_load_element(x->dtype, element);
    }
    for (ptrdiff_t c = 0; c < channels; c++) {
        means[c] /= (double)(place.valid + 1);
        if (!isfinite(means[c])) means[c] = 0;
    }
}

void abn_moments_begin(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    double means[TOGETHER];
    for (ptrdiff_t last = channel + channels; channel < last; channel += TOGETHER) {
        const ptrdiff_t count = last - channel < TOGETHER ? last - channel : TOGETHER;
        sample_means(op, channel, count, means);
        for (ptrdiff_t c = 0; c < count; c++) abn_set_constant(op, ABN_SUMS_CENTRE, channel + c, means[c]);
    }
}

void abn_moments_sums(const abn_operation *op, const abn_tile *tile, const abn_span *span,
                      const abn_constants *constants, void *partial, int resumming) {
    (void)span, (void)resumming;
    abn_constants centred = *constants;
    centred.of[ABN_CENTRE] = constants->of[ABN_SUMS_CENTRE];
    op->kernels->moments(tile, &centred, partial);
}

/* Two passes in double: for channels whose squares overflow or underflow in float, or whose sums are not finite. */
static void exact_moments(const abn_operation *op, ptrdiff_t channel, double *mean, double *var) {
    const abn_batch *x = &op->source;
    double sum = 0, squares = 0;
    for (abn_place place = abn_before_first; abn_next_place(x, &op->mask, &place);)
        sum += abn_load_element(x->dtype, abn_address(x, place.image, channel, place.position));
    *mean = sum / (double)op->per_channel;
    *var = NAN;
    if (!isfinite(sum)) return; /* an element is infinite or NaN */
    for (abn_place place = abn_before_first; abn_next_place(x, &op->mask, &place);) {
        const double d = abn_load_element(x->dtype, abn_address(x, place.image, channel, place.position)) - *mean;
        squares += d * d;
    }
    *var = squares / (double)op->per_channel;
}

int abn_moments_finish(abn_operation *op, abn_moments moments, ptrdiff_t channel, ptrdiff_t channels,
                       const double *first, const double *second, int resumming) {
    const double count = (double)op->per_channel;
    int resum = 0;
    for (ptrdiff_t i = 0; i < channels; i++) {
        const ptrdiff_t c = channel + i;
        const double offset = first[i] / count, square = offset * offset;
        double mean = abn_get_constant(op, ABN_SUMS_CENTRE, c) + offset, var = second[i] / count - square;
        if (!isfinite(var) || !abn_squares_fit(op->source.dtype, var, moments.eps))
            exact_moments(op, c, &mean, &var);
        else if (!resumming && square > FAR_FROM_CENTRE * var) {
            abn_set_constant(op, ABN_SUMS_CENTRE, c, mean);
            resum = 1;
        }
        moments.mean[c] = mean;
        moments.var[c] = var > 0 || isnan(var) ? var : 0;
    }
    return resum;
}

typedef struct {
    abn_operation op; /* must be first: steps cast abn_operation * to this type */
    abn_moments moments;
} statistics_operation;

static int finish_statistics(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first,
                             const double *second, int resumming) {
    return abn_moments_finish(op, ((statistics_operation *)op)->moments, channel, channels, first, second, resumming);
}

abn_status abn_statistics(const abn_machine *machine, const abn_batch *x, const abn_mask *mask, double *mean,
                          double *var) {
    statistics_operation statistics = {
        .op = {.source = *x,
               .arrays = 1,
               .begin = abn_moments_begin,
               .sums = abn_moments_sums,
               .finish = finish_statistics,
               .sums_constants = 1 << ABN_SUMS_CENTRE},
        .moments = {mean, var, 0},
    };
    if (mask) statistics.op.mask = *mask;
    abn_status status = abn_walk_open(&statistics.op, machine, NULL);
    if (status != ABN_OK) return status;
    status = abn_walk(&statistics.op);
    abn_walk_close(&statistics.op);
    return status;
}
