/* The operations once more, in plain double, element by element, and how far off the library may be. */
#ifndef TWIN_H
#define TWIN_H

#include "arrays.h"

/* What a batch is drawn from. */
typedef enum {
    DRAW_ORDINARY,
    DRAW_LOST, /* two channels of three have weights from which xhat cannot be had back */
} draw;

typedef struct {
    shape of;
    abn_dtype dtype;
    abn_activation activation;
    abn_keep keep;
    int training;
    draw drawn;
} problem;

/* Per channel: weight to sum_dy_xhat_error. Per element, in the order (image, channel, position): the others. */
typedef struct {
    double *weight, *bias, *mean, *var, *mean_error, *var_error;
    double *sum_dy, *sum_dy_xhat, *sum_dy_error, *sum_dy_xhat_error;
    double *x, *dz, *z, *dx, *z_error, *dx_error;
    double *memory;
} twin;

double param_of(abn_activation activation);
extern const double eps_of_variance;

/* Draws x, dz, weight and bias (and mean and var, without training) in the problem's type. */
twin twin_draw(const problem *of, unsigned seed);

/* Results and errors from these. Takes elements out of dz where rounding decides on which side of 0 their y is. */
void twin_solve(twin *t, const problem *of);
void twin_free(twin *t);

#endif
