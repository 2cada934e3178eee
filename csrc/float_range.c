#include "float_range.h"

#include <float.h>
#include <math.h>

#include "guard.h"

int abn_constant_fits(abn_dtype dtype, double value) {
    const double size = fabs(value);
    return dtype == ABN_FLOAT64 || value == 0 || !isfinite(value) || (size >= FLT_MIN && size <= FLT_MAX);
}

int abn_centre_fits(abn_dtype dtype, double mean, double var, ptrdiff_t per_channel) {
    if (dtype == ABN_FLOAT64 || !isfinite(mean)) return 1;
    const double limit = (double)FLT_MAX / 4;
    return !(fabs(mean) > limit || var * (double)per_channel > limit * limit);
}

int abn_squares_fit(abn_dtype dtype, double var, double eps) {
    const double range = 0x1p-120; /* 64 times the smallest normal float */
    return !(dtype != ABN_FLOAT64 && var < range && eps < range);
}

int abn_correction_fits(abn_dtype dtype, double xhat_factor, double offset, double count) {
    /* Less than half a unit in the last place of FLT_MAX: FLT_MAX + limit rounds to FLT_MAX. */
    const double limit = FLT_MAX * 0x1p-26;
    const double largest = fabs(xhat_factor) * sqrt(count) + fabs(offset); /* |xhat| <= sqrt(count) */
    return dtype == ABN_FLOAT64 || !(isfinite(largest) && largest > limit);
}

int abn_given_sums_fit(abn_dtype dtype, double dy, double dy_xhat) {
    return dtype == ABN_FLOAT64 || !(fabs(dy) > FLT_MAX || fabs(dy_xhat) > FLT_MAX);
}

int abn_sums_may_hide_overflow(const abn_context *context, double count) {
    if (count == 0) return 1;
    const abn_slopes slopes = abn_slopes_left_of_zero(context);
    return slopes.highest > 1 || slopes.lowest < -1;
}
