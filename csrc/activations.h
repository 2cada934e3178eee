/* What the layers above the kernels need to know of an activation. */
#ifndef ABN_ACTIVATIONS_H
#define ABN_ACTIVATIONS_H

#include "abn.h"

/* Elements whose stored z is below escape_below go into the escape list; only elements with y below candidates_below
 * can be among them. */
typedef struct {
    int escapes;
    double escape_below, candidates_below;
} abn_escape_rule;

abn_escape_rule abn_escape_rule_of(abn_activation activation, double param, abn_dtype dtype);

double abn_activation_derivative(abn_activation activation, double param, double y);

/* The least factor by which z shrinks small differences of y where z can be inverted. */
double abn_activation_least_slope(abn_activation activation, double param);

#endif
