/* The activation kernels of one instruction set (ABN_ISA) for one `real` (ABN_DTYPE: float32 or float64), as a table.
 * Compiled once for each pair, as kernels.c is. */
#include "activation_kernels.h"

#include "curves.h"
#ifndef ABN_DTYPE_FLOAT64
#include "gated.h"
#endif

INLINE vec param_at(abn_param kind, const real *param, ptrdiff_t i) {
    if (kind == ABN_NO_PARAM) return v_zero();
    return kind == ABN_CHANNEL_PARAM ? v_load_real(param + i) : v_set1(*param);
}

INLINE mask left_at(const uint64_t *left, ptrdiff_t i) { return v_bits_mask((unsigned)(left[i >> 6] >> (i & 63))); }

/* Activations with a minimum compute each step for several vectors before the next step: one vector's instructions are
 * too long a chain for out-of-order execution to overlap vectors. (gelu: more than 4 would exceed the registers.) */
#define VALUES_AT_ONCE 4
#define INVERTED_AT_ONCE (8 * W) /* elements that are inverted together */

INLINE void value_gated_of(abn_activation activation, const real *y, real *z, int vectors) {
    vec e[VALUES_AT_ONCE];
    UNROLLED for (int k = 0; k < vectors; k++) e[k] = gate_exp(activation, gated_clamp_y(v_load_real(y + k * W)));
    UNROLLED for (int k = 0; k < vectors; k++)
        v_store_real(z + k * W, gated_value(activation, gated_clamp_y(v_load_real(y + k * W)), e[k]));
}

INLINE void value_gated(abn_activation activation, const real *y, real *z, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + VALUES_AT_ONCE * W <= n; i += VALUES_AT_ONCE * W)
        value_gated_of(activation, y + i, z + i, VALUES_AT_ONCE);
    for (; i < n; i += W) value_gated_of(activation, y + i, z + i, 1);
}

/* Inverses of activations with a minimum: Halley's method in double, polynomials (gated.h) in float. */
#ifdef ABN_DTYPE_FLOAT64
INLINE void invert_gated(abn_activation activation, real *z, real *slope, ptrdiff_t n, const uint64_t *left) {
    for (ptrdiff_t start = 0; start < n; start += INVERTED_AT_ONCE) {
        const ptrdiff_t end = start + INVERTED_AT_ONCE < n ? start + INVERTED_AT_ONCE : n;
        real e[INVERTED_AT_ONCE], y[INVERTED_AT_ONCE];
        for (ptrdiff_t i = start; i < end; i += W) {
            const mask side = left_at(left, i);
            const vec clamped = gated_clamp_z(activation, v_load_real(z + i), side);
            v_store_real(y + i - start, gated_first_y(activation, clamped, side));
            v_store_real(slope + i, clamped);
        }
        for (int step = 0; step < HALLEY_STEPS; step++) {
            for (ptrdiff_t i = start; i < end; i += W)
                v_store_real(e + i - start, gate_exp(activation, v_load_real(y + i - start)));
            for (ptrdiff_t i = start; i < end; i += W) {
                vec next = v_load_real(y + i - start), slope_at_y;
                gated_step(activation, v_load_real(slope + i), v_load_real(e + i - start), &next, &slope_at_y);
                v_store_real(y + i - start, next);
                if (step == HALLEY_STEPS - 1) {
                    v_store_real(slope + i, slope_at_y);
                    v_store_real(z + i, gated_identity(activation, v_load_real(z + i), next));
                }
            }
        }
    }
}

#else
/* difference = y - z; on entry `slope` holds its derivative by v. Replaces z by y, and `slope` by dz/dy. */
INLINE void finish_gated(abn_activation activation, real *z, real *slope, vec s, vec v, vec difference, mask left) {
    const vec dz_dv = v_mul(v_mul(s, v_set1(4)), v), z_here = v_load_real(z);
    const mask tail = gated_tail(activation, s);
    vec y = v_add(z_here, difference), slope_at_y = v_div(dz_dv, v_add(dz_dv, v_load_real(slope)));
    if (v_any(tail)) {
        vec far_y = z_here, far_slope;
        gated_invert(activation, &far_y, &far_slope, left);
        y = v_select(tail, far_y, y);
        slope_at_y = v_select(tail, far_slope, slope_at_y);
    }
    v_store_real(z, y);
    v_store_real(slope, slope_at_y);
}

INLINE void invert_gated(abn_activation activation, real *z, real *slope, ptrdiff_t n, const uint64_t *left) {
    for (ptrdiff_t start = 0; start < n; start += INVERTED_AT_ONCE, z += INVERTED_AT_ONCE, slope += INVERTED_AT_ONCE) {
        const ptrdiff_t end = n - start < INVERTED_AT_ONCE ? n - start : INVERTED_AT_ONCE;
        real s[INVERTED_AT_ONCE], v[INVERTED_AT_ONCE], difference[INVERTED_AT_ONCE];
        ptrdiff_t i;
        for (i = 0; i < end; i += W)
            v_store_real(s + i, gated_s(activation, v_load_real(z + i), left_at(left, start + i)));
        for (i = 0; i < end; i += W) v_store_real(v + i, gated_v(activation, v_load_real(s + i)));
        for (i = 0; i + (DIFFERENCES_AT_ONCE - 1) * W < end; i += DIFFERENCES_AT_ONCE * W)
            gated_difference(activation, v + i, DIFFERENCES_AT_ONCE, difference + i, slope + i);
        for (; i < end; i += W) gated_difference(activation, v + i, 1, difference + i, slope + i);
        for (i = 0; i < end; i += W)
            finish_gated(activation, z + i, slope + i, v_load_real(s + i), v_load_real(v + i),
                         v_load_real(difference + i), left_at(left, start + i));
    }
}
#endif

#define DEFINE(upper, name, inverse, kind, traits)                                                            \
    static void value_##name(const void *y_, void *z_, ptrdiff_t n, const void *param) {                      \
        const real *y = y_;                                                                                   \
        real *z = z_;                                                                                         \
        if ((inverse) == ABN_FROM_Z_AND_SIDE) {                                                               \
            value_gated(ABN_##upper, y, z, n);                                                                \
            return;                                                                                           \
        }                                                                                                     \
        for (ptrdiff_t i = 0; i < n; i += W)                                                                  \
            v_store_real(z + i, curve_value(ABN_##upper, v_load_real(y + i), param_at(kind, param, i)));      \
    }                                                                                                         \
    static void slope_##name(const void *y_, void *slope_, ptrdiff_t n, const void *param) {                  \
        const real *y = y_;                                                                                   \
        real *slope = slope_;                                                                                 \
        for (ptrdiff_t i = 0; i < n; i += W)                                                                  \
            v_store_real(slope + i, curve_slope(ABN_##upper, v_load_real(y + i), param_at(kind, param, i)));  \
    }                                                                                                         \
    static void invert_##name(void *z_, void *slope_, ptrdiff_t n, const void *param, const uint64_t *left) { \
        real *z = z_, *slope = slope_;                                                                        \
        if ((inverse) == ABN_FROM_Z_AND_SIDE) {                                                               \
            invert_gated(ABN_##upper, z, slope, n, left);                                                     \
            return;                                                                                           \
        }                                                                                                     \
        for (ptrdiff_t i = 0; i < n; i += W) {                                                                \
            vec y = v_load_real(z + i), slope_at_y;                                                           \
            curve_invert(ABN_##upper, &y, &slope_at_y, param_at(kind, param, i));                             \
            v_store_real(z + i, y);                                                                           \
            v_store_real(slope + i, slope_at_y);                                                              \
        }                                                                                                     \
    }
#define ENTRY(upper, name, inverse, kind, traits) [ABN_##upper] = {value_##name, slope_##name, invert_##name},

ABN_EACH_ACTIVATION(DEFINE)

static void below_zero(const void *y, void *result, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += W)
        v_store_real((real *)result + i, v_min(v_zero(), v_load_real((const real *)y + i)));
}

const abn_activation_kernels JOIN3(JOIN3(abn_activation_kernels_, ABN_ISA, _),
                                   ABN_DTYPE, ) = {.of = {ABN_EACH_ACTIVATION(ENTRY)}, .below_zero = below_zero};
