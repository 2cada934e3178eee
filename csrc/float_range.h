/* The ends of float's range.
 *
 * Kernels of float32 and half types compute in float. A channel whose constants, sums or elements overflow or underflow
 * there is flagged ABN_EXACT and computed in double instead, element by element: its sums in moments.c and
 * backward_exact.c, its elements in forward_exact.c and backward_exact.c. The functions here find them. Channels
 * of float64 storage are flagged only if a sum is not finite. */
#ifndef ABN_FLOAT_RANGE_H
#define ABN_FLOAT_RANGE_H

#include "abn.h"

/* True if kernels can compute with this constant: it does not overflow or lose digits to underflow. 0, infinities and
 * NaN fit. */
int abn_constant_fits(abn_dtype dtype, double value);

/* True if kernels can compute x - mean for every x of a channel: of m elements with biased variance var,
 * |x - mean| <= sqrt(m * var). */
int abn_centre_fits(abn_dtype dtype, double mean, double var, ptrdiff_t per_channel);

/* True if the squares of d = x - mean do not underflow in float, or if eps is so large that this has no effect. */
int abn_squares_fit(abn_dtype dtype, double var, double eps);

/* Training: dx = (dy + xhat * xhat_factor + offset) * dx_factor, with `count` elements per channel. True if the sum in
 * parentheses does not overflow for any float dy. */
int abn_correction_fits(abn_dtype dtype, double xhat_factor, double offset, double count);

/* True unless a caller-supplied sum exceeds FLT_MAX: then dy or xhat may overflow float, too. */
int abn_given_sums_fit(abn_dtype dtype, double dy, double dy_xhat);

/* Caller-supplied sums can hide a float overflow of dy or xhat. True if the sums must be recomputed to detect it: in
 * evaluation (count == 0) xhat is not bounded; a slope outside [-1, 1] can make dy overflow. Slopes above y = 0 are
 * ignored: they are at most 1.5 (hardswish), so only dz in the last third of float's range are affected. */
int abn_sums_may_hide_overflow(const abn_context *context, double count);

#endif
