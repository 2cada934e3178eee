/* The activations from their definitions, by the C library's functions. */
#ifndef CURVES_H
#define CURVES_H

#include "abn.h"

double curve_value(abn_activation activation, double param, double y);
double curve_slope(abn_activation activation, double param, double y);

/* What the slope is added up from, in sizes: from y, and where it comes from z alone. */
double curve_slope_terms(abn_activation activation, double param, double y);
double curve_slope_terms_of_z(abn_activation activation, double param, double y);

int curve_is_piecewise_linear(abn_activation activation); /* but for a kink at 0 */
int curve_has_kink(abn_activation activation);            /* another slope on either side of 0 */

#endif
