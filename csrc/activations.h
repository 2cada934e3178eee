/* What the layers above the kernels need to know of an activation. */
#ifndef ABN_ACTIVATIONS_H
#define ABN_ACTIVATIONS_H

#include "abn.h"

/* Elements whose stored z is below escape_below go into the escape list; only elements with y below flat_below, give or
 * take the rounding of z, are among them. */
typedef struct {
    double escape_below, flat_below; /* -infinity: no element can be lost */
} abn_escape_rule;

abn_escape_rule abn_escape_rule_of(abn_activation activation, double param, abn_dtype dtype);

double abn_activation_value(abn_activation activation, double param, double y);
double abn_activation_inverse(abn_activation activation, double param, double z);
double abn_activation_derivative(abn_activation activation, double param, double y);

/* |z| of |y| = size, or of the greatest |z| on the negative side if that is less: is it still a normal number? */
double abn_activation_least_z(abn_activation activation, double param, double size);

/* The greatest |z| for |y| <= size. */
double abn_activation_largest_z(abn_activation activation, double param, double size);

/* How far off y is when taken back from z, near this y, in units of z's relative rounding. */
double abn_activation_error_at(abn_activation activation, double y);

#endif
