/* Error bounds. An operation in the kernels' type has relative error u, a stored value an error of half a unit in its
 * last place. Errors propagate to first order; through an activation, by evaluating it at y + error and y - error.
 * Bounds are relative to the absolute values of terms, not of results: y may cancel near zero, and so may sums. */
#include "twin.h"

#include <float.h>
#include <math.h>

#include "curves.h"
#include "guard.h"

/* ---- compensated sums ---------------------------------------------------------------------------------- */

typedef struct {
    double sum, lost;
} total;

static void add(total *t, double value) {
    const double sum = t->sum + value;
    t->lost += fabs(t->sum) >= fabs(value) ? (t->sum - sum) + value : (value - sum) + t->sum;
    t->sum = sum;
}

static double of_total(total t) { return isfinite(t.sum) ? t.sum + t.lost : t.sum; }

/* ---- rounding errors ----------------------------------------------------------------------------------- */

/* In units of u. A few hundred terms are added in the kernels' type, and these sums in double. Rounding errors of
 * random sign add up to less than the square root of the number of terms. Values of a half type lie on a coarse grid:
 * after subtraction of a centre they have the same last digits, so their errors have the same sign. */
static const double summing_units[ABN_DTYPES] = {8, 8, 160, 160};

typedef struct {
    double u;        /* relative, of an operation */
    double stored;   /* relative, of a stored element */
    double smallest; /* absolute, of a stored element near 0 */
    double tiny;     /* absolute, of a product near 0 in the kernels' type */
    double normal;   /* exponentials smaller than this number of the kernels' type may come out as 0 */
    double sums;     /* of a sum, relative to the sum of the sizes of its terms */
} precision;

static precision precision_of(abn_dtype dtype) {
    /* In double the twin rounds as much as the library. */
    const double u = dtype == ABN_FLOAT64 ? DBL_EPSILON : FLT_EPSILON / 2;
    const abn_dtype real = dtype == ABN_FLOAT64 ? ABN_FLOAT64 : ABN_FLOAT32;
    return (precision){u,
                       ldexp(1, -formats[dtype].digits),
                       spacing_near_zero(dtype),
                       2 * spacing_near_zero(real),
                       ldexp(1, formats[real].least_exponent),
                       summing_units[dtype] * u};
}

/* ---- one element --------------------------------------------------------------------------------------- */

typedef struct {
    const problem *of;
    const twin *twin;
    precision p;
    ptrdiff_t index;
    double param, weight, bias, mean, inv_std;
} channel;

typedef struct {
    double xhat, residual, y, z, slope;
    double xhat_error, y_error, z_error; /* of the forward */
    double storing_xhat;
    int undecided; /* True if rounding decides on which side of a kink y is */
} term;

typedef struct {
    double xhat, y, slope;
} errors;

typedef double curve(abn_activation activation, double param, double y);

/* How far the curve's value moves if y moves by `error`. */
static double moved(curve *of, const channel *c, double y, double error) {
    const abn_activation activation = c->of->activation;
    const double here = of(activation, c->param, y);
    return fmax(fabs(of(activation, c->param, y + error) - here), fabs(of(activation, c->param, y - error) - here));
}

/* The error of a value or slope whose exponential underflows. The exponential is multiplied by y and by the slope of
 * its exponent, of order y^2 at most; for |y| >= 1000 it is 0. */
static double lost_exponential(const channel *c, double y) {
    return c->p.normal * fmax(2, pow(fmin(fabs(y), 1000), 3));
}

static term term_of(const channel *c, ptrdiff_t i) {
    const precision p = c->p;
    const double summing = c->of->training ? p.sums : 0; /* given statistics are exact */
    term t = {.xhat = (c->twin->x[i] - c->mean) * c->inv_std, .residual = c->twin->residual[i]};
    const double normal = c->weight * t.xhat + c->bias;
    t.y = normal + t.residual;
    t.z = curve_value(c->of->activation, c->param, t.y);
    t.slope = curve_slope(c->of->activation, c->param, t.y);
    t.xhat_error = fabs(t.xhat) * (4 * p.u + summing) + summing;
    t.xhat_error += 2 * DBL_EPSILON * fabs(c->mean) * c->inv_std; /* mean and centre are rounded to double */
    if (c->of->keep != ABN_KEEP_X) t.storing_xhat = p.stored * fabs(t.xhat) + p.smallest;
    if (c->of->keep == ABN_KEEP_XHAT) t.xhat_error += t.storing_xhat;
    t.y_error = fabs(c->weight) * t.xhat_error + p.u * (fabs(normal) + 2 * fabs(c->bias));
    if (c->of->residual) t.y_error += p.u * fabs(t.y);
    if (c->of->keep == ABN_KEEP_Y) t.y_error += p.stored * fabs(t.y) + p.smallest; /* z is computed from the stored y */
    const double least_slope = c->param > 0 ? fmin(1, c->param) : 1;
    const double near = t.y_error + fabs(c->weight) * t.storing_xhat + p.smallest / least_slope;
    const int is_rounded = c->of->keep == ABN_KEEP_Y && rounded(c->of->dtype, t.y) != t.y;
    t.undecided =
        (c->weight != 0 || c->of->residual || is_rounded) && curve_distance_to_kink(c->of->activation, t.y) <= 4 * near;
    const int may_overflow = fabs(t.y) + t.y_error >= formats[c->of->dtype].largest;
    if (c->of->keep == ABN_KEEP_Y && isfinite(t.y) && may_overflow) t.y_error = NAN;
    /* A curve is evaluated at the rounded y: 2 u. */
    const int curved = !curve_is_piecewise_linear(c->of->activation);
    t.z_error =
        moved(curve_value, c, t.y, t.y_error + curved * 2 * p.u * fabs(t.y)) + curved * lost_exponential(c, t.y);
    t.z_error += (6 * p.u + p.stored) * fabs(t.z) + p.smallest;
    return t;
}

/* The error of y recovered from z + z_error or z - z_error: the distance to the y of these z. If there is none, below
 * the minimum of the curve, it is the distance to the minimum. */
static double inverse_error(const channel *c, const term *t, double z_error) {
    const abn_activation activation = c->of->activation;
    const double minimum = abn_escape_rule_of(activation, c->param, c->of->dtype).minimum;
    const int has_minimum = abn_activation_table[activation].inverse == ABN_FROM_Z_AND_SIDE;
    const double to_minimum = has_minimum ? minimum - t->y : NAN;
    double error = z_error / fabs(t->slope == 0 ? 1 : t->slope);
    if (curve_is_piecewise_linear(activation)) return error;
    for (int i = 0; i < 30; i++, error *= 1.2) {
        const double up = fabs(curve_value(activation, c->param, t->y + error) - t->z);
        const double down = fabs(curve_value(activation, c->param, t->y - error) - t->z);
        const int beyond = error >= fabs(to_minimum);
        if ((up >= z_error || (beyond && to_minimum > 0)) && (down >= z_error || (beyond && to_minimum < 0))) break;
    }
    return error;
}

/* The error of the slope at a y with this error, if it is not computed from z alone. */
static double slope_error(const channel *c, const term *t, double y_error) {
    const precision p = c->p;
    const abn_activation activation = c->of->activation;
    if (curve_is_piecewise_linear(activation)) return 2 * p.u * fabs(t->slope);
    return moved(curve_slope, c, t->y, y_error + 2 * p.u * fabs(t->y)) +
           8 * p.u * curve_slope_terms(activation, c->param, t->y) + lost_exponential(c, t->y);
}

/* In float the inverses of activations with a minimum are polynomials with errors up to 4e-7, and so are their
 * slopes. */
static int is_fitted(const channel *c) {
    return abn_activation_table[c->of->activation].inverse == ABN_FROM_Z_AND_SIDE && c->of->dtype != ABN_FLOAT64;
}

static errors errors_from_z(const channel *c, const term *t) {
    const precision p = c->p;
    const int linear = curve_is_piecewise_linear(c->of->activation);
    errors e;
    e.y = inverse_error(c, t, t->z_error + (linear ? 2 : 8) * p.u * fabs(t->z)) + 4 * p.u * fabs(t->y);
    e.slope = slope_error(c, t, e.y);
    if (!linear) e.slope += 4 * p.u * curve_slope_terms_of_z(c->of->activation, c->param, t->y);
    if (is_fitted(c)) e.y += 6 * p.u, e.slope += 8 * p.u;
    e.xhat = (e.y + 4 * p.u * (fabs(t->residual) + fabs(c->bias))) / fabs(c->weight);
    return e;
}

/* xhat from the kept y, and the slope at it. */
static errors errors_from_y(const channel *c, const term *t) {
    const double beside = fabs(t->residual) + fabs(c->bias) + fabs(t->y);
    return (errors){(t->y_error + 4 * c->p.u * beside) / fabs(c->weight), t->y_error, slope_error(c, t, t->y_error)};
}

static double larger(double a, double b) { return a > b ? a : b; }

/* Errors of values recovered from the kept buffer. */
static errors errors_of_kept(const channel *c, const term *t, ptrdiff_t i) {
    const int recovers = recovers_xhat(c->of), guarded = recovers && c->twin->slot[c->index] >= 0;
    const double storing = guarded ? t->storing_xhat : 0;
    const double y_error = t->y_error + fabs(c->weight) * storing;
    const errors directly = {t->xhat_error + storing, y_error, slope_error(c, t, y_error)};
    if (!recovers || guarded) return directly;
    const recovery found = twin_recovery(c->twin, c->of, c->index, i);
    if (found == ESCAPED) return directly;
    const errors indirectly = c->of->keep == ABN_KEEP_Y ? errors_from_y(c, t) : errors_from_z(c, t);
    if (found == RECOVERED) return indirectly;
    return (errors){larger(directly.xhat, indirectly.xhat), larger(directly.y, indirectly.y),
                    larger(directly.slope, indirectly.slope)};
}

recovery twin_recovery(const twin *t, const problem *of, ptrdiff_t channel, ptrdiff_t element) {
    const abn_batch kept = {NULL, of->dtype, of->of.batch, of->of.channels, of->of.spatial, 0, 0, 0};
    const abn_context context = twin_context(t, of, &kept, &kept);
    abn_escape_rule rule = abn_escape_rule_for(&context, of->training);
    const double y = t->y[element], margin = t->y_error[element], size = fabs(t->residual[element]);
    const double limit = abn_residual_limit(of->dtype, t->weight[channel], t->bias[channel]);
    const double limit_margin = precision_of(of->dtype).u * 2 * fabs(limit);
    const double y_distance = fmin(fmin(y - rule.below, rule.above - y), fabs(y - rule.minimum) - rule.near);
    const double residual_distance = of->residual ? limit - size : INFINITY;
    if (y_distance < -margin || residual_distance < -limit_margin) return ESCAPED;
    return y_distance > margin && residual_distance > limit_margin ? RECOVERED : UNDECIDED;
}

/* ---- one channel --------------------------------------------------------------------------------------- */

#define FOR_EACH_INDEX(i, c, of)                              \
    for (ptrdiff_t image_ = 0; image_ < (of).batch; image_++) \
        for (ptrdiff_t i = (image_ * (of).channels + (c)) * (of).spatial, end_ = i + (of).spatial; i < end_; i++)

static void solve_moments(twin *t, const problem *of, ptrdiff_t c) {
    const precision p = precision_of(of->dtype);
    const double count = (double)of->of.batch * (double)of->of.spatial;
    total sum = {0, 0}, squares = {0, 0};
    FOR_EACH_INDEX(i, c, of->of) add(&sum, t->x[i]);
    t->mean[c] = of_total(sum) / count;
    FOR_EACH_INDEX(i, c, of->of) {
        const double d = t->x[i] - t->mean[c];
        add(&squares, d * d);
    }
    t->var[c] = of_total(squares) / count;
    t->mean_error[c] = p.sums * sqrt(t->var[c]) + 2 * DBL_EPSILON * fabs(t->mean[c]) + p.tiny;
    t->var_error[c] = 4 * p.sums * t->var[c] + t->mean_error[c] * t->mean_error[c] + p.tiny;
}

typedef struct {
    double dy, dy_error, xhat_dy, xhat_dy_error, param, param_error; /* sums of |terms|, and of their errors */
} sizes;

static void solve_forward(twin *t, const channel *k, ptrdiff_t c) {
    FOR_EACH_INDEX(i, c, k->of->of) {
        const term e = term_of(k, i);
        t->xhat[i] = e.xhat, t->y[i] = e.y, t->z[i] = e.z;
        t->xhat_error[i] = e.xhat_error, t->y_error[i] = e.y_error, t->z_error[i] = e.z_error;
        if (e.undecided) t->dz[i] = 0;
    }
}

static sizes solve_sums(twin *t, const channel *k, ptrdiff_t c) {
    total dy_sum = {0, 0}, product_sum = {0, 0}, param_sum = {0, 0};
    sizes s = {0, 0, 0, 0, 0, 0};
    FOR_EACH_INDEX(i, c, k->of->of) {
        const term e = term_of(k, i);
        const errors kept = errors_of_kept(k, &e, i);
        const double size = fabs(t->dz[i]), dy = t->dz[i] * e.slope, dy_error = size * kept.slope + k->p.tiny;
        add(&dy_sum, dy);
        add(&product_sum, dy * e.xhat);
        add(&param_sum, t->dz[i] * (e.y > 0 ? 0 : e.y));
        s.dy += fabs(dy);
        s.dy_error += dy_error;
        s.xhat_dy += fabs(dy * e.xhat);
        s.xhat_dy_error += fabs(dy) * kept.xhat + fabs(e.xhat) * dy_error;
        s.param += size * fabs(fmin(e.y, 0));
        if (!(e.y >= kept.y)) s.param_error += size * kept.y + k->p.tiny; /* NaN: y overflows */
    }
    t->sum_dy[c] = of_total(dy_sum);
    t->sum_dy_xhat[c] = of_total(product_sum);
    t->sum_param[c] = of_total(param_sum);
    t->sum_dy_error[c] = s.dy_error + k->p.sums * s.dy;
    t->sum_dy_xhat_error[c] = s.xhat_dy_error + k->p.sums * s.xhat_dy;
    t->sum_param_error[c] = s.param_error + k->p.sums * s.param;
    return s;
}

/* In evaluation dx does not depend on sums and xhat. If xhat is NaN, dx may be NaN too. */
static void solve_gradients(twin *t, const channel *k, ptrdiff_t c, sizes s) {
    const int training = k->of->training;
    const double count = (double)k->of->of.batch * (double)k->of->of.spatial;
    const precision p = k->p;
    FOR_EACH_INDEX(i, c, k->of->of) {
        const term e = term_of(k, i);
        const errors kept = errors_of_kept(k, &e, i);
        const double dy = t->dz[i] * e.slope, xhat = fabs(e.xhat);
        const double share = training ? (t->sum_dy[c] + e.xhat * t->sum_dy_xhat[c]) / count : 0;
        const double terms = fabs(dy) + (training ? (s.dy + xhat * s.xhat_dy) / count : 0);
        const double dy_error = fabs(t->dz[i]) * kept.slope + p.tiny;
        const double sums_error = t->sum_dy_error[c] + xhat * t->sum_dy_xhat_error[c] + kept.xhat * s.xhat_dy;
        const double error =
            dy_error + (training ? sums_error / count : 0) + (6 * p.u + (training ? p.sums : 0)) * terms;
        t->dx[i] = k->weight * k->inv_std * (dy - share);
        t->dx_error[i] = fabs(k->weight) * k->inv_std * error + p.stored * fabs(t->dx[i]) + p.smallest;
        if (isnan(e.xhat)) t->dx_error[i] = NAN;
        t->dy[i] = dy;
        t->dy_error[i] = dy_error + p.stored * fabs(dy) + p.smallest;
    }
}

/* Lets the library choose the guarded channels, which must not depend on the memory layout. */
static void ask_for_guards(twin *t, const problem *of) {
    tensor batch = tensor_open(of->dtype, of->of, (layout){"channels-first", 0, 0, 0}, FLUSH_END);
    tensor_write(&batch, t->residual);
    const abn_context context = twin_context(t, of, &batch.batch, &batch.batch);
    abn_guard_channels(&context, t->slot);
    tensor_close(&batch);
}

void twin_solve(twin *t, const problem *of) {
    if (of->of.batch * of->of.spatial == 0) return;
    if (recovers_xhat(of)) ask_for_guards(t, of);
    for (ptrdiff_t c = 0; c < of->of.channels; c++) {
        if (of->training) solve_moments(t, of, c);
        const channel k = {of,         t,           precision_of(of->dtype),
                           c,          t->param[c], t->weight[c],
                           t->bias[c], t->mean[c],  1 / sqrt(t->var[c] + eps_of_variance)};
        solve_forward(t, &k, c);
        solve_gradients(t, &k, c, solve_sums(t, &k, c));
    }
}
