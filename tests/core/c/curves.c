#include "curves.h"

#include <math.h>

#include "twin.h"

/* Of selu: scale, and scale times alpha. */
static const double selu_scale = 1.0507009873554804934, selu_alpha = 1.7580993408473768600;

static double sigmoid(double y) { return y >= 0 ? 1 / (1 + exp(-y)) : exp(y) / (1 + exp(y)); }

static double softplus(double y) { return fmax(y, 0) + log1p(exp(-fabs(y))); }

/* NaN propagates. */
static double clamp(double low, double high, double y) { return y < low ? low : y > high ? high : y; }

/* 1 - tanh(a)^2 without cancellation, for a >= 0 */
static double one_minus_tanh_squared(double a) {
    const double decay = exp(-a);
    const double sum = 1 + decay * decay;
    return 4 * decay * decay / (sum * sum);
}

/* The gate of an activation with a minimum, z = y * gate(y); it rises from 0 to 1. */
static double gate_of(abn_activation activation, double y) {
    switch (activation) {
        case ABN_SILU: return sigmoid(y);
        case ABN_GELU: return erfc(-y / sqrt(2)) / 2;
        case ABN_GELU_TANH: return sigmoid(2 * sqrt(M_2_PI) * (y + 0.044715 * y * y * y));
        case ABN_MISH: return tanh(softplus(y));
        default: return 1;
    }
}

static double slope_of_gate(abn_activation activation, double y) {
    const double gate = gate_of(activation, y);
    switch (activation) {
        case ABN_SILU: return gate * sigmoid(-y);
        case ABN_GELU: return exp(-y * y / 2) / sqrt(2 * M_PI);
        case ABN_GELU_TANH: return gate * gate_of(activation, -y) * 2 * sqrt(M_2_PI) * (1 + 3 * 0.044715 * y * y);
        case ABN_MISH: return sigmoid(y) * one_minus_tanh_squared(softplus(y));
        default: return 0;
    }
}

double curve_value(abn_activation activation, double param, double y) {
    switch (activation) {
        case ABN_LEAKY_RELU:
        case ABN_PRELU: return y >= 0 ? y : param * y;
        case ABN_ELU: return y >= 0 ? y : param * expm1(y);
        case ABN_CELU: return y >= 0 ? y : param * expm1(y / param);
        case ABN_SELU: return y >= 0 ? selu_scale * y : selu_alpha * expm1(y);
        case ABN_SOFTPLUS: return softplus(y);
        case ABN_SIGMOID: return sigmoid(y);
        case ABN_TANH: return tanh(y);
        case ABN_RELU: return y < 0 ? 0 : y; /* NaN propagates */
        case ABN_RELU6: return clamp(0, 6, y);
        case ABN_HARDSIGMOID: return clamp(0, 1, y / 6 + 0.5);
        case ABN_HARDSWISH: return y <= -3 ? 0 : y >= 3 ? y : y * (y + 3) / 6;
        default: return y * gate_of(activation, y);
    }
}

double curve_slope(abn_activation activation, double param, double y) {
    switch (activation) {
        case ABN_LEAKY_RELU:
        case ABN_PRELU: return y >= 0 ? 1 : param;
        case ABN_ELU: return y >= 0 ? 1 : param * exp(y);
        case ABN_CELU: return y >= 0 ? 1 : exp(y / param);
        case ABN_SELU: return y >= 0 ? selu_scale : selu_alpha * exp(y);
        case ABN_SOFTPLUS: return sigmoid(y);
        case ABN_SIGMOID: return sigmoid(y) * sigmoid(-y);
        case ABN_TANH: return 4 * sigmoid(2 * y) * sigmoid(-2 * y);
        case ABN_RELU: return y >= 0;
        case ABN_RELU6: return y > 0 && y < 6;
        case ABN_HARDSIGMOID: return y > -3 && y < 3 ? 1.0 / 6 : 0;
        case ABN_HARDSWISH: return y <= -3 ? 0 : y >= 3 ? 1 : (2 * y + 3) / 6;
        case ABN_IDENTITY: return 1; /* of NaN as well */
        default: return gate_of(activation, y) + y * slope_of_gate(activation, y);
    }
}

double curve_slope_terms(abn_activation activation, double param, double y) {
    if (activation == ABN_HARDSWISH && fabs(y) < 3) return fabs(y) / 3 + 0.5;
    return abn_activation_table[activation].inverse == ABN_FROM_Z_AND_SIDE
               ? gate_of(activation, y) + fabs(y * slope_of_gate(activation, y))
               : fabs(curve_slope(activation, param, y));
}

/* The exponential of elu and the like is z + alpha, or 1 + z / alpha. */
double curve_slope_terms_of_z(abn_activation activation, double param, double y) {
    const double terms = curve_slope_terms(activation, param, y);
    switch (activation) {
        case ABN_ELU: return fmax(terms, param);
        case ABN_CELU: return 1;
        case ABN_SELU: return selu_alpha;
        default: return terms;
    }
}

double curve_distance_to_kink(abn_activation activation, double y) {
    switch (activation) {
        case ABN_LEAKY_RELU:
        case ABN_PRELU:
        case ABN_ELU:
        case ABN_SELU:
        case ABN_RELU: return fabs(y);
        case ABN_RELU6: return fmin(fabs(y), fabs(y - 6));
        case ABN_HARDSIGMOID:
        case ABN_HARDSWISH: return fmin(fabs(y + 3), fabs(y - 3));
        default: return INFINITY;
    }
}

int curve_is_piecewise_linear(abn_activation activation) {
    switch (activation) {
        case ABN_IDENTITY:
        case ABN_LEAKY_RELU:
        case ABN_PRELU:
        case ABN_RELU:
        case ABN_RELU6:
        case ABN_HARDSIGMOID: return 1;
        default: return 0;
    }
}
