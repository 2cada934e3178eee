#include "activations.h"

#include <math.h>

const abn_activation_info abn_activation_table[ABN_ACTIVATIONS] = {
#define INFO(upper, lower, invertible, has_param) {#lower, invertible, has_param},
    ABN_EACH_ACTIVATION(INFO)
#undef INFO
};

/* elu's z nears -alpha, where its spacing hides y. With 1 + z/alpha below this, the recovered y and the slope are off by
 * more than about 3e-5 (float), 1e-8 (double), or a few units in the last place of a half type. */
static double saturation(abn_dtype dtype) {
    static const double nearest[ABN_DTYPES] = {0x1p-9, 0x1p-24, 0x1p-5, 0x1p-4};
    return nearest[dtype];
}

abn_escape_rule abn_escape_rule_of(abn_activation activation, double param, abn_dtype dtype) {
    if (activation != ABN_ELU) return (abn_escape_rule){-INFINITY, -INFINITY};
    const double nearest = saturation(dtype);
    return (abn_escape_rule){-param * (1 - nearest), log(nearest)};
}

double abn_activation_value(abn_activation activation, double param, double y) {
    switch (activation) {
        case ABN_LEAKY_RELU: return y >= 0 ? y : param * y;
        case ABN_ELU: return y >= 0 ? y : param * expm1(y);
        case ABN_RELU: return y < 0 ? 0 : y;
        default: return y;
    }
}

double abn_activation_inverse(abn_activation activation, double param, double z) {
    switch (activation) {
        case ABN_LEAKY_RELU: return z >= 0 ? z : z / param;
        case ABN_ELU: return z >= 0 ? z : log1p(z / param);
        default: return z;
    }
}

double abn_activation_derivative(abn_activation activation, double param, double y) {
    switch (activation) {
        case ABN_LEAKY_RELU: return y >= 0 ? 1 : param;
        case ABN_ELU: return y >= 0 ? 1 : param * exp(y);
        case ABN_RELU: return y >= 0;
        default: return 1;
    }
}

double abn_activation_least_z(abn_activation activation, double param, double size) {
    switch (activation) {
        case ABN_LEAKY_RELU: return fmin(1, param) * size;
        case ABN_ELU: return fmin(1, param) * fmin(1, size);
        default: return size;
    }
}

double abn_activation_largest_z(abn_activation activation, double param, double size) {
    switch (activation) {
        case ABN_LEAKY_RELU: return fmax(1, param) * size;
        case ABN_ELU: return fmax(size, param * fmin(1, size));
        default: return size;
    }
}

double abn_activation_error_at(abn_activation activation, double y) {
    return activation == ABN_ELU && y < 0 ? expm1(-y) : fabs(y);
}
