/* The activations on vec: z from y, the slope from y, and both y and the slope from z.
 *
 * `activation` is a compile-time constant in every call, so that each loop is compiled for one activation. */
#ifndef ABN_CURVES_H
#define ABN_CURVES_H

#include "../activations.h"
#include "activations.h"
#include "curve_fits.h"
#include "exp_log.h"
#include "vector.h"

#ifdef ABN_DTYPE_FLOAT64
#define REAL_NORMAL 0x1p-1022
#define REAL_LARGEST 0x1.fffffffffffffp+1023
#define NEARLY_ONE 0x1.fffffffffffffp-1 /* the last number below 1 */
#define NORMAL_ZERO 39                  /* for |y| from here on, Phi is 0 or 1 */
#define GATED_IDENTITY(upper) 40        /* for z from here on, the gate is 1 */
#define LEAST_SIZE 1e-299               /* smallest |z| far left that is inverted */
#define LEAST_SQUARE 1e-14              /* smallest z - (least z) that is inverted */
#define HALLEY_STEPS 2
#define LINE_TO 0x1p-54 /* for |u| below this, exp(u) - 1 is u */
#else
#define REAL_NORMAL 0x1p-126f
#define REAL_LARGEST 0x1.fffffep+127f
#define NEARLY_ONE 0x1.fffffep-1f
#define NORMAL_ZERO 14
#define GATED_IDENTITY(upper) upper##_LARGEST_Z
#define LEAST_SIZE 1e-35f
#define LEAST_SQUARE 6e-8f
#define HALLEY_STEPS 1
#define LINE_TO 0x1p-25
#endif

INLINE vec v_neg(vec x) { return v_sub(v_zero(), x); }
INLINE vec v_inverse(vec x) { return v_div(v_set1(1), x); }

/* ---- elu, celu, selu: z = y * right for y >= 0, height * (exp(y * rate) - 1) else ------------------- */

typedef struct {
    vec right, height, rate;
    int is_celu; /* rate = 1 / height, which may be negative. Near 0 z = y, even if y * rate underflows. */
} exponential;

INLINE exponential exponential_of(abn_activation activation, vec param) {
    switch (activation) {
        case ABN_CELU: return LITERAL(exponential){v_set1(1), param, v_inverse(param), 1};
        case ABN_SELU: return LITERAL(exponential){v_set1(SELU_SCALE), v_set1(SELU_SCALE * SELU_ALPHA), v_set1(1), 0};
        case ABN_ELU:
        default: return LITERAL(exponential){v_set1(1), param, v_set1(1), 0};
    }
}

INLINE vec line_or_curve(exponential e, vec scaled, vec line, vec curve) {
    return e.is_celu ? v_select(v_lt(v_abs(scaled), v_set1((real)LINE_TO)), line, curve) : curve;
}

INLINE vec exponential_value(exponential e, vec y) {
    const vec scaled = v_mul(v_min(v_zero(), y), e.rate);
    const vec expm1 = e.is_celu ? v_expm1(scaled) : v_expm1_finite(scaled); /* scaled > 0 if celu's alpha is negative */
    const vec left = line_or_curve(e, scaled, y, v_mul(expm1, e.height));
    return v_select(v_lt(y, v_zero()), left, v_mul(y, e.right));
}

INLINE vec exponential_slope(exponential e, vec y) {
    const vec left = v_mul(v_exp(v_mul(v_min(v_zero(), y), e.rate)), v_mul(e.height, e.rate));
    return v_select(v_ge(y, v_zero()), e.right, left);
}

INLINE void exponential_invert(exponential e, vec *z, vec *slope) {
    const mask left = is_left_of_zero(*z);
    /* Clamped to finite numbers; elements that this changes are escaped (abn_escape_rule_of). */
    const vec ratio = v_max(v_set1(-NEARLY_ONE), v_min(v_zero(), v_mul(*z, v_inverse(e.height))));
    const vec y = line_or_curve(e, ratio, *z, v_mul(v_log1p(ratio), v_inverse(e.rate)));
    *slope = v_select(left, v_mul(v_add(v_max(v_neg(e.height), *z), e.height), e.rate), e.right);
    *z = v_select(left, y, v_mul(*z, v_inverse(e.right)));
}

/* ---- sigmoid, tanh, softplus ------------------------------------------------------------------------ */

/* exp(-|y|) */
INLINE vec decay(vec y) { return v_exp(v_neg(v_abs(y))); }

INLINE vec sigmoid_value(vec y) {
    const vec e = decay(y), right = v_inverse(v_add(e, v_set1(1)));
    return v_select(v_lt(y, v_zero()), v_mul(e, right), right);
}

INLINE vec sigmoid_slope(vec y) {
    const vec e = decay(y), right = v_inverse(v_add(e, v_set1(1)));
    return v_mul(v_mul(e, right), right);
}

/* tanh(|y|) = -t / (t + 2), t = exp(-2|y|) - 1 */
INLINE vec tanh_value(vec y) {
    const vec t = v_expm1_finite(v_mul(v_abs(y), v_set1(-2)));
    const vec size = v_div(t, v_add(t, v_set1(2)));
    return v_select(v_lt(y, v_zero()), size, v_neg(size));
}

INLINE vec tanh_slope(vec y) {
    const vec e = decay(v_add(y, y)), right = v_inverse(v_add(e, v_set1(1)));
    return v_mul(v_mul(v_set1(4), e), v_mul(right, right));
}

INLINE vec softplus_value(vec y) { return v_add(v_max(v_zero(), y), v_log1p(decay(y))); }

INLINE void sigmoid_invert(vec *z, vec *slope) {
    const vec p = v_min(v_set1(NEARLY_ONE), v_max(v_set1(REAL_NORMAL), *z)), q = v_sub(v_set1(1), p);
    *slope = v_mul(p, q);
    *z = v_log(v_div(p, q));
}

INLINE void tanh_invert(vec *z, vec *slope) {
    const vec size = v_min(v_set1(NEARLY_ONE), v_abs(*z)), rest = v_sub(v_set1(1), size);
    const vec y = v_mul(v_set1((real)0.5), v_log1p(v_div(v_add(size, size), rest)));
    *slope = v_mul(rest, v_add(size, v_set1(1)));
    *z = v_select(v_lt(*z, v_zero()), v_neg(y), y);
}

INLINE void softplus_invert(vec *z, vec *slope) {
    const vec size = v_max(v_set1(REAL_NORMAL), *z);
    *slope = v_neg(v_expm1_finite(v_neg(size)));
    *z = v_add(size, v_log(*slope));
}

/* ---- silu, gelu, gelu_tanh, mish: z = y * gate(y) --------------------------------------------------- */

/* The gate and its derivatives. The compiler drops those that are not used. */
typedef struct {
    vec gate, first, second, third;
} gate_parts;

/* sigmoid(u), e = exp(-u). With p = sigmoid (1 - sigmoid) and m = 1 - 2 sigmoid the derivatives are p, p m and
 * p (m^2 - 2 p). */
INLINE gate_parts sigmoid_parts(vec e) {
    const vec gate = v_inverse(v_add(e, v_set1(1)));
    const vec first = v_mul(gate, v_mul(v_min(v_set1(REAL_LARGEST), e), gate)); /* avoids 0 * infinity */
    const vec m = v_fma(gate, v_set1(-2), v_set1(1));
    return LITERAL(gate_parts){gate, first, v_mul(first, m), v_mul(first, v_fma(m, m, v_mul(first, v_set1(-2))))};
}

/* sigmoid(u), u = rate * (y + cubic * y^3); its derivatives by y follow from the chain rule. */
#define RATE ((real)GELU_RATE)
#define RATE_OF_CUBE ((real)(GELU_RATE * GELU_CUBIC))
INLINE gate_parts gelu_tanh_parts(vec y, vec e) {
    const vec u1 = v_fma(v_mul(y, y), v_set1(3 * RATE_OF_CUBE), v_set1(RATE));
    const vec u2 = v_mul(y, v_set1(6 * RATE_OF_CUBE)), square = v_mul(u1, u1);
    const gate_parts s = sigmoid_parts(e);
    const vec third = v_fma(v_mul(s.second, v_set1(3)), v_mul(u1, u2), v_mul(s.first, v_set1(6 * RATE_OF_CUBE)));
    return LITERAL(gate_parts){s.gate, v_mul(s.first, u1), v_fma(s.second, square, v_mul(s.first, u2)),
                               v_fma(s.third, v_mul(square, u1), third)};
}

/* exp(-y^2/2). y^2 is split in two, the first part exact: the relative error of exp is y^2/2 times that of y^2. */
INLINE vec gelu_exp(vec y) {
    const vec size = v_min(v_set1(NORMAL_ZERO), v_abs(y));
    const vec head = v_from_bits(i_and(v_bits(size), i_set1(~(((real_bits)1 << (REAL_MANTISSA / 2 + 1)) - 1))));
    const vec rest = v_mul(v_sub(head, size), v_mul(v_add(head, size), v_set1((real)0.5)));
    return v_exp_sum(v_mul(v_mul(head, head), v_set1((real)-0.5)), rest);
}

/* Phi(y). Phi(-|y|) is exp(-y^2/2) times a smooth function, which is fitted. */
INLINE gate_parts gelu_parts(vec y, vec e) {
    const vec size = v_min(v_set1(NORMAL_ZERO), v_abs(y)); /* the polynomial was fitted up to here */
    const vec scale = v_inverse(v_add(size, v_set1(NORMAL_TAIL_CENTRE)));
    const vec x = v_mul(v_sub(size, v_set1(NORMAL_TAIL_CENTRE)), scale);
    const vec tail = v_mul(v_mul(e, scale), v_polynomial(x, normal_tail, TERMS(normal_tail)));
    const vec density = v_mul(e, v_set1((real)0.39894228040143267794));
    return LITERAL(gate_parts){v_select(v_lt(y, v_zero()), tail, v_sub(v_set1(1), tail)), density,
                               v_mul(v_neg(y), density), v_mul(density, v_fma(y, y, v_set1(-1)))};
}

/* t = tanh(log(1 + e)) = n / (n + 2), n = e (e + 2), e = exp(y). With the sigmoid s = e / (1 + e), p = s (1 - s) and
 * m = 1 - s - 2 t s the derivatives are t1 = 4 e (1 + e) / (n + 2)^2, t1 m and t1 (m^2 - p - 2 t1 s - 2 t p). */
INLINE gate_parts mish_parts(vec e) {
    const vec e1 = v_add(e, v_set1(1)), n = v_mul(e, v_add(e, v_set1(2))), n2 = v_add(n, v_set1(2));
    const vec both = v_inverse(v_mul(n2, e1)), r = v_mul(both, e1), rest = v_mul(both, n2); /* rest = 1 - s */
    const vec s = v_mul(e, rest), p = v_mul(s, rest), t = v_mul(n, r), t2 = v_add(t, t);
    const vec first = v_mul(v_mul(v_mul(v_set1(4), e), e1), v_mul(r, r));
    const vec m = v_sub(rest, v_mul(t2, s));
    const vec slope_of_m = v_neg(v_fma(v_add(first, first), s, v_fma(t2, p, p)));
    return LITERAL(gate_parts){t, first, v_mul(first, m), v_mul(first, v_fma(m, m, slope_of_m))};
}

/* The exponential in an activation; gate_of computes the gate from it, as `e`. Two functions, since two loops over
 * short chains of instructions run faster than one over a long chain. */
INLINE vec gate_exp(abn_activation activation, vec y) {
    switch (activation) {
        case ABN_GELU: return gelu_exp(y);
        case ABN_GELU_TANH: return v_exp(v_mul(v_neg(y), v_fma(v_mul(y, y), v_set1(RATE_OF_CUBE), v_set1(RATE))));
        case ABN_MISH: return v_exp(v_min(v_set1(20), y));
        case ABN_SILU:
        default: return v_exp(v_neg(y));
    }
}

INLINE gate_parts gate_of(abn_activation activation, vec y, vec e) {
    switch (activation) {
        case ABN_GELU: return gelu_parts(y, e);
        case ABN_GELU_TANH: return gelu_tanh_parts(y, e);
        case ABN_MISH: return mish_parts(e);
        case ABN_SILU:
        default: return sigmoid_parts(e);
    }
}

/* The gate is 0 for y <= -1000; the clamp avoids -infinity * 0. */
INLINE vec gated_clamp_y(vec y) { return v_max(v_set1(-1000), y); }

/* y * gate(y) */
INLINE vec gated_value(abn_activation activation, vec y, vec e) {
    if (activation == ABN_SILU || activation == ABN_GELU_TANH) return v_div(y, v_add(e, v_set1(1)));
    return v_mul(y, gate_of(activation, y, e).gate);
}

/* The gate's slope is 0 far from 0: y is clamped so that no product overflows. (40 rather than 1000: mish clamps its
 * exponential, which leaves the gate a small slope; times y = 1000, that would be an error of 76 ulp.) */
INLINE vec gated_slope(abn_activation activation, vec y) {
    const vec clamped = v_max(v_set1(-1000), v_min(v_set1(40), y));
    const gate_parts g = gate_of(activation, clamped, gate_exp(activation, clamped));
    return v_fma(clamped, g.first, g.gate);
}

/* The first guess of y: near the minimum a rational function of s = +-sqrt(z - least z), far left a rational function
 * of x = sqrt(-log(-z)). */
typedef struct {
    const real *near_top, *near_bottom, *tail_top, *tail_bottom;
    double minimum, least_z, tail_z, largest_s, identity;
} gated_fit;

#define GATED_FIT(lower, upper)                                                                        \
    LITERAL(gated_fit) {                                                                               \
        lower##_near_top, lower##_near_bottom, lower##_tail_top, lower##_tail_bottom, upper##_MINIMUM, \
            upper##_LEAST_Z, upper##_TAIL_Z, upper##_LARGEST_S, GATED_IDENTITY(upper)                  \
    }

INLINE gated_fit gated_fit_of(abn_activation activation) {
    switch (activation) {
        case ABN_GELU: return GATED_FIT(gelu, GELU);
        case ABN_GELU_TANH: return GATED_FIT(gelu_tanh, GELU_TANH);
        case ABN_MISH: return GATED_FIT(mish, MISH);
        case ABN_SILU:
        default: return GATED_FIT(silu, SILU);
    }
}

/* top(x) / (1 + x bottom(x)) */
INLINE vec v_rational(vec x, const real *top, int top_terms, const real *bottom, int bottom_terms) {
    return v_div(v_polynomial(x, top, top_terms), v_fma(x, v_polynomial(x, bottom, bottom_terms), v_set1(1)));
}

/* z, clamped to the range of the fits. */
INLINE vec gated_clamp_z(abn_activation activation, vec z, mask left) {
    const gated_fit fit = gated_fit_of(activation);
    const vec largest = v_select(left, v_set1(-LEAST_SIZE), v_set1((real)fit.identity));
    return v_max(v_set1((real)fit.least_z), v_min(largest, z));
}

INLINE vec gated_first_y(abn_activation activation, vec z, mask left) {
    const gated_fit fit = gated_fit_of(activation);
    const real least_z = (real)fit.least_z, rest = (real)(fit.least_z - least_z);
    const vec above = v_sub(v_sub(z, v_set1(least_z)), v_set1(rest));
    const vec size = v_sqrt(v_max(v_set1(LEAST_SQUARE), above));
    const vec s = v_min(v_set1((real)fit.largest_s), v_select(left, v_neg(size), size));
    const vec near = v_fma(s, v_rational(s, fit.near_top, 5, fit.near_bottom, 4), v_set1((real)fit.minimum));
    const mask tail = v_lt(v_set1((real)fit.tail_z), v_select(left, z, v_set1(least_z)));
    if (!v_any(tail)) return near;
    const vec x = v_sqrt(v_neg(v_log(v_select(tail, v_neg(z), v_set1((real)-fit.tail_z)))));
    return v_select(tail, v_rational(x, fit.tail_top, 5, fit.tail_bottom, 2), near);
}

/* A step of Halley's method cubes the error, which is 0.003 at first: one step is enough for float, two for double. The
 * slope at the new y comes from Taylor's formula. */
INLINE void gated_step(abn_activation activation, vec z, vec e, vec *y, vec *slope) {
    const gate_parts g = gate_of(activation, *y, e);
    const vec first = v_fma(*y, g.first, g.gate);
    const vec second = v_fma(*y, g.second, v_add(g.first, g.first));
    const vec third = v_fma(*y, g.third, v_mul(g.second, v_set1(3)));
    const vec inverse = v_inverse(first), newton = v_mul(v_fma(*y, g.gate, v_neg(z)), inverse);
    const vec curvature = v_mul(v_mul(newton, inverse), v_mul(second, v_set1((real)0.5)));
    const vec change =
        v_neg(v_mul(newton, v_fma(curvature, v_add(curvature, v_set1(1)), v_set1(1)))); /* 1 / (1 - curvature) */
    *slope = v_fma(change, v_fma(v_mul(change, v_set1((real)0.5)), third, second), first);
    *y = v_add(*y, change);
}

/* y = z where the gate is 1. */
INLINE vec gated_identity(abn_activation activation, vec z, vec y) {
    return v_select(v_lt(z, v_set1((real)gated_fit_of(activation).identity)), y, z);
}

INLINE void gated_invert(abn_activation activation, vec *z, vec *slope, mask left) {
    const vec clamped = gated_clamp_z(activation, *z, left);
    vec y = gated_first_y(activation, clamped, left);
    UNROLLED for (int step = 0; step < HALLEY_STEPS; step++)
        gated_step(activation, clamped, gate_exp(activation, y), &y, slope);
    *z = gated_identity(activation, *z, y);
}

/* ---- all of them -------------------------------------------------------------------------------------- */

/* Activations without a minimum; activation_kernels.c has the others. */
INLINE vec curve_value(abn_activation activation, vec y, vec param) {
    switch (activation) {
        case ABN_ELU:
        case ABN_CELU:
        case ABN_SELU: return exponential_value(exponential_of(activation, param), y);
        case ABN_SOFTPLUS: return softplus_value(y);
        case ABN_SIGMOID: return sigmoid_value(y);
        case ABN_TANH: return tanh_value(y);
        default: return cheap_value(activation, y, param);
    }
}

INLINE vec curve_slope(abn_activation activation, vec y, vec param) {
    switch (activation) {
        case ABN_ELU:
        case ABN_CELU:
        case ABN_SELU: return exponential_slope(exponential_of(activation, param), y);
        case ABN_SOFTPLUS: return sigmoid_value(y);
        case ABN_SIGMOID: return sigmoid_slope(y);
        case ABN_TANH: return tanh_slope(y);
        case ABN_SILU:
        case ABN_GELU:
        case ABN_GELU_TANH:
        case ABN_MISH: return gated_slope(activation, y);
        default: return cheap_slope(activation, y, param);
    }
}

/* In place, z -> y, of invertible activations without a minimum. The results are finite for every finite z. */
INLINE void curve_invert(abn_activation activation, vec *z, vec *slope, vec param) {
    const mask left = is_left_of_zero(*z);
    switch (activation) {
        case ABN_LEAKY_RELU:
        case ABN_PRELU:
            *slope = v_select(left, param, v_set1(1));
            *z = v_select(left, v_div(*z, param), *z);
            return;
        case ABN_ELU:
        case ABN_CELU:
        case ABN_SELU: exponential_invert(exponential_of(activation, param), z, slope); return;
        case ABN_SOFTPLUS: softplus_invert(z, slope); return;
        case ABN_SIGMOID: sigmoid_invert(z, slope); return;
        case ABN_TANH: tanh_invert(z, slope); return;
        default: *slope = v_set1(1); return;
    }
}

#endif
