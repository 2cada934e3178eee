#include "float_range.h"

#include <float.h>
#include <math.h>

#include "guard.h"

int abn_squares_fit(abn_dtype dtype, double var, double eps) {
    const double range = 0x1p-120; /* 64 times the smallest normal float */
    return !(dtype != ABN_FLOAT64 && var < range && eps < range);
}

int abn_given_sums_fit(abn_dtype dtype, double dy, double dy_xhat) {
    return dtype == ABN_FLOAT64 || !(fabs(dy) > FLT_MAX || fabs(dy_xhat) > FLT_MAX);
}

int abn_sums_may_hide_overflow(const abn_context *context, double count) {
    if (count == 0) return 1;
    const abn_slopes slopes = abn_slopes_left_of_zero(context);
    return slopes.highest > 1 || slopes.lowest < -1;
}
