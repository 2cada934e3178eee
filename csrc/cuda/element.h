/* The arithmetic of one element. The activations are those of the CPU (kernels/curves.h), on vectors of one lane. */
#ifndef ABN_CUDA_ELEMENT_H
#define ABN_CUDA_ELEMENT_H

#include "../kernels/curves.h"
#include "walk.h"

/* Macros of the compilation: ABN_ACTIVATION, an abn_activation; ABN_KEEPS, what the forward keeps: */
#define KEEPS_Z 0    /* z, which may be written over x */
#define KEEPS_X 1    /* x */
#define KEEPS_XHAT 2 /* xhat, over x; z is another array */
#define KEEPS_Y 3    /* y, over x; z is another array */
/* ABN_RESIDUAL: 1 if there is one. ABN_GUARD: 1 if there is a side buffer for guarded channels. */

/* True if backward recovers xhat from y, so that channels with a tiny weight must be guarded. */
#define FROM_Y (ABN_KEEPS == KEEPS_Z || ABN_KEEPS == KEEPS_Y)

INLINE int has_minimum(abn_activation activation) {
#define CASE(upper, lower, inverse, param, traits) \
    case ABN_##upper: return (inverse) == ABN_FROM_Z_AND_SIDE;
    switch (activation) {
        ABN_EACH_ACTIVATION(CASE)
        default: return 0;
    }
#undef CASE
}

INLINE real activate(real y, real param) {
    if (!has_minimum(ABN_ACTIVATION)) return curve_value(ABN_ACTIVATION, y, param);
    const real within = gated_clamp_y(y);
    return gated_value(ABN_ACTIVATION, within, gate_exp(ABN_ACTIVATION, within));
}

/* ---- forward ------------------------------------------------------------------------------------------------- */

typedef struct {
    real centre, scale, shift, xhat_scale, xhat_shift, param;
    real weight, bias; /* y = xhat * weight + bias + residual; for channels whose xhat is saved */
    int32_t slot;
} forward_constants;

INLINE real affine_of(real x, real centre, real scale, real shift) { return v_fma(v_sub(x, centre), scale, shift); }

/* y + 0: backward reads z = -0.0 as y < 0, so no other y may be -0.0. */
INLINE real y_of(const forward_constants *k, real x, real residual) {
    const real y = affine_of(x, k->centre, k->scale, k->shift);
    return (ABN_RESIDUAL ? v_add(y, residual) : y) + (real)0;
}

/* *kept becomes what is stored over x. Returns z, computed from the rounded kept value, so that z can be recomputed. */
INLINE real forward_element(const forward_constants *k, real x, real residual, real *kept) {
#if ABN_KEEPS == KEEPS_XHAT
    *kept = to_real(to_storage(affine_of(x, k->centre, k->xhat_scale, k->xhat_shift)));
    const real y = v_fma(*kept, k->weight, k->bias);
    return activate(ABN_RESIDUAL ? v_add(y, residual) : y, k->param);
#elif ABN_KEEPS == KEEPS_Y
    *kept = to_real(to_storage(y_of(k, x, residual)));
    return activate(*kept, k->param);
#else
    *kept = activate(y_of(k, x, residual), k->param);
    return *kept;
#endif
}

/* ---- backward ------------------------------------------------------------------------------------------------ */

typedef struct {
    real centre, scale, shift;
    activation_constants activation; /* the parameter and its inverse */
    int32_t slot;
} backward_constants;

typedef struct {
    real dy, v, dparam;
} backward_element;

/* True for activations whose inverse is a product with the inverse of the parameter, not a division per element. */
#define IS_LEAKY (ABN_ACTIVATION == ABN_LEAKY_RELU || ABN_ACTIVATION == ABN_PRELU)

/* y and activation'(y) from z. z = -0.0 is a y just below 0. */
INLINE real invert(real z, activation_constants k, real *slope) {
    real y = z;
    *slope = 1;
    if (IS_LEAKY)
        activation_invert(ABN_LEAKY_RELU, &y, slope, k);
    else
        curve_invert(ABN_ACTIVATION, &y, slope, k.param);
    return y;
}

/* guarded: xhat of an element of a guarded channel, which then takes the place of v. With FROM_Y, v here is
 * y - residual: the sums subtract the centre, the second pass has it in its constants. */
INLINE backward_element recover(const backward_constants *k, real source, real residual, real dz, int is_guarded,
                                real guarded) {
    backward_element e;
    real y, slope;
#if FROM_Y
    if (ABN_KEEPS == KEEPS_Z)
        y = invert(source, k->activation, &slope);
    else
        y = source;
    e.v = ABN_RESIDUAL ? v_sub(y, residual) : y;
    if (is_guarded) {
        e.v = guarded;
        if (ABN_KEEPS == KEEPS_Z) { /* prelu with a slope of 0 or below has no inverse */
            y = v_fma(guarded, k->scale, k->shift);
            y = ABN_RESIDUAL ? v_add(y, residual) : y;
            if (ABN_ACTIVATION == ABN_PRELU) slope = curve_slope(ABN_ACTIVATION, y, k->activation.param);
        }
    }
    if (ABN_KEEPS == KEEPS_Y) slope = curve_slope(ABN_ACTIVATION, y, k->activation.param);
#else
    e.v = v_sub(source, k->centre);
    y = v_fma(e.v, k->scale, k->shift);
    y = ABN_RESIDUAL ? v_add(y, residual) : y;
    slope = curve_slope(ABN_ACTIVATION, y, k->activation.param);
    (void)is_guarded, (void)guarded;
#endif
    e.dy = ABN_ACTIVATION == ABN_IDENTITY ? dz : v_mul(dz, slope);
    e.dparam = ABN_ACTIVATION == ABN_PRELU ? v_mul(dz, v_min(v_zero(), y)) : 0;
    return e;
}

#endif
