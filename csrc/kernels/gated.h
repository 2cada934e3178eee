/* The inverses of silu, gelu, gelu_tanh and mish for float. Included by activation_kernels.c. */
#ifndef ABN_KERNEL_GATED_H
#define ABN_KERNEL_GATED_H

#include "curves.h"

/* On each of eight intervals y - z is a polynomial in v = sqrt(s + zero_s), s = +-sqrt(z - least z); v = 0 at z = -0.
 * Its derivative gives the slope. The outer root flattens the logarithmic left side. Far left: Halley's method.
 * Measured to be slower: Halley's method for all elements; rational functions, which need degree 10 in s, or 9 on two
 * intervals; one vector at a time. */
#define RISES_AT_ONCE 2

typedef struct {
    const real (*pieces)[8], *number;
    double least_z, zero_s, least, largest_s;
} gated_pieces;

#define GATED_PIECES(lower, upper)                                                                   \
    (gated_pieces) {                                                                                 \
        lower##_pieces, lower##_piece_number, upper##_LEAST_Z, upper##_ZERO_S, upper##_PIECES_LEAST, \
            upper##_PIECES_LARGEST_S                                                                 \
    }

INLINE gated_pieces gated_pieces_of(abn_activation activation) {
    switch (activation) {
        case ABN_GELU: return GATED_PIECES(gelu, GELU);
        case ABN_GELU_TANH: return GATED_PIECES(gelu_tanh, GELU_TANH);
        case ABN_MISH: return GATED_PIECES(mish, MISH);
        default: return GATED_PIECES(silu, SILU);
    }
}

/* s = +-sqrt(z - least z), clamped to the range of the fits */
INLINE vec gated_s(abn_activation activation, vec z, mask left) {
    const gated_pieces fit = gated_pieces_of(activation);
    const real least_z = (real)fit.least_z, rest = (real)(fit.least_z - least_z);
    const vec above = v_sub(v_sub(z, v_set1(least_z)), v_set1(rest));
    const vec size = v_min(v_set1((real)fit.largest_s), v_sqrt(v_max(v_set1(LEAST_SQUARE), above)));
    return v_select(left, v_neg(size), size);
}

INLINE vec gated_v(abn_activation activation, vec s) {
    const gated_pieces fit = gated_pieces_of(activation);
    return v_sqrt(v_max(v_set1((real)fit.least), v_add(s, v_set1((real)fit.zero_s))));
}

/* rise = y - z and its derivative by v, of `count` vectors at once: a single chain of instructions would wait. */
INLINE void gated_rise(abn_activation activation, const real *v, int count, real *rise, real *derivative) {
    const gated_pieces fit = gated_pieces_of(activation);
    ivec piece[RISES_AT_ONCE];
    vec d[RISES_AT_ONCE], sum[RISES_AT_ONCE], slope[RISES_AT_ONCE];
    UNROLLED for (int k = 0; k < count; k++) {
        const vec at = v_load_real(v + k * W);
        piece[k] = v_bits(v_add(v_polynomial(at, fit.number, 4), v_set1(TWO_TO_MANTISSA * (real)1.5)));
        d[k] = v_sub(at, v_lookup(fit.pieces[0], piece[k]));
        slope[k] = v_lookup(fit.pieces[9], piece[k]);
        sum[k] = v_fma(slope[k], d[k], v_lookup(fit.pieces[8], piece[k]));
    }
    UNROLLED for (int i = 7; i > 0; i--) {
        UNROLLED for (int k = 0; k < count; k++) {
            slope[k] = v_fma(slope[k], d[k], sum[k]);
            sum[k] = v_fma(sum[k], d[k], v_lookup(fit.pieces[i], piece[k]));
        }
    }
    UNROLLED for (int k = 0; k < count; k++) {
        v_store_real(rise + k * W, sum[k]);
        v_store_real(derivative + k * W, slope[k]);
    }
}

INLINE mask gated_tail(abn_activation activation, vec s) {
    const gated_pieces fit = gated_pieces_of(activation);
    return v_lt(v_add(s, v_set1((real)fit.zero_s)), v_set1((real)fit.least));
}

#endif
