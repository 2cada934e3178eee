/* Which channels must be guarded and which elements escaped, because y or z does not determine xhat accurately: abn.h
 * defines both terms. */
#ifndef ABN_GUARD_H
#define ABN_GUARD_H

#include <math.h>

#include "activations.h"

/* True if backward recovers xhat from the kept y or z. */
static inline int abn_recovers_xhat(const abn_context *context) {
    return context->keep == ABN_KEEP_Z || context->keep == ABN_KEEP_Y;
}

/* The activation that backward inverts: the kept y is its own inverse. */
static inline abn_activation abn_inverted_activation(const abn_context *context) {
    return context->keep == ABN_KEEP_Y ? ABN_IDENTITY : context->activation;
}

/* Elements with a greater |residual| are escaped. */
double abn_residual_limit(abn_dtype dtype, double weight, double bias);

/* The rule for which elements are escaped. training: nonzero if the statistics are the batch's own, 0 if given. */
abn_escape_rule abn_escape_rule_for(const abn_context *context, int training);

static inline int abn_is_escaped(abn_escape_rule rule, double y) {
    return y < rule.below || y > rule.above || (y > rule.minimum - rule.near && y < rule.minimum + rule.near);
}

/* True if there are y that the rule escapes. */
static inline int abn_can_escape(abn_escape_rule rule) {
    return rule.below > -INFINITY || rule.above < INFINITY || rule.near > 0;
}

/* Backward of a guarded channel computes the sign of y = weight * xhat + bias from the stored float16 or bfloat16 xhat.
 * If rounding xhat changed that sign, replaces xhat by the adjacent number with which the sign is that of y. */
void abn_settle_sign(abn_dtype dtype, void *xhat, double weight, double bias, double y);

/* The activation's parameter of a channel. */
double abn_param_at(const abn_context *context, ptrdiff_t channel);

/* The lowest and the highest derivative of the activation, over all channels, just below 0 and at -infinity. */
typedef struct {
    double lowest, highest;
} abn_slopes;
abn_slopes abn_slopes_left_of_zero(const abn_context *context);

#endif
