/* exp, expm1, log and log1p on vec. Errors below 2 ulp in float and double (of log where the result is not near 0);
 * subnormal results of exp may be flushed to 0. The polynomials were fitted at Chebyshev nodes. */
#ifndef ABN_EXP_LOG_H
#define ABN_EXP_LOG_H

#include <math.h>

#include "vector.h"

#ifdef ABN_DTYPE_FLOAT64
#define LN2_HIGH 0x1.62e42fef00000p-1 /* 32 bits: n * LN2_HIGH is exact */
#define LN2_LOW 0x1.473de6af278edp-34
#define LOG2_E 0x1.71547652b82fep+0
#define SQRT_HALF_BITS 0x3fe6a09e667f3bcd
#define EXP_ZERO -708.9       /* below: exp is 0 */
#define EXP_INFINITY 709.9    /* above: exp is infinite */
#define EXPM1_MINUS_ONE -50.0 /* below: expm1 is -1 */
#define EXPM1_INFINITY 709.4  /* above: expm1 is infinite */
static const real expm1_polynomial[] = {
    /* (expm1(r) - r) / r^2, |r| <= ln(2)/2 */
    0x1.0000000000000p-1,  0x1.5555555555555p-3,  0x1.5555555555557p-5,  0x1.1111111111111p-7,
    0x1.6c16c16c15a6cp-10, 0x1.a01a01a0196aep-13, 0x1.a01a01a9e80fep-16, 0x1.71de3a5aa6edbp-19,
    0x1.27e4d41d6f553p-22, 0x1.ae642c8730352p-26, 0x1.1f7f2000f4cf3p-29, 0x1.61bfa22dd3437p-33,
};
static const real log1p_polynomial[] = {
    /* (2 atanh(s) - 2 s) / s^3 in s^2 */
    0x1.5555555555555p-1, 0x1.9999999999a38p-2, 0x1.2492492476cccp-2, 0x1.c71c720159177p-3,
    0x1.745cf9048dd95p-3, 0x1.3b1c355a8f7a2p-3, 0x1.0fbe95d716020p-3, 0x1.0c039c49989c6p-3,
};
#else
#define LN2_HIGH 0x1.62e4p-1f /* 14 bits: n * LN2_HIGH is exact */
#define LN2_LOW 0x1.7f7d1cp-20f
#define LOG2_E 0x1.715476p+0f
#define SQRT_HALF_BITS 0x3f3504f3
#define EXP_ZERO -88.1f
#define EXP_INFINITY 88.9f
#define EXPM1_MINUS_ONE -30.0f
#define EXPM1_INFINITY 88.37f
static const real expm1_polynomial[] = {
    /* (expm1(r) - r) / r^2, |r| <= ln(2)/2 */
    0x1.000000p-1f, 0x1.5554dcp-3f, 0x1.555518p-5f, 0x1.120be2p-7f, 0x1.6d117cp-10f,
};
static const real log1p_polynomial[] = {
    /* (log1p(f) - f + f^2/2) / f^3 */
    0x1.555554p-2f,  -0x1.fffffcp-3f, 0x1.999d5ap-3f,  -0x1.555b4ap-3f, 0x1.23d21ap-3f,
    -0x1.fcf4c6p-4f, 0x1.dea282p-4f,  -0x1.d635bcp-4f, 0x1.1d8ea6p-4f,
};
#endif

#define EXPONENT_BIAS ((1 << (8 * sizeof(real) - REAL_MANTISSA - 2)) - 1)
#define TWO_TO_MANTISSA ((real)((real_bits)1 << REAL_MANTISSA))
#define MANTISSA_MASK (((real_bits)1 << REAL_MANTISSA) - 1)
#define TERMS(polynomial) ((int)(sizeof(polynomial) / sizeof *(polynomial)))

INLINE vec v_polynomial(vec x, const real *coefficients, int terms) {
    vec sum = v_set1(coefficients[terms - 1]);
    UNROLLED for (int i = terms - 2; i >= 0; i--) sum = v_fma(sum, x, v_set1(coefficients[i]));
    return sum;
}

/* y = n ln(2) + r, |r| <= ln(2)/2. Returns r; *power = 2^n, 0 or infinity just outside the normal numbers. Adding
 * 2^mantissa rounds y / ln(2) to the integer n; n + bias is then in the low bits of the sum. */
INLINE vec v_exp_reduce(vec y, vec *power) {
    const vec shift = v_set1(TWO_TO_MANTISSA + EXPONENT_BIAS);
    const vec shifted = v_fma(y, v_set1(LOG2_E), shift), n = v_sub(shifted, shift);
    *power = v_from_bits(i_shift_left(v_bits(shifted), REAL_MANTISSA));
    return v_fma(n, v_set1(-LN2_LOW), v_fma(n, v_set1(-LN2_HIGH), y));
}

INLINE vec v_expm1_reduced(vec r) {
    return v_fma(v_mul(r, r), v_polynomial(r, expm1_polynomial, TERMS(expm1_polynomial)), r);
}

/* NaN propagates. */
INLINE vec v_exp_clamp(vec y) { return v_max(v_set1(EXP_ZERO), v_min(v_set1(EXP_INFINITY), y)); }

/* exp(y + low), for |low| so small that reducing y alone is enough. */
INLINE vec v_exp_sum(vec y, vec low) {
    vec power;
    const vec r = v_exp_reduce(v_exp_clamp(y), &power);
    return v_mul(v_add(v_expm1_reduced(v_add(r, low)), v_set1(1)), power);
}

INLINE vec v_exp(vec y) {
    vec power;
    const vec r = v_exp_reduce(v_exp_clamp(y), &power);
    return v_mul(v_add(v_expm1_reduced(r), v_set1(1)), power);
}

/* exp(y) - 1 for y <= EXPM1_INFINITY. */
INLINE vec v_expm1_finite(vec y) {
    vec power;
    const vec r = v_exp_reduce(v_max(v_set1(EXPM1_MINUS_ONE), y), &power);
    return v_fma(v_expm1_reduced(r), power, v_sub(power, v_set1(1)));
}

INLINE vec v_expm1(vec y) { return v_select(v_lt(v_set1(EXPM1_INFINITY), y), v_set1(INFINITY), v_expm1_finite(y)); }

/* log(x + lost) for a normal x > 0 and |lost| below an ulp of x. x = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2)). */
INLINE vec v_log_sum(vec x, vec lost) {
    const ivec shifted = i_add(v_bits(x), i_set1(((real_bits)EXPONENT_BIAS << REAL_MANTISSA) - SQRT_HALF_BITS));
    const ivec biased = i_shift_right(shifted, REAL_MANTISSA); /* k + bias */
    const ivec magic = v_bits(v_set1(TWO_TO_MANTISSA));
    const vec k = v_sub(v_from_bits(i_or(biased, magic)), v_set1(TWO_TO_MANTISSA + EXPONENT_BIAS));
    const vec m = v_from_bits(i_add(i_and(shifted, i_set1(MANTISSA_MASK)), i_set1(SQRT_HALF_BITS)));
    const vec f = v_sub(m, v_set1(1));
    const vec half_square = v_mul(v_set1((real)0.5), v_mul(f, f));
    const vec low = v_fma(k, v_set1(LN2_LOW), v_div(lost, x));
#ifdef ABN_DTYPE_FLOAT64
    const vec s = v_div(f, v_add(f, v_set1(2)));
    const vec square = v_mul(s, s);
    const vec rest = v_mul(square, v_polynomial(square, log1p_polynomial, TERMS(log1p_polynomial)));
    const vec tail = v_fma(s, v_add(half_square, rest), low);
#else
    const vec cube = v_mul(v_mul(f, f), f);
    const vec tail = v_fma(cube, v_polynomial(f, log1p_polynomial, TERMS(log1p_polynomial)), low);
#endif
    return v_fma(k, v_set1(LN2_HIGH), v_add(f, v_sub(tail, half_square)));
}

INLINE vec v_log(vec x) { return v_log_sum(x, v_zero()); }

/* log(1 + u), for a normal 1 + u > 0 */
INLINE vec v_log1p(vec u) {
    const vec x = v_add(u, v_set1(1));
    return v_log_sum(x, v_sub(u, v_sub(x, v_set1(1)))); /* the rounding error of 1 + u */
}

#endif
