/* The cheap activations on vec: z from y, the slope from y, and y and the slope from z. Kernels of whole tiles
 * call them in a single pass. curves.h has all activations.
 *
 * `activation` is a compile-time constant in every call, so that each kernel is compiled for one activation. */
#ifndef ABN_KERNEL_ACTIVATIONS_H
#define ABN_KERNEL_ACTIVATIONS_H

#include "../abn.h"
#include "vector.h"

typedef struct {
    vec param;
    vec inverse; /* 1 / param */
} activation_constants;

INLINE activation_constants activation_load(double param) {
    return LITERAL(activation_constants){v_set1((real)param), v_set1((real)(1 / param))};
}

/* Clamps to [low, high]; NaN propagates. */
INLINE vec v_clamp(double low, double high, vec y) { return v_min(v_set1((real)high), v_max(v_set1((real)low), y)); }

/* Returns `inside` for low < y < high, 0 otherwise and for NaN. */
INLINE vec v_between(double low, double high, vec y, double inside) {
    const vec below_high = v_select(v_lt(y, v_set1((real)high)), v_set1((real)inside), v_zero());
    return v_select(v_lt(v_set1((real)low), y), below_high, v_zero());
}

/* hardsigmoid; exactly 1 for y >= 3. */
INLINE vec hard_gate(vec y) { return v_mul(v_clamp(0, 6, v_add(y, v_set1(3))), v_set1((real)(1.0 / 6))); }

INLINE vec cheap_value(abn_activation activation, vec y, vec param) {
    switch (activation) {
        case ABN_LEAKY_RELU:
        case ABN_PRELU: return v_select(v_ge(y, v_zero()), y, v_mul(y, param));
        case ABN_RELU: return v_select(v_lt(y, v_zero()), v_zero(), y);
        case ABN_RELU6: return v_clamp(0, 6, y);
        case ABN_HARDSIGMOID: return hard_gate(y);
        case ABN_HARDSWISH: return v_mul(v_max(v_set1(-3), y), hard_gate(y)); /* max avoids -infinity * 0 */
        default: return y;
    }
}

INLINE vec cheap_slope(abn_activation activation, vec y, vec param) {
    switch (activation) {
        case ABN_LEAKY_RELU:
        case ABN_PRELU: return v_select(v_ge(y, v_zero()), v_set1(1), param);
        case ABN_RELU: return v_select(v_ge(y, v_zero()), v_set1(1), v_zero());
        case ABN_RELU6: return v_between(0, 6, y, 1);
        case ABN_HARDSIGMOID: return v_between(-3, 3, y, 1.0 / 6);
        case ABN_HARDSWISH: {
            const vec middle = v_mul(v_add(y, v_set1((real)1.5)), v_set1((real)(1.0 / 3)));
            const vec right = v_select(v_ge(y, v_set1(3)), v_set1(1), middle);
            return v_select(v_ge(v_set1(-3), y), v_zero(), right);
        }
        default: return v_set1(1);
    }
}

/* True if y was below 0: z has its sign bit set, or is NaN. A y just below 0 may be rounded to z = -0.0; forward.c
 * makes no other -0.0. NaN counts as negative, as in the slopes from y: y >= 0 is false. */
INLINE mask is_left_of_zero(vec z) { return v_signs(v_max(z, v_set1(-LARGEST_REAL))); }

/* In place, z -> y and dz -> dy. */
INLINE void activation_invert(abn_activation activation, vec *z, vec *dz, activation_constants k) {
    if (activation != ABN_LEAKY_RELU) return;
    const mask left = is_left_of_zero(*z);
    *dz = v_select(left, v_mul(*dz, k.param), *dz);
    *z = v_select(left, v_mul(*z, k.inverse), *z);
}

#endif
