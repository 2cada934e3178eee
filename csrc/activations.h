/* The activations one number at a time, in double, and what the layers above the kernels need to know of them. */
#ifndef ABN_ACTIVATIONS_H
#define ABN_ACTIVATIONS_H

#include "abn.h"

double abn_activation_value(abn_activation activation, double param, double y);
double abn_activation_derivative(abn_activation activation, double param, double y);

/* y from z; `left`: y lies left of the minimum (ABN_FROM_Z_AND_SIDE). Of a z that no y has: the y of the nearest that
 * some finite y has. */
double abn_activation_inverse(abn_activation activation, double param, double z, int left);

/* Elements that z, rounded to the storage type, and the side do not tell well enough are in the escape list:
 * y < below, y > above, or |y - minimum| < near. -INFINITY, INFINITY and 0 where there are none. */
typedef struct {
    double below, above, minimum, near;
} abn_escape_rule;

abn_escape_rule abn_escape_rule_of(abn_activation activation, double param, abn_dtype dtype);

/* |z| of |y| = size, or of the greatest |z| on the negative side if that is less: is it still a normal number? */
double abn_activation_least_z(abn_activation activation, double param, double size);

/* The greatest |z| for |y| <= size. */
double abn_activation_largest_z(abn_activation activation, double param, double size);

/* How far off y is when taken back from z, near this y, in units of z's relative rounding. At a minimum, where that
 * has no bound: as far from it as most of the y are that differ from this one by `size`. */
double abn_activation_error_at(abn_activation activation, double param, double y, double size);

#endif
