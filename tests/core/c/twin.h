/* The operations once more, in plain double, element by element, and how far off the library may be. */
#ifndef TWIN_H
#define TWIN_H

#include "arrays.h"

/* What a batch is drawn from. */
typedef enum {
    DRAW_ORDINARY,
    DRAW_LOST, /* two channels of three have weights from which xhat cannot be had back */
} draw;

typedef enum {
    NO_RESIDUAL,
    RESIDUAL_LIKE_X,
    RESIDUAL_SWAMPS, /* one channel of three throughout, and in another single elements */
    RESIDUALS
} residual_draw;

typedef struct {
    shape of;
    abn_dtype dtype;
    abn_activation activation;
    abn_keep keep;
    int training;
    draw drawn;
    residual_draw residual;
} problem;

/* Per channel: weight to sum_param_error. Per element, in the order (image, channel, position): the others. */
typedef struct {
    double *weight, *bias, *param, *mean, *var, *mean_error, *var_error;
    double *sum_dy, *sum_dy_xhat, *sum_param, *sum_dy_error, *sum_dy_xhat_error, *sum_param_error;
    double *x, *residual, *dz;
    double *xhat, *y, *z, *dx, *dy; /* dy: the gradient of the residual */
    double *xhat_error, *y_error, *z_error, *dx_error, *dy_error;
    double *memory;
    ptrdiff_t *slot; /* of guarded channels, where z is kept: what the library says */
} twin;

double param_of(abn_activation activation);
extern const double eps_of_variance;

/* All that a context is given but for the memory: of the twin, to be replaced by what the library shall see. kept and
 * residual have x's shape. */
abn_context twin_context(const twin *t, const problem *of, const abn_batch *kept, const abn_batch *residual);

/* Draws x, residual, dz, weight, bias and param (and mean and var, without training) in the problem's type. */
twin twin_draw(const problem *of, unsigned seed);

/* Results and errors from these. Takes elements out of dz where rounding decides on which side of 0 their y is. */
void twin_solve(twin *t, const problem *of);
void twin_free(twin *t);

/* Does z tell an element's y? Rounding may leave it open. */
typedef enum { TOLD, OPEN, LOST } telling;
telling twin_telling(const twin *t, const problem *of, ptrdiff_t channel, ptrdiff_t element);

/* The channel of an element. */
static inline ptrdiff_t channel_of(shape s, ptrdiff_t element) { return element / s.spatial % s.channels; }

#endif
