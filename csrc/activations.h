/* Scalar activation functions f in double: z = f(y), derivative, inverse, and the bounds that the operations need. */
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

/* y from z; `left`: y is left of the minimum (ABN_FROM_Z_AND_SIDE). z is clamped to the range of the activation. */
double abn_activation_inverse(abn_activation activation, double param, double z, int left);

/* An element is escaped (abn.h) if y < below, y > above, or |y - minimum| < near: the rounded z does not determine y
 * accurately there. below = -INFINITY, above = INFINITY or near = 0 disables the condition. */
typedef struct {
    double below, above, minimum, near;
} abn_escape_rule;

abn_escape_rule abn_escape_rule_of(abn_activation activation, double param, abn_dtype dtype);

/* min(|f(size)|, |f(-size)|). -size is clamped to the minimum of f; softplus and sigmoid take f(0) instead. */
double abn_activation_least_z(abn_activation activation, double param, double size);

/* The greatest |z| for |y| <= size. */
double abn_activation_largest_z(abn_activation activation, double param, double size);

/* |f(y) / f'(y)|: the error of y recovered from z, in units of z's relative rounding error. It is unbounded at a
 * minimum: for y closer than `size` to the minimum, the error at minimum + size is returned. */
double abn_activation_error_at(abn_activation activation, double param, double y, double size);

#endif
