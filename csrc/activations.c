#include "activations.h"

#include <float.h>
#include <math.h>

const abn_activation_info abn_activation_table[ABN_ACTIVATIONS] = {
#define INFO(upper, lower, inverse, param, traits) {#lower, inverse, param, traits},
    ABN_EACH_ACTIVATION(INFO)
#undef INFO
};

/* Clamps to [low, high]. NaN propagates, unlike in fmin and fmax. */
static double clamp(double low, double high, double y) { return y < low ? low : y > high ? high : y; }

static double logistic(double y) {
    const double e = exp(-fabs(y));
    return y < 0 ? e / (1 + e) : 1 / (1 + e);
}

static double softplus(double y) { return clamp(0, INFINITY, y) + log1p(exp(-fabs(y))); }

/* Activations with a minimum: z = y * gate(y). mish: tanh(softplus(y)) = n / (n + 2) with n = e (e + 2), e = exp(y). */
static double gate(abn_activation activation, double y) {
    switch (activation) {
        case ABN_GELU: return 0.5 * erfc(-y * 0.70710678118654752440);
        case ABN_GELU_TANH: return logistic(GELU_RATE * (y + GELU_CUBIC * y * y * y));
        case ABN_MISH: {
            const double e = exp(clamp(-INFINITY, 40, y)), n = e * (e + 2);
            return n / (n + 2);
        }
        case ABN_SILU:
        default: return logistic(y);
    }
}

static double gate_slope(abn_activation activation, double y) {
    const double clamped_y = clamp(-1e3, 1e3, y);
    switch (activation) {
        case ABN_GELU: return 0.39894228040143267794 * exp(-0.5 * clamped_y * clamped_y);
        case ABN_GELU_TANH: {
            const double u = GELU_RATE * (clamped_y + GELU_CUBIC * clamped_y * clamped_y * clamped_y);
            return logistic(u) * logistic(-u) * GELU_RATE * (1 + 3 * GELU_CUBIC * clamped_y * clamped_y);
        }
        case ABN_MISH: {
            const double e = exp(clamp(-INFINITY, 40, y)), n2 = e * (e + 2) + 2;
            return 4 * e * (1 + e) / (n2 * n2);
        }
        case ABN_SILU:
        default: return logistic(y) * logistic(-y);
    }
}

/* z of hardsigmoid, and the gate of hardswish: z = y * hard_gate(y). */
static double hard_gate(double y) { return clamp(0, 6, y + 3) / 6; }

/* elu, celu and selu: z = height * (exp(y * rate) - 1) for y < 0. */
static double height(abn_activation activation, double param) {
    return activation == ABN_SELU ? SELU_SCALE * SELU_ALPHA : param;
}
static double rate(abn_activation activation, double param) { return activation == ABN_CELU ? 1 / param : 1; }

double abn_activation_value(abn_activation activation, double param, double y) {
    switch (activation) {
        case ABN_LEAKY_RELU:
        case ABN_PRELU: return y >= 0 ? y : param * y;
        case ABN_ELU:
        case ABN_CELU: return y >= 0 ? y : height(activation, param) * expm1(y * rate(activation, param));
        case ABN_SELU: return y >= 0 ? SELU_SCALE * y : SELU_SCALE * SELU_ALPHA * expm1(y);
        case ABN_SOFTPLUS: return softplus(y);
        case ABN_SIGMOID: return logistic(y);
        case ABN_TANH: return tanh(y);
        case ABN_SILU:
        case ABN_GELU:
        case ABN_GELU_TANH:
        case ABN_MISH: return clamp(-1e3, INFINITY, y) * gate(activation, y); /* avoids -infinity * 0 */
        case ABN_RELU: return clamp(0, INFINITY, y);
        case ABN_RELU6: return clamp(0, 6, y);
        case ABN_HARDSIGMOID: return hard_gate(y);
        case ABN_HARDSWISH: return clamp(-3, INFINITY, y) * hard_gate(y);
        default: return y;
    }
}

double abn_activation_derivative(abn_activation activation, double param, double y) {
    switch (activation) {
        case ABN_LEAKY_RELU:
        case ABN_PRELU: return y >= 0 ? 1 : param;
        case ABN_ELU:
        case ABN_CELU:
        case ABN_SELU: {
            const double k = rate(activation, param);
            if (y >= 0) return activation == ABN_SELU ? SELU_SCALE : 1;
            return height(activation, param) * k * exp(y * k);
        }
        case ABN_SOFTPLUS: return logistic(y);
        case ABN_SIGMOID: return logistic(y) * logistic(-y);
        case ABN_TANH: return 4 * logistic(2 * y) * logistic(-2 * y);
        case ABN_SILU:
        case ABN_GELU:
        case ABN_GELU_TANH:
        case ABN_MISH: return gate(activation, y) + clamp(-1e3, 1e3, y) * gate_slope(activation, y);
        case ABN_RELU: return y >= 0;
        case ABN_RELU6: return y > 0 && y < 6;
        case ABN_HARDSIGMOID: return y > -3 && y < 3 ? 1.0 / 6 : 0;
        case ABN_HARDSWISH: return y >= 3 ? 1 : y <= -3 ? 0 : (y + 1.5) / 3;
        default: return 1;
    }
}

static int has_minimum(abn_activation activation) {
    return abn_activation_table[activation].inverse == ABN_FROM_Z_AND_SIDE;
}

static double minimum(abn_activation activation) {
    switch (activation) {
        case ABN_SILU: return SILU_MINIMUM;
        case ABN_GELU: return GELU_MINIMUM;
        case ABN_GELU_TANH: return GELU_TANH_MINIMUM;
        case ABN_MISH: return MISH_MINIMUM;
        default: return -INFINITY;
    }
}

/* Newton's method within a bracket; bisects where a step would leave the bracket. */
static double gated_inverse(abn_activation activation, double z, int left) {
    const double bottom = minimum(activation), least_z = bottom * gate(activation, bottom);
    if (isnan(z)) return z;
    if (z <= least_z) return bottom;
    double low = left ? -750 : bottom, high = left ? bottom : fmax(1, 2 * z + 1);
    if (!left && z > 40) return z;
    double y = left ? bottom - 1 : fmax(z, bottom + sqrt(z - least_z));
    for (int i = 0; i < 200 && low < high; i++) {
        const double value = abn_activation_value(activation, 0, y);
        if (value == z) return y;
        if ((value > z) == left)
            low = y;
        else
            high = y;
        /* Far left, log(-z) is nearly linear or quadratic in y: take the step in log(-z). */
        const double slope = abn_activation_derivative(activation, 0, y);
        const double step = left && z < 0 ? log(value / z) * value / slope : (value - z) / slope;
        const double next = y - step;
        const double candidate = next > low && next < high ? next : 0.5 * (low + high);
        if (fabs(candidate - y) <= 0.25 * DBL_EPSILON * fabs(y) || candidate == low || candidate == high)
            return candidate;
        y = candidate;
    }
    return y;
}

double abn_activation_inverse(abn_activation activation, double param, double z, int left) {
    const int underflowed = z == 0 && signbit(z); /* z = -0.0: y is negative, and z was rounded to zero */
    switch (activation) {
        case ABN_LEAKY_RELU:
        case ABN_PRELU: return underflowed ? -DBL_TRUE_MIN : z >= 0 ? z : z / param;
        case ABN_ELU:
        case ABN_CELU:
        case ABN_SELU: {
            if (underflowed) return -DBL_TRUE_MIN;
            if (z >= 0) return activation == ABN_SELU ? z / SELU_SCALE : z;
            const double ratio = clamp(DBL_EPSILON / 2 - 1, INFINITY, z / height(activation, param));
            return log1p(ratio) / rate(activation, param);
        }
        case ABN_SOFTPLUS: {
            const double size = clamp(DBL_MIN, INFINITY, z);
            return size + log(-expm1(-size));
        }
        case ABN_SIGMOID: {
            const double p = clamp(DBL_MIN, 1 - DBL_EPSILON / 2, z);
            return log(p / (1 - p));
        }
        case ABN_TANH: return atanh(clamp(DBL_EPSILON / 2 - 1, 1 - DBL_EPSILON / 2, z));
        case ABN_SILU:
        case ABN_GELU:
        case ABN_GELU_TANH:
        case ABN_MISH: return gated_inverse(activation, z, left);
        default: return z;
    }
}

/* Near an asymptote a, z has too few digits to recover y: an element is escaped if |z - a| < margin * |a|. At that
 * limit y and the slope of elu, celu and selu are recovered to about 3e-5 (float), 1e-8 (double) or a few units in the
 * last place of a half type. sigmoid and tanh have a smaller margin: with the same one, too many elements would be
 * escaped. Returns the margin. */
static double asymptote_margin(abn_activation activation, abn_dtype dtype) {
    static const double one_sided[ABN_DTYPES] = {0x1p-9, 0x1p-24, 0x1p-5, 0x1p-4};
    static const double bounded[ABN_DTYPES] = {0x1p-12, 0x1p-26, 0x1p-7, 0x1p-6};
    return (activation == ABN_TANH || activation == ABN_SIGMOID ? bounded : one_sided)[dtype];
}

/* |z| below this is subnormal in the storage type, or too small for the inverses in kernels/curves.h (LEAST_SIZE). */
static double least_size(abn_dtype dtype) {
    static const double least[ABN_DTYPES] = {1e-35, 1e-299, 0x1p-14, 1e-35};
    return least[dtype];
}

/* The activation is flat at its minimum: a rounding error u of z becomes an error u / |y - minimum| of the slope.
 * Elements closer than this are escaped. A greater distance would lower the error and cost more memory: if y is
 * N(0, 1), 0.1 % (float), 0.001 % (double), 0.5 to 0.9 % (half types) of the elements are escaped. */
static double nearest_to_minimum(abn_dtype dtype) {
    static const double nearest[ABN_DTYPES] = {1.5e-3, 1e-5, 0.014, 0.01};
    return nearest[dtype];
}

abn_escape_rule abn_escape_rule_of(abn_activation activation, double param, abn_dtype dtype) {
    abn_escape_rule rule = {-INFINITY, INFINITY, 0, 0};
    switch (activation) {
        case ABN_ELU:
        case ABN_CELU:
        case ABN_SELU: rule.below = log(asymptote_margin(activation, dtype)) / rate(activation, param); break;
        case ABN_TANH:
            rule.above = atanh(1 - asymptote_margin(activation, dtype));
            rule.below = -rule.above;
            break;
        case ABN_SIGMOID:
            rule.above = -log(asymptote_margin(activation, dtype));
            rule.below = log(least_size(dtype));
            break;
        case ABN_SOFTPLUS: rule.below = log(least_size(dtype)); break;
        case ABN_SILU:
        case ABN_GELU:
        case ABN_GELU_TANH:
        case ABN_MISH:
            rule.below = abn_activation_inverse(activation, param, -least_size(dtype), 1);
            rule.minimum = minimum(activation);
            rule.near = nearest_to_minimum(dtype);
            break;
        default: break;
    }
    return rule;
}

/* The slope left of 0 of an activation that is a line through 0 on each side; 0 for all others. The three functions
 * below are called for every channel, and need none of the general formulas then. */
static double slope_of_lines(abn_activation activation, double param) {
    if (activation == ABN_IDENTITY) return 1;
    return activation == ABN_LEAKY_RELU || activation == ABN_PRELU ? param : 0;
}

double abn_activation_least_z(abn_activation activation, double param, double size) {
    const double slope = slope_of_lines(activation, param);
    if (slope > 0) return slope < 1 ? size * slope : size;
    const double most_negative = has_minimum(activation) ? fmax(minimum(activation), -size) : -size;
    const double negative = activation == ABN_SOFTPLUS || activation == ABN_SIGMOID ? 0 : most_negative;
    return fmin(fabs(abn_activation_value(activation, param, size)),
                fabs(abn_activation_value(activation, param, negative)));
}

double abn_activation_largest_z(abn_activation activation, double param, double size) {
    const double slope = slope_of_lines(activation, param);
    if (slope > 0) return slope > 1 ? size * slope : size;
    const double most_negative = has_minimum(activation) ? fmax(minimum(activation), -size) : -size;
    return fmax(fabs(abn_activation_value(activation, param, size)),
                fabs(abn_activation_value(activation, param, most_negative)));
}

double abn_activation_error_at(abn_activation activation, double param, double y, double size) {
    if (slope_of_lines(activation, param) > 0) return fabs(y);
    if (fabs(y - minimum(activation)) < size) y = minimum(activation) + size;
    return fabs(abn_activation_value(activation, param, y) / abn_activation_derivative(activation, param, y));
}
