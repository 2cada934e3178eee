/* The activations from their definitions, by the C library's functions. */
#ifndef CURVES_H
#define CURVES_H

#include "abn.h"

double curve_value(abn_activation activation, double param, double y);
double curve_slope(abn_activation activation, double param, double y);

/* The sum of the absolute values of the slope's terms, which its rounding error is proportional to: if the slope is
 * computed from y, and if it is computed from z. */
double curve_slope_terms(abn_activation activation, double param, double y);
double curve_slope_terms_of_z(abn_activation activation, double param, double y);

int curve_is_piecewise_linear(abn_activation activation);

/* The distance from y to the nearest discontinuity of the slope; infinity if there is none. */
double curve_distance_to_kink(abn_activation activation, double y);

#endif
