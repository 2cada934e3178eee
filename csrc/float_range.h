/* The ends of float's range.
 *
 * Kernels of float32 and half types compute in float. A channel whose constants, sums or elements overflow or underflow
 * there is flagged ABN_EXACT and computed in double instead, element by element: its sums in moments.c and
 * backward_exact.c, its elements in forward_exact.c and backward_exact.c. The functions here find them. Channels
 * of float64 storage are flagged only if a sum is not finite. */
#ifndef ABN_FLOAT_RANGE_H
#define ABN_FLOAT_RANGE_H

#include <float.h>
#include <math.h>

#include "abn.h"

/* True if kernels can compute with this constant: it does not overflow or lose digits to underflow. 0, infinities and
 * NaN fit. */
static inline int abn_constant_fits(abn_dtype dtype, double value) {
    const double size = fabs(value);
    return dtype == ABN_FLOAT64 || value == 0 || !isfinite(value) || (size >= FLT_MIN && size <= FLT_MAX);
}

/* True if kernels can compute x - mean for every x of a channel: of m elements with biased variance var,
 * |x - mean| <= sqrt(m * var). */
static inline int abn_centre_fits(abn_dtype dtype, double mean, double var, ptrdiff_t per_channel) {
    const double limit = (double)FLT_MAX / 4;
    if (dtype == ABN_FLOAT64 || !isfinite(mean)) return 1;
    return !(fabs(mean) > limit || var * (double)per_channel > limit * limit);
}

/* True if the squares of d = x - mean do not underflow in float, or if eps is so large that this has no effect. */
int abn_squares_fit(abn_dtype dtype, double var, double eps);

/* Training: dx = (dy + xhat * xhat_factor + offset) * dx_factor, with `count` elements per channel. True if the sum in
 * parentheses does not overflow for any float dy. */
static inline int abn_correction_fits(abn_dtype dtype, double xhat_factor, double offset, double count) {
    /* Less than half a unit in the last place of FLT_MAX: FLT_MAX + limit rounds to FLT_MAX. */
    const double limit = FLT_MAX * 0x1p-26;
    const double largest = fabs(xhat_factor) * sqrt(count) + fabs(offset); /* |xhat| <= sqrt(count) */
    return dtype == ABN_FLOAT64 || !(isfinite(largest) && largest > limit);
}

/* True unless a caller-supplied sum exceeds FLT_MAX: then dy or xhat may overflow float, too. */
int abn_given_sums_fit(abn_dtype dtype, double dy, double dy_xhat);

/* Caller-supplied sums can hide a float overflow of dy or xhat. True if the sums must be recomputed to detect it: in
 * evaluation (count == 0) xhat is not bounded; a slope outside [-1, 1] can make dy overflow. Slopes above y = 0 are
 * ignored: they are at most 1.5 (hardswish), so only dz in the last third of float's range are affected. */
int abn_sums_may_hide_overflow(const abn_context *context, double count);

#endif
