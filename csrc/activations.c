#include "activations.h"

#include <math.h>

const abn_activation_info abn_activation_table[ABN_ACTIVATIONS] = {
#define INFO(upper, lower, invertible, has_param) {#lower, invertible, has_param},
    ABN_EACH_ACTIVATION(INFO)
#undef INFO
};

/* elu's z nears -alpha, where its spacing hides y. With 1 + z/alpha below this the recovered y is off by more than
 * about 1e-4 (float), 1e-8 (double), or a few units in the last place of a half type. */
static double saturation(abn_dtype dtype) {
    static const double nearest[ABN_DTYPES] = {0x1p-12, 0x1p-24, 0x1p-5, 0x1p-4};
    return nearest[dtype];
}

abn_escape_rule abn_escape_rule_of(abn_activation activation, double param, abn_dtype dtype) {
    if (activation != ABN_ELU) return (abn_escape_rule){0, -INFINITY, -INFINITY};
    const double nearest = saturation(dtype), margin = 0.5; /* z is rounded; the margin is wider than that */
    return (abn_escape_rule){1, -param * (1 - nearest), log(nearest) + margin};
}

double abn_activation_derivative(abn_activation activation, double param, double y) {
    switch (activation) {
        case ABN_LEAKY_RELU: return y >= 0 ? 1 : param;
        case ABN_ELU: return y >= 0 ? 1 : param * exp(y);
        case ABN_RELU: return y >= 0;
        default: return 1;
    }
}

double abn_activation_least_slope(abn_activation activation, double param) {
    return activation == ABN_LEAKY_RELU && param < 1 ? param : 1;
}
