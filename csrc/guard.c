/* Which channels cannot be had back from z?
 *
 * z carries y = weight * xhat + bias with a relative error of the storage type's rounding, u. Recovering
 * xhat = (y - bias) / weight multiplies that by |bias / weight|; where z is subnormal its error no longer shrinks
 * with it; and where it overflows nothing is left. Such channels keep their xhat beside z. */
#include "guard.h"

#include <math.h>

#include "activations.h"

typedef struct {
    double most_bias;       /* |bias / weight| up to which the error stays a small multiple of u */
    double smallest_normal; /* below, z has fewer digits */
    double largest;         /* of the storage type, or of what sums of dy * weight * xhat can hold */
} limits;

static const limits limits_of[ABN_DTYPES] = {
    [ABN_FLOAT32] = {64, 0x1p-126, 0x1p60},
    [ABN_FLOAT64] = {0x1p20, 0x1p-1022, 0x1p500},
    [ABN_FLOAT16] = {4, 0x1p-14, 65504},
    [ABN_BFLOAT16] = {4, 0x1p-126, 0x1p60},
};

static int needs_guard(limits limit, double least_slope, double weight, double bias, double largest_xhat) {
    const double size = fabs(weight), offset = fabs(bias);
    return !(size * least_slope > 2 * limit.smallest_normal && offset <= limit.most_bias * size &&
             size * largest_xhat + offset <= limit.largest);
}

ptrdiff_t abn_guard_channels(abn_dtype dtype, abn_activation activation, double activation_param, const double *weight,
                             const double *bias, ptrdiff_t channels, ptrdiff_t per_channel, ptrdiff_t *slot) {
    const double least_slope = abn_activation_least_slope(activation, activation_param);
    const double largest_xhat = sqrt((double)per_channel); /* of m numbers with mean 0 and variance 1 */
    ptrdiff_t count = 0;
    for (ptrdiff_t c = 0; c < channels; c++)
        slot[c] = needs_guard(limits_of[dtype], least_slope, weight[c], bias[c], largest_xhat) ? count++ : -1;
    return count;
}

abn_span abn_guard_run(const abn_operation *op, const abn_guard *guard, const abn_span *span, int *guarded) {
    abn_span run = *span;
    *guarded = guard->count > 0 && guard->slot[span->channel] >= 0;
    if (guard->count == 0) return run;
    run.channels = 1;
    if (*guarded && op->spread > 1) return run; /* xhat has its channels' images together, so a row ends there */
    while (run.channels < span->channels && (guard->slot[span->channel + run.channels] >= 0) == *guarded)
        run.channels++;
    return run;
}

static abn_input input_part(abn_input input, ptrdiff_t bytes) {
    if (input.data) input.data = (const char *)input.data + bytes;
    return input;
}

abn_tile abn_guard_part(const abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_span *run) {
    const ptrdiff_t skipped = run->channel - span->channel;
    const ptrdiff_t size = (ptrdiff_t)abn_dtype_size(op->source.dtype);
    const int rows = op->layout == ABN_ROWS;
    abn_tile part = *tile;
    if (run->channels == span->channels) return part;
    part.source = input_part(tile->source, skipped * size * (rows ? tile->source.stride : op->spread));
    part.gradient = input_part(tile->gradient, skipped * size * (rows ? tile->gradient.stride : op->spread));
    if (tile->destination) {
        part.destination = (char *)tile->destination + skipped * size * (rows ? tile->destination_stride : op->spread);
    }
    if (rows)
        part.rows = run->channels;
    else
        part.length = run->channels * op->spread;
    return part;
}

abn_input abn_guard_xhat(const abn_operation *op, const abn_guard *guard, const abn_span *run) {
    const ptrdiff_t size = (ptrdiff_t)abn_dtype_size(op->source.dtype), slot = guard->slot[run->channel];
    const ptrdiff_t position = run->image * op->source.spatial + run->from;
    char *xhat = guard->xhat;
    /* Single positions may be walked in rows though their channels lie side by side, and so do their xhat. */
    const int side_by_side =
        op->layout == ABN_ROWS ? op->source.channels > 1 && op->source.channel_stride == 1 : op->spread == 1;
    if (side_by_side)
        return (abn_input){xhat + (position * guard->count + slot) * size, op->layout == ABN_ROWS ? 1 : guard->count};
    return (abn_input){xhat + (slot * op->per_channel + position) * size,
                       op->layout == ABN_ROWS ? op->per_channel : op->spread};
}
