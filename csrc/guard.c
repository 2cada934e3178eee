/* Which channels cannot be had back from z?
 *
 * z carries y = weight * xhat + bias with a relative error of the storage type's rounding, u. Recovering
 * xhat = (y - bias) / weight multiplies that by |bias / weight|, or more where the activation is flat; where z is
 * subnormal its error no longer shrinks with it; and where it overflows nothing is left. Such channels keep their
 * xhat beside z.
 *
 * Of m numbers with mean 0 and variance 1 none is above sqrt(m). With statistics that were given xhat can be anything:
 * there the forward puts what overflows float16 into the escape list; the other types reach 3e38. */
#include <math.h>

#include "activations.h"

typedef struct {
    double most_bias;       /* |bias / weight| up to which the error stays a small multiple of u */
    double smallest_normal; /* below, z has fewer digits */
    double largest;         /* of the storage type, or, well inside, of what 1 / weight allows */
} limits;

static const limits limits_of[ABN_DTYPES] = {
    [ABN_FLOAT32] = {64, 0x1p-126, 0x1p100},
    [ABN_FLOAT64] = {0x1p20, 0x1p-1022, 0x1p1000},
    [ABN_FLOAT16] = {4, 0x1p-14, 65504},
    [ABN_BFLOAT16] = {4, 0x1p-126, 0x1p100},
};

static int is_told_by_z(abn_dtype dtype, abn_activation activation, double param, double weight, double bias,
                        double largest_xhat) {
    const limits limit = limits_of[dtype];
    const double size = fabs(weight), most_y = size * largest_xhat + fabs(bias);
    const abn_escape_rule escape = abn_escape_rule_of(activation, param, dtype);
    if (!(abn_activation_least_z(activation, param, size) > 2 * limit.smallest_normal)) return 0;
    if (!(abn_activation_largest_z(activation, param, most_y) <= limit.largest)) return 0;
    if (!(abn_activation_error_at(activation, bias) <= limit.most_bias * size)) return 0;
    /* With a sixth of its elements in the escape list a channel costs about what its xhat does. */
    return bias - size >= escape.flat_below;
}

ptrdiff_t abn_guard_channels(abn_dtype dtype, abn_activation activation, double activation_param, const double *weight,
                             const double *bias, ptrdiff_t channels, ptrdiff_t per_channel, ptrdiff_t *slot) {
    const double largest_xhat = sqrt((double)per_channel);
    ptrdiff_t count = 0;
    for (ptrdiff_t c = 0; c < channels; c++) {
        const int told = is_told_by_z(dtype, activation, activation_param, weight[c], bias[c], largest_xhat);
        slot[c] = told ? -1 : count++;
    }
    return count;
}
