/* The activations on vec: z from y, the gradient from y, and y and the gradient from z.
 *
 * `activation` is a constant wherever these are called, so that each kernel is compiled for one activation. */
#ifndef ABN_KERNEL_ACTIVATIONS_H
#define ABN_KERNEL_ACTIVATIONS_H

#include "../abn.h"
#include "exp_log.h"
#include "vector.h"

typedef struct {
    vec param;
    vec inverse;      /* 1 / param */
    vec escape_below; /* elements with a smaller z are in the escape list */
} activation_constants;

INLINE activation_constants activation_load(double param, double escape_below) {
    return (activation_constants){v_set1((real)param), v_set1((real)(1 / param)), v_set1((real)escape_below)};
}

INLINE vec activate(abn_activation activation, vec y, activation_constants k) {
    switch (activation) {
        case ABN_LEAKY_RELU: return v_select(v_ge(y, v_zero()), y, v_mul(y, k.param));
        case ABN_ELU: return v_select(v_ge(y, v_zero()), y, v_mul(v_expm1_negative(v_min(v_zero(), y)), k.param));
        case ABN_RELU: return v_select(v_lt(y, v_zero()), v_zero(), y);
        default: return y;
    }
}

/* dy = dz * activation'(y) */
INLINE vec activation_gradient(abn_activation activation, vec y, vec dz, activation_constants k) {
    switch (activation) {
        case ABN_LEAKY_RELU: return v_select(v_ge(y, v_zero()), dz, v_mul(dz, k.param));
        case ABN_ELU:
            return v_select(v_ge(y, v_zero()), dz, v_mul(dz, v_mul(v_exp_negative(v_min(v_zero(), y)), k.param)));
        case ABN_RELU: return v_select(v_ge(y, v_zero()), dz, v_zero());
        default: return dz;
    }
}

/* y from z in place of z, dy in place of dz. Escaped elements come back with dy = 0 and a finite y. */
INLINE void activation_invert(abn_activation activation, vec *z, vec *dz, activation_constants k) {
    const mask positive = v_ge(*z, v_zero());
    switch (activation) {
        case ABN_LEAKY_RELU:
            *dz = v_select(positive, *dz, v_mul(*dz, k.param));
            *z = v_select(positive, *z, v_mul(*z, k.inverse));
            return;
        case ABN_ELU: {
            const vec gradient = v_select(v_lt(*z, k.escape_below), v_zero(), v_mul(*dz, v_add(*z, k.param)));
            const vec within = v_min(v_zero(), v_max(k.escape_below, *z));
            *dz = v_select(positive, *dz, gradient);
            *z = v_select(positive, *z, v_log1p_negative(v_mul(within, k.inverse)));
            return;
        }
        default: return;
    }
}

#endif
