/* The inverses of silu, gelu, gelu_tanh and mish for float. Included by activation_kernels.c. */
#ifndef ABN_KERNEL_GATED_H
#define ABN_KERNEL_GATED_H

#include "curves.h"

/* On each of eight intervals y - z is a polynomial in v = sqrt(s + zero_s), s = +-sqrt(z - least z); v = 0 at z = -0.
 * Its derivative gives the slope. The outer root flattens the logarithmic left side. Far left: Halley's method.
 * Measured to be slower: Halley's method for all elements; rational functions, which need degree 10 in s, or 9 on two
 * intervals; one vector at a time. */
#define DIFFERENCES_AT_ONCE 2 /* vectors */

typedef struct {
    const real (*rows)[8]; /* a column per interval: its centre, then the coefficients */
    const real *interval;  /* a cubic of v; rounded, it is the interval's number */
    double least_z, zero_s, least_v_square, largest_s;
} gated_polynomials;

#define GATED_POLYNOMIALS(lower, upper)                                                                    \
    (gated_polynomials) {                                                                                  \
        lower##_polynomials, lower##_interval, upper##_LEAST_Z, upper##_ZERO_S, upper##_POLYNOMIALS_LEAST, \
            upper##_POLYNOMIALS_LARGEST_S                                                                  \
    }

INLINE gated_polynomials gated_polynomials_of(abn_activation activation) {
    switch (activation) {
        case ABN_GELU: return GATED_POLYNOMIALS(gelu, GELU);
        case ABN_GELU_TANH: return GATED_POLYNOMIALS(gelu_tanh, GELU_TANH);
        case ABN_MISH: return GATED_POLYNOMIALS(mish, MISH);
        case ABN_SILU:
        default: return GATED_POLYNOMIALS(silu, SILU);
    }
}

/* s = +-sqrt(z - least z), clamped to the range of the fits */
INLINE vec gated_s(abn_activation activation, vec z, mask left) {
    const gated_polynomials fit = gated_polynomials_of(activation);
    const real least_z = (real)fit.least_z, rest = (real)(fit.least_z - least_z);
    const vec above = v_sub(v_sub(z, v_set1(least_z)), v_set1(rest));
    const vec size = v_min(v_set1((real)fit.largest_s), v_sqrt(v_max(v_set1(LEAST_SQUARE), above)));
    return v_select(left, v_neg(size), size);
}

/* v, clamped likewise */
INLINE vec gated_v(abn_activation activation, vec s) {
    const gated_polynomials fit = gated_polynomials_of(activation);
    return v_sqrt(v_max(v_set1((real)fit.least_v_square), v_add(s, v_set1((real)fit.zero_s))));
}

/* y - z and its derivative by v, of `count` vectors at once, so that their instructions overlap. */
INLINE void gated_difference(abn_activation activation, const real *v, int count, real *difference, real *derivative) {
    const gated_polynomials fit = gated_polynomials_of(activation);
    ivec interval[DIFFERENCES_AT_ONCE];
    vec d[DIFFERENCES_AT_ONCE], sum[DIFFERENCES_AT_ONCE], slope[DIFFERENCES_AT_ONCE];
    UNROLLED for (int k = 0; k < count; k++) {
        const vec v_k = v_load_real(v + k * W);
        interval[k] = v_bits(v_add(v_polynomial(v_k, fit.interval, 4), v_set1(TWO_TO_MANTISSA * (real)1.5)));
        d[k] = v_sub(v_k, v_lookup(fit.rows[0], interval[k]));
        slope[k] = v_lookup(fit.rows[9], interval[k]);
        sum[k] = v_fma(slope[k], d[k], v_lookup(fit.rows[8], interval[k]));
    }
    UNROLLED for (int i = 7; i > 0; i--) {
        UNROLLED for (int k = 0; k < count; k++) {
            slope[k] = v_fma(slope[k], d[k], sum[k]);
            sum[k] = v_fma(sum[k], d[k], v_lookup(fit.rows[i], interval[k]));
        }
    }
    UNROLLED for (int k = 0; k < count; k++) {
        v_store_real(difference + k * W, sum[k]);
        v_store_real(derivative + k * W, slope[k]);
    }
}

/* True left of the fitted intervals. */
INLINE mask gated_tail(abn_activation activation, vec s) {
    const gated_polynomials fit = gated_polynomials_of(activation);
    return v_lt(v_add(s, v_set1((real)fit.zero_s)), v_set1((real)fit.least_v_square));
}

#endif
