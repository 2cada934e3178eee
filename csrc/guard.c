/* The kept y, or z, stores y = weight * xhat + bias + residual with the rounding error u of the storage type.
 * Recovering
 *
 *     xhat = (y - bias - residual) / weight
 *
 * multiplies the error by |y / weight|, and by more where the activation is flat. The relative error of subnormal z is
 * greater, and a z that overflows holds no information. A channel is guarded, its xhat saved, if weight and bias alone
 * make the error too large, or if the residual does in many elements. Otherwise, single elements are escaped.
 *
 * Of m numbers with mean 0 and variance 1 none exceeds sqrt(m). With given statistics xhat has no bound: there, and
 * with a residual, elements escape if z, or a stored xhat, overflows the storage type. */
#include "guard.h"

#include <float.h>
#include <math.h>

#include "element.h"
#include "valid.h"

typedef struct {
    double most_bias;       /* greatest |bias / weight| for which the error of xhat is a small multiple of u */
    double smallest_normal; /* smaller |z| are subnormal */
    double largest;         /* |z| up to which neither z nor 1 / weight overflows */
    double inverse_error;   /* absolute error of y from kernels/gated.h and curves.h, in units of u */
} limits;

static const limits limits_of[ABN_DTYPES] = {
    [ABN_FLOAT32] = {64, 0x1p-126, 0x1p100, 5},
    [ABN_FLOAT64] = {0x1p20, 0x1p-1022, 0x1p1000, 0x1p-26},
    [ABN_FLOAT16] = {4, 0x1p-14, 65504, 0x1p-10},
    [ABN_BFLOAT16] = {4, 0x1p-126, 0x1p100, 0x1p-13},
};

enum { SPOTS = 4, SPOT = 16 }; /* the residual is sampled at SPOTS places, SPOT neighbouring positions each */

double abn_param_at(const abn_context *context, ptrdiff_t channel) {
    return context->channel_param ? context->channel_param[channel] : context->activation_param;
}

static abn_slopes slopes_left_of_zero(const abn_context *context, abn_activation activation) {
    abn_slopes slopes = {INFINITY, -INFINITY};
    for (ptrdiff_t c = 0; c < (context->channel_param ? context->kept.channels : 1); c++) {
        const double param = abn_param_at(context, c);
        const double near_zero = abn_activation_derivative(activation, param, -DBL_MIN);
        const double far_left = abn_activation_derivative(activation, param, -INFINITY);
        slopes.lowest = fmin(slopes.lowest, fmin(near_zero, far_left));
        slopes.highest = fmax(slopes.highest, fmax(near_zero, far_left));
    }
    return slopes;
}

abn_slopes abn_slopes_left_of_zero(const abn_context *context) {
    return slopes_left_of_zero(context, context->activation);
}

double abn_residual_limit(abn_dtype dtype, double weight, double bias) {
    return limits_of[dtype].most_bias * fabs(weight) - fabs(bias);
}

abn_escape_rule abn_escape_rule_for(const abn_context *context, int training) {
    const abn_activation activation = abn_inverted_activation(context);
    const abn_dtype dtype = context->kept.dtype;
    const double most_y = 0.9 * abn_largest_of(dtype); /* selu: z = 1.05 * y for y > 0 */
    abn_escape_rule rule = abn_escape_rule_of(activation, context->activation_param, dtype);
    if (training && !context->residual.data) return rule;
    const double steepest = fmax(1, slopes_left_of_zero(context, activation).highest);
    if (dtype != ABN_FLOAT16 && steepest <= 1) return rule; /* y overflows before z does */
    rule.above = fmin(rule.above, most_y);
    rule.below = fmax(rule.below, -most_y / steepest);
    return rule;
}

static int is_recoverable(const abn_context *context, ptrdiff_t channel, abn_escape_rule rule, double largest_xhat) {
    const abn_dtype dtype = context->kept.dtype;
    const abn_activation activation = abn_inverted_activation(context);
    const limits limit = limits_of[dtype];
    const double weight = context->norm.weight[channel], bias = context->norm.bias[channel];
    const double param = abn_param_at(context, channel), largest_real = dtype == ABN_FLOAT64 ? DBL_MAX : FLT_MAX;
    const double size = fabs(weight), most_y = size * largest_xhat + fabs(bias);
    if (activation == ABN_PRELU && !(param > 0)) return 0;
    if (activation == ABN_LEAKY_RELU && !(param * largest_real > 1)) return 0; /* kernels multiply by 1 / param */
    if (!(abn_activation_least_z(activation, param, size) > 2 * limit.smallest_normal)) return 0;
    if (!(abn_activation_largest_z(activation, param, most_y) <= limit.largest)) return 0;
    const double solver = abn_activation_table[activation].inverse == ABN_FROM_Z_AND_SIDE ? limit.inverse_error : 0;
    const double error = fmax(abn_activation_error_at(activation, param, bias, size), solver);
    if (!(error <= limit.most_bias * size)) return 0;
    /* Escaping a sixth of its elements takes as much memory as guarding the channel. */
    if (rule.near > size / 6 && fabs(bias - rule.minimum) < rule.near + size) return 0;
    return bias - size >= rule.below && bias + size <= rule.above; /* no element with |xhat| <= 1 is escaped */
}

/* Where the residual is sampled, in few cache lines: the same positions in every channel. */
typedef struct {
    ptrdiff_t bytes[SPOTS * SPOT]; /* from the first element of the channel */
    int count;
} samples;

static samples samples_of(const abn_batch *residual, const abn_mask *mask) {
    const ptrdiff_t positions = residual->batch * residual->spatial;
    samples found = {.count = 0};
    for (ptrdiff_t spot = 0; spot < SPOTS; spot++) {
        ptrdiff_t position = positions / SPOTS * spot;
        for (int i = 0; i < SPOT; i++, position++) {
            position = abn_next_valid(mask, position, positions);
            if (position >= positions) break;
            const char *at = abn_address(residual, position / residual->spatial, 0, position % residual->spatial);
            found.bytes[found.count++] = at - (const char *)residual->data;
        }
    }
    return found;
}

/* True if |residual| is above its limit in more than an eighth of the samples. */
static int residual_dominates(const abn_context *context, const samples *at, ptrdiff_t channel) {
    const abn_batch *residual = &context->residual;
    const char *first = abn_address(residual, 0, channel, 0);
    const double limit =
        abn_residual_limit(residual->dtype, context->norm.weight[channel], context->norm.bias[channel]);
    ptrdiff_t above = 0;
    for (int i = 0; i < at->count; i++) above += fabs(abn_load_element(residual->dtype, first + at->bytes[i])) > limit;
    return above * 8 > at->count;
}

ptrdiff_t abn_guard_channels(const abn_context *context, ptrdiff_t *slot) {
    const abn_batch *kept = &context->kept;
    const double largest_xhat = sqrt((double)abn_valid_positions(kept, &context->mask));
    const abn_escape_rule rule =
        abn_escape_rule_of(abn_inverted_activation(context), context->activation_param, kept->dtype);
    const int has_residual = context->residual.data != NULL;
    const samples at = has_residual ? samples_of(&context->residual, &context->mask) : (samples){.count = 0};
    ptrdiff_t count = 0;
    for (ptrdiff_t c = 0; c < kept->channels; c++) {
        const int recoverable =
            is_recoverable(context, c, rule, largest_xhat) && !(has_residual && residual_dominates(context, &at, c));
        slot[c] = recoverable ? -1 : count++;
    }
    return count;
}

/* The next greater (up) or next smaller float16 or bfloat16. */
static uint16_t next_half(uint16_t half, int up) {
    if ((half & 0x7fff) == 0) return up ? 0x0001 : 0x8001;
    return (uint16_t)((half < 0x8000) == up ? half + 1 : half - 1);
}

void abn_settle_sign(abn_dtype dtype, void *xhat, double weight, double bias, double y) {
    uint16_t *half = xhat;
    const double rounded = weight * abn_load_element(dtype, xhat) + bias;
    const double margin = fabs(bias) * FLT_EPSILON; /* rounding of the kernels' y, a float */
    if (y == 0 || weight == 0 || !isfinite(rounded) || (y < 0 ? -rounded : rounded) > margin) return;
    *half = next_half(*half, (y > 0) == (weight > 0));
}

size_t abn_branch_mask_bytes(const abn_context *context) {
    const abn_batch *kept = &context->kept;
    const int has_minimum = abn_activation_table[context->activation].inverse == ABN_FROM_Z_AND_SIDE;
    return context->keep == ABN_KEEP_Z && has_minimum
               ? ((size_t)abn_valid_positions(kept, &context->mask) * (size_t)kept->channels + 7) / 8
               : 0;
}
