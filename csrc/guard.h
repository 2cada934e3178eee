/* Which channels and elements z does not tell. */
#ifndef ABN_GUARD_H
#define ABN_GUARD_H

#include <math.h>

#include "activations.h"

/* Beside a residual greater than this an element of the channel is escaped. */
double abn_residual_limit(abn_dtype dtype, double weight, double bias);

/* Which elements have to be escaped, in a forward with the batch's own statistics (training) or with given ones. */
abn_escape_rule abn_escape_rule_for(const abn_context *context, int training);

static inline int abn_is_escaped(abn_escape_rule rule, double y) {
    return y < rule.below || y > rule.above || (y > rule.minimum - rule.near && y < rule.minimum + rule.near);
}

/* Can any element be, but for residuals? */
static inline int abn_can_escape(abn_escape_rule rule) {
    return rule.below > -INFINITY || rule.above < INFINITY || rule.near > 0;
}

/* The backward of a guarded channel takes the side of zero that y = weight * xhat + bias is on from xhat, a float16 or
 * bfloat16. If that was rounded across, its neighbour on the other side of the true xhat has the sign that y had. */
void abn_settle_sign(abn_dtype dtype, void *xhat, double weight, double bias, double y);

/* Of a channel, where each has one. */
double abn_param_at(const abn_context *context, ptrdiff_t channel);

/* The lowest and the highest derivative of the activation, over all channels, just below 0 and at -infinity. */
typedef struct {
    double lowest, highest;
} abn_slopes;
abn_slopes abn_slopes_left_of_zero(const abn_context *context);

#endif
