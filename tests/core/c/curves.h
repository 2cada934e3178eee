/* The activations from their definitions, by the C library's functions. */
#ifndef CURVES_H
#define CURVES_H

#include "abn.h"

double curve_value(abn_activation activation, double param, double y);
double curve_slope(abn_activation activation, double param, double y);

/* The sum of the absolute terms of the slope: computed from y, and computed from z. */
double curve_slope_terms(abn_activation activation, double param, double y);
double curve_slope_terms_of_z(abn_activation activation, double param, double y);

int curve_is_piecewise_linear(abn_activation activation);

/* To the nearest y at which the slope jumps. */
double curve_distance_to_kink(abn_activation activation, double y);

#endif
