/* Which channels cannot be had back from z, and which elements?
 *
 * z carries y = weight * xhat + bias + residual with a relative error of the storage type's rounding, u. Recovering
 * xhat = (y - bias - residual) / weight multiplies that by |y / weight|, or more where the activation is flat; where z
 * is subnormal its error no longer shrinks with it; and where it overflows nothing is left. Where weight and bias alone
 * make that so, or the residual in many elements of a channel, it keeps its xhat beside z; single elements go into the
 * escape list.
 *
 * Of m numbers with mean 0 and variance 1 none is above sqrt(m). With statistics that were given xhat can be anything:
 * there, and beside a residual, the forward puts into the escape list what overflows the storage type, of z or of an xhat
 * that is to be kept. */
#include "guard.h"

#include <float.h>
#include <math.h>

#include "mask.h"

typedef struct {
    double most_bias;       /* |bias / weight| up to which the error stays a small multiple of u */
    double smallest_normal; /* below, z has fewer digits */
    double largest;         /* of the storage type, or, well inside, of what 1 / weight allows */
    double inverse_error;   /* of y from kernels/gated.h and curves.h, however small y is; in units of u */
} limits;

static const limits limits_of[ABN_DTYPES] = {
    [ABN_FLOAT32] = {64, 0x1p-126, 0x1p100, 5},
    [ABN_FLOAT64] = {0x1p20, 0x1p-1022, 0x1p1000, 0x1p-26},
    [ABN_FLOAT16] = {4, 0x1p-14, 65504, 0x1p-10},
    [ABN_BFLOAT16] = {4, 0x1p-126, 0x1p100, 0x1p-13},
};

enum { SPOTS = 4, SPOT = 16 }; /* where the residual is looked at, and how many neighbours there */

double abn_param_at(const abn_context *context, ptrdiff_t channel) {
    return context->channel_param ? context->channel_param[channel] : context->activation_param;
}

abn_slopes abn_slopes_left_of_zero(const abn_context *context) {
    abn_slopes slopes = {INFINITY, -INFINITY};
    for (ptrdiff_t c = 0; c < (context->channel_param ? context->kept.channels : 1); c++) {
        const double param = abn_param_at(context, c);
        const double near_zero = abn_activation_derivative(context->activation, param, -DBL_MIN);
        const double far_left = abn_activation_derivative(context->activation, param, -INFINITY);
        slopes.lowest = fmin(slopes.lowest, fmin(near_zero, far_left));
        slopes.highest = fmax(slopes.highest, fmax(near_zero, far_left));
    }
    return slopes;
}

double abn_residual_limit(abn_dtype dtype, double weight, double bias) {
    return limits_of[dtype].most_bias * fabs(weight) - fabs(bias);
}

abn_escape_rule abn_escape_rule_for(const abn_context *context, int training) {
    const abn_dtype dtype = context->kept.dtype;
    const double most = 0.9 * abn_largest_of(dtype); /* selu's slope is 1.05 */
    abn_escape_rule rule = abn_escape_rule_of(context->activation, context->activation_param, dtype);
    if (training && !context->residual.data) return rule;
    const double steepest = fmax(1, abn_slopes_left_of_zero(context).highest);
    if (dtype != ABN_FLOAT16 && steepest <= 1) return rule; /* y would be out of the kernels' range before z */
    rule.above = fmin(rule.above, most);
    rule.below = fmax(rule.below, -most / steepest);
    return rule;
}

static int is_told_by_z(const abn_context *context, ptrdiff_t channel, abn_escape_rule rule, double largest_xhat) {
    const abn_dtype dtype = context->kept.dtype;
    const abn_activation activation = context->activation;
    const limits limit = limits_of[dtype];
    const double weight = context->norm.weight[channel], bias = context->norm.bias[channel];
    const double param = abn_param_at(context, channel), largest_real = dtype == ABN_FLOAT64 ? DBL_MAX : FLT_MAX;
    const double size = fabs(weight), most_y = size * largest_xhat + fabs(bias);
    if (activation == ABN_PRELU && !(param > 0)) return 0;
    if (activation == ABN_LEAKY_RELU && !(param * largest_real > 1)) return 0; /* kernels multiply by 1 / param */
    if (!(abn_activation_least_z(activation, param, size) > 2 * limit.smallest_normal)) return 0;
    if (!(abn_activation_largest_z(activation, param, most_y) <= limit.largest)) return 0;
    const double solved = abn_activation_table[activation].inverse == ABN_FROM_Z_AND_SIDE ? limit.inverse_error : 0;
    const double error = fmax(abn_activation_error_at(activation, param, bias, size), solved);
    if (!(error <= limit.most_bias * size)) return 0;
    /* With a sixth of its elements in the escape list a channel costs about what its xhat does. */
    if (rule.near > size / 6 && fabs(bias - rule.minimum) < rule.near + size) return 0;
    return bias - size >= rule.below && bias + size <= rule.above;
}

/* Is the residual above its limit in an eighth of the channel's elements? Asks some, in a few cache lines. */
static int is_swamped(const abn_context *context, ptrdiff_t channel) {
    const abn_batch *residual = &context->residual;
    const ptrdiff_t count = residual->batch * residual->spatial;
    const double limit =
        abn_residual_limit(residual->dtype, context->norm.weight[channel], context->norm.bias[channel]);
    ptrdiff_t looked_at = 0, lost = 0;
    for (ptrdiff_t spot = 0; spot < SPOTS; spot++) {
        ptrdiff_t position = count / SPOTS * spot;
        for (int i = 0; i < SPOT; i++, position++, looked_at++) {
            position = abn_next_valid(&context->mask, position, count);
            if (position >= count) break;
            const void *at = abn_address(residual, position / residual->spatial, channel, position % residual->spatial);
            lost += fabs(abn_load_element(residual->dtype, at)) > limit;
        }
    }
    return lost * 8 > looked_at;
}

ptrdiff_t abn_guard_channels(const abn_context *context, ptrdiff_t *slot) {
    const abn_batch *kept = &context->kept;
    const double largest_xhat = sqrt((double)abn_valid_positions(kept, &context->mask));
    const abn_escape_rule rule = abn_escape_rule_of(context->activation, context->activation_param, kept->dtype);
    ptrdiff_t count = 0;
    for (ptrdiff_t c = 0; c < kept->channels; c++) {
        const int told =
            is_told_by_z(context, c, rule, largest_xhat) && !(context->residual.data && is_swamped(context, c));
        slot[c] = told ? -1 : count++;
    }
    return count;
}

/* The neighbour above or below of a float16 or bfloat16. */
static uint16_t next_half(uint16_t half, int up) {
    if ((half & 0x7fff) == 0) return up ? 0x0001 : 0x8001;
    return (uint16_t)((half < 0x8000) == up ? half + 1 : half - 1);
}

void abn_settle_sign(abn_dtype dtype, void *xhat, double weight, double bias, double y) {
    uint16_t *half = xhat;
    const double rounded = weight * abn_load_element(dtype, xhat) + bias;
    const double margin = fabs(bias) * FLT_EPSILON; /* the kernels' y is a float */
    if (y == 0 || weight == 0 || !isfinite(rounded) || (y < 0 ? -rounded : rounded) > margin) return;
    *half = next_half(*half, (y > 0) == (weight > 0));
}

size_t abn_sides_bytes(const abn_context *context) {
    const abn_batch *kept = &context->kept;
    const int sided = abn_activation_table[context->activation].inverse == ABN_FROM_Z_AND_SIDE;
    return context->keep == ABN_KEEP_Z && sided
               ? ((size_t)abn_valid_positions(kept, &context->mask) * (size_t)kept->channels + 7) / 8
               : 0;
}
