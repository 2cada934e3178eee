/* The activations one number at a time, in double, and the properties that the operations need. */
#ifndef ABN_ACTIVATIONS_H
#define ABN_ACTIVATIONS_H

#include "abn.h"

/* Constants of the formulas, for the kernels too. */
#define SELU_SCALE 1.0507009873554804934193349852946
#define SELU_ALPHA 1.6732632423543772848170429916717
#define GELU_RATE 1.5957691216057307118 /* 2 sqrt(2 / pi). gelu_tanh: y * sigmoid(rate * (y + cubic * y^3)) */
#define GELU_CUBIC 0.044715

/* The y of the minimum of z. */
#define SILU_MINIMUM -0x1.474973c84120bp+0
#define GELU_MINIMUM -0x1.80ead197f00b4p-1
#define GELU_TANH_MINIMUM -0x1.81429f9e97e4dp-1
#define MISH_MINIMUM -0x1.31432c0d12d84p+0

double abn_activation_value(abn_activation activation, double param, double y);
double abn_activation_derivative(abn_activation activation, double param, double y);

/* y from z; `left`: y is left of the minimum (ABN_FROM_Z_AND_SIDE). A z outside the activation's range is clamped to it. */
double abn_activation_inverse(abn_activation activation, double param, double z, int left);

/* Elements whose y cannot be recovered accurately from the rounded z are in the escape list: y < below, y > above, or
 * |y - minimum| < near. -INFINITY, INFINITY and 0 mean that there are none. */
typedef struct {
    double below, above, minimum, near;
} abn_escape_rule;

abn_escape_rule abn_escape_rule_of(abn_activation activation, double param, abn_dtype dtype);

/* The smaller |z| of y = size and y = -size. With a minimum: of y = size and the greatest |z| for -size <= y < 0. */
double abn_activation_least_z(abn_activation activation, double param, double size);

/* The greatest |z| for |y| <= size. */
double abn_activation_largest_z(abn_activation activation, double param, double size);

/* The error of y recovered from z, near this y, in units of z's relative rounding error. It has no bound at a minimum:
 * closer than `size` to the minimum, the error at that distance is returned. */
double abn_activation_error_at(abn_activation activation, double param, double y, double size);

#endif
