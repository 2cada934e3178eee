/* The cheap activations on vec: z from y, the gradient from y, and y and the gradient from z. Whole tiles go through them
 * in one pass. curves.h has all activations.
 *
 * `activation` is a constant wherever these are called, so that each kernel is compiled for one activation. */
#ifndef ABN_KERNEL_ACTIVATIONS_H
#define ABN_KERNEL_ACTIVATIONS_H

#include "../abn.h"
#include "vector.h"

typedef struct {
    vec param;
    vec inverse; /* 1 / param */
} activation_constants;

INLINE activation_constants activation_load(double param) {
    return (activation_constants){v_set1((real)param), v_set1((real)(1 / param))};
}

INLINE vec activate(abn_activation activation, vec y, activation_constants k) {
    switch (activation) {
        case ABN_LEAKY_RELU: return v_select(v_ge(y, v_zero()), y, v_mul(y, k.param));
        case ABN_RELU: return v_select(v_lt(y, v_zero()), v_zero(), y);
        default: return y;
    }
}

/* dy = dz * activation'(y) */
INLINE vec activation_gradient(abn_activation activation, vec y, vec dz, activation_constants k) {
    switch (activation) {
        case ABN_LEAKY_RELU: return v_select(v_ge(y, v_zero()), dz, v_mul(dz, k.param));
        case ABN_RELU: return v_mul(dz, v_select(v_ge(y, v_zero()), v_set1(1), v_zero())); /* NaN stays */
        default: return dz;
    }
}

/* Was y below 0? Rounding leaves -0.0 of what was just below, and of nothing else (forward.c sees to that). NaN counts as
 * below, as it does where y is compared. */
INLINE mask is_left_of_zero(vec z) { return v_signs(v_max(z, v_set1(-LARGEST_REAL))); }

/* y from z in place of z, dy in place of dz. */
INLINE void activation_invert(abn_activation activation, vec *z, vec *dz, activation_constants k) {
    if (activation != ABN_LEAKY_RELU) return;
    const mask left = is_left_of_zero(*z);
    *dz = v_select(left, v_mul(*dz, k.param), *dz);
    *z = v_select(left, v_mul(*z, k.inverse), *z);
}

#endif
