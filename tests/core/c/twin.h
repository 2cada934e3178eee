/* The operations in plain double, element by element, with bounds on the errors of the library. */
#ifndef TWIN_H
#define TWIN_H

#include "arrays.h"

/* The distribution of a batch. */
typedef enum {
    DRAW_ORDINARY,
    DRAW_LOST, /* in two channels of three, the weight is too small to recover xhat */
} draw;

typedef enum {
    NO_RESIDUAL,
    RESIDUAL_LIKE_X,
    RESIDUAL_SWAMPS, /* too large to recover xhat: all of one channel in three, single elements of another */
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
    ptrdiff_t *slot; /* if y or z is kept: guarded channels, as the library returns them */
} twin;

double param_of(abn_activation activation);
extern const double eps_of_variance;

/* The inputs of a context, with arrays of the twin in place of the library's. kept and residual have the shape of x. */
abn_context twin_context(const twin *t, const problem *of, const abn_batch *kept, const abn_batch *residual);

/* Draws x, residual, dz, weight, bias and param (and mean and var, without training) in the problem's type. */
twin twin_draw(const problem *of, unsigned seed);

/* Computes results and error bounds from these. Sets dz to 0 where rounding decides on which side of a kink y is. */
void twin_solve(twin *t, const problem *of);
void twin_free(twin *t);

/* How backward obtains an element: RECOVERED from y or z, or ESCAPED. UNDECIDED: within the rounding error of a
 * limit. */
typedef enum { RECOVERED, UNDECIDED, ESCAPED } recovery;
recovery twin_recovery(const twin *t, const problem *of, ptrdiff_t channel, ptrdiff_t element);

/* True if y or z is kept, from which backward recovers xhat. */
static inline int recovers_xhat(const problem *of) { return of->keep == ABN_KEEP_Y || of->keep == ABN_KEEP_Z; }

/* The channel of an element. */
static inline ptrdiff_t channel_of(shape s, ptrdiff_t element) { return element / s.spatial % s.channels; }

#endif
