/* Every operation in the kernels' type is right to a relative u, every stored value to half a unit in its last place;
 * the bounds are these, carried along to first order. Sizes of terms count, not sizes of results: y may cancel near
 * zero, and so may sums. */
#include "twin.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

const double eps_of_variance = 1e-5;

double param_of(abn_activation activation) {
    return activation == ABN_LEAKY_RELU ? 0.01 : activation == ABN_ELU ? 0.75 : 1;
}

/* ---- sums that lose nothing ---------------------------------------------------------------------------- */

typedef struct {
    double sum, lost;
} total;

static void add(total *t, double value) {
    const double sum = t->sum + value;
    t->lost += fabs(t->sum) >= fabs(value) ? (t->sum - sum) + value : (value - sum) + t->sum;
    t->sum = sum;
}

static double of_total(total t) { return t.sum + t.lost; }

/* ---- what rounding may do ------------------------------------------------------------------------------ */

/* In units of u. Up to some hundred terms are added in the kernels' type, then in double: errors that point either
 * way leave less than the square root of that. Values of a half type lie on so coarse a grid that, shifted by a
 * centre, they share their last digits, and lose them in one direction. */
static const double summing_units[ABN_DTYPES] = {8, 8, 160, 160};

/* 1 + z / alpha below which elu's z does not tell y: xhat is kept beside it. */
static const double flat[ABN_DTYPES] = {0x1p-9, 0x1p-24, 0x1p-5, 0x1p-4};

typedef struct {
    double u;        /* of an operation */
    double stored;   /* of a stored element */
    double smallest; /* of an element, and ... */
    double tiny;     /* ... of a product in the kernels' type */
    double sums;     /* of a sum, relative to the sum of the sizes of its terms */
} precision;

static precision precision_of(abn_dtype dtype) {
    /* In double the twin rounds as much as the library. */
    const double u = dtype == ABN_FLOAT64 ? DBL_EPSILON : FLT_EPSILON / 2;
    return (precision){u, ldexp(1, -formats[dtype].digits), spacing_near_zero(dtype),
                       2 * spacing_near_zero(dtype == ABN_FLOAT64 ? ABN_FLOAT64 : ABN_FLOAT32),
                       summing_units[dtype] * u};
}

/* ---- one element --------------------------------------------------------------------------------------- */

typedef struct {
    double xhat, y, z, slope;
    double xhat_error, y_error, z_error; /* of the forward */
    double storing_xhat;
    int open; /* rounding decides on which side of 0 y is */
} term;

typedef struct {
    const problem *of;
    precision p;
    double param, weight, bias, mean, inv_std;
} channel;

static double activated(const channel *c, double y) {
    switch (c->of->activation) {
        case ABN_LEAKY_RELU: return y >= 0 ? y : c->param * y;
        case ABN_ELU: return y >= 0 ? y : c->param * expm1(y);
        case ABN_RELU: return y < 0 ? 0 : y; /* NaN stays */
        default: return y;
    }
}

static double slope_at(const channel *c, double y) {
    switch (c->of->activation) {
        case ABN_LEAKY_RELU: return y >= 0 ? 1 : c->param;
        case ABN_ELU: return y >= 0 ? 1 : c->param * exp(y);
        case ABN_RELU: return y >= 0;
        default: return 1;
    }
}

/* An error of y in exp(y), relative to it. */
static double through_exp(const channel *c, double error) {
    return c->of->activation == ABN_ELU ? expm1(error) : error;
}

static term term_of(const channel *c, double x) {
    const precision p = c->p;
    const double summing = c->of->training ? p.sums : 0; /* given statistics are exact */
    term t = {.xhat = (x - c->mean) * c->inv_std};
    t.y = c->weight * t.xhat + c->bias;
    t.z = activated(c, t.y);
    t.slope = slope_at(c, t.y);
    t.xhat_error = fabs(t.xhat) * (4 * p.u + summing) + summing;
    t.xhat_error += 2 * DBL_EPSILON * fabs(c->mean) * c->inv_std; /* mean and centre are rounded to double */
    if (c->of->keep != ABN_KEEP_X) t.storing_xhat = p.stored * fabs(t.xhat) + p.smallest;
    if (c->of->keep == ABN_KEEP_XHAT) t.xhat_error += t.storing_xhat;
    t.y_error = fabs(c->weight) * t.xhat_error + p.u * (fabs(t.y) + 2 * fabs(c->bias));
    const double near = t.y_error + fabs(c->weight) * t.storing_xhat + p.smallest / fmin(1, c->param);
    t.open = c->weight != 0 && fabs(t.y) <= 4 * near;
    const double steepest = t.open ? fmax(1, c->param) : fabs(t.slope);
    t.z_error = steepest * through_exp(c, t.y_error) + (6 * p.u + p.stored) * fabs(t.z) + p.smallest;
    return t;
}

/* Errors of xhat and of activation'(y) when they are had back from what was kept. */
static void errors_of_kept(const channel *c, const term *t, double *xhat_error, double *slope_error) {
    const precision p = c->p;
    const double alpha = c->of->activation == ABN_ELU ? c->param : 0, weight = fabs(c->weight);
    const double curved = alpha * exp(fmin(t->y, 0)); /* how fast elu's slope changes with y */
    *xhat_error = t->xhat_error;
    *slope_error = curved * (through_exp(c, t->y_error) + 6 * p.u) + 2 * p.u * t->slope + p.tiny * (alpha > 0);
    if (c->of->keep != ABN_KEEP_Z) return;
    *xhat_error += t->storing_xhat; /* of what is kept beside z */
    *slope_error += curved * through_exp(c, t->y_error + weight * t->storing_xhat);
    const double from_z = (alpha > 0 ? t->z_error : 0) + 4 * p.u * fmax(alpha, t->slope);
    if (from_z > *slope_error) *slope_error = from_z;
    const int lost = weight == 0 || (alpha > 0 && t->z + t->z_error < -alpha * (1 - flat[c->of->dtype]));
    if (lost) return;
    double y_error = (t->z_error + 2 * p.u * fabs(t->z)) / (t->slope == 0 ? 1 : t->slope);
    y_error += 4 * p.u * (fabs(t->y) + fabs(c->bias));
    if (y_error / weight > *xhat_error) *xhat_error = y_error / weight;
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
    double dy, dy_error, xhat_dy, xhat_dy_error; /* sums of the sizes of terms, and of their errors */
} sizes;

static sizes solve_sums(twin *t, const channel *k, ptrdiff_t c) {
    total dy_sum = {0, 0}, product_sum = {0, 0};
    sizes s = {0, 0, 0, 0};
    FOR_EACH_INDEX(i, c, k->of->of) {
        const term e = term_of(k, t->x[i]);
        double xhat_error, slope_error;
        errors_of_kept(k, &e, &xhat_error, &slope_error);
        t->z[i] = e.z;
        t->z_error[i] = e.z_error;
        if (e.open) t->dz[i] = 0;
        const double dy = t->dz[i] * e.slope, dy_error = fabs(t->dz[i]) * slope_error + k->p.tiny;
        add(&dy_sum, dy);
        add(&product_sum, dy * e.xhat);
        s.dy += fabs(dy);
        s.dy_error += dy_error;
        s.xhat_dy += fabs(dy * e.xhat);
        s.xhat_dy_error += fabs(dy) * xhat_error + fabs(e.xhat) * dy_error;
    }
    t->sum_dy[c] = of_total(dy_sum);
    t->sum_dy_xhat[c] = of_total(product_sum);
    t->sum_dy_error[c] = s.dy_error + k->p.sums * s.dy;
    t->sum_dy_xhat_error[c] = s.xhat_dy_error + k->p.sums * s.xhat_dy;
    return s;
}

static void solve_dx(twin *t, const channel *k, ptrdiff_t c, sizes s) {
    const double count = (double)k->of->of.batch * (double)k->of->of.spatial, share = k->of->training ? 1 / count : 0;
    const precision p = k->p;
    FOR_EACH_INDEX(i, c, k->of->of) {
        const term e = term_of(k, t->x[i]);
        double xhat_error, slope_error;
        errors_of_kept(k, &e, &xhat_error, &slope_error);
        const double dy = t->dz[i] * e.slope, xhat = fabs(e.xhat);
        const double terms = fabs(dy) + share * (s.dy + xhat * s.xhat_dy);
        double error = fabs(t->dz[i]) * slope_error + p.tiny;
        error += share * (t->sum_dy_error[c] + xhat * t->sum_dy_xhat_error[c] + xhat_error * s.xhat_dy);
        error += (6 * p.u + (k->of->training ? p.sums : 0)) * terms;
        t->dx[i] = k->weight * k->inv_std * (dy - share * (t->sum_dy[c] + e.xhat * t->sum_dy_xhat[c]));
        t->dx_error[i] = fabs(k->weight) * k->inv_std * error + p.stored * fabs(t->dx[i]) + p.smallest;
    }
}

void twin_solve(twin *t, const problem *of) {
    if (of->of.batch * of->of.spatial == 0) return;
    for (ptrdiff_t c = 0; c < of->of.channels; c++) {
        if (of->training) solve_moments(t, of, c);
        const channel k = {of,
                           precision_of(of->dtype),
                           param_of(of->activation),
                           t->weight[c],
                           t->bias[c],
                           t->mean[c],
                           1 / sqrt(t->var[c] + eps_of_variance)};
        solve_dx(t, &k, c, solve_sums(t, &k, c));
    }
}

/* ---- what to compute from ------------------------------------------------------------------------------ */

static double uniform(uint64_t *state) { /* in (-1, 1) */
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(*state >> 11) + 0.5) * 0x1p-52 - 1;
}

static double bell(uint64_t *state) { /* mean 0, variance 1 */
    return uniform(state) + uniform(state) + uniform(state);
}

/* Every second channel begins with a few elements unlike the others: the library looks at these to centre its sums,
 * and has to take the sums again. */
twin twin_draw(const problem *of, unsigned seed) {
    const ptrdiff_t channels = of->of.channels, elements = elements_of(of->of);
    double *memory = calloc((size_t)(10 * channels + 6 * elements) + 1, sizeof *memory), *next = memory;
    if (memory == NULL) abort();
    twin t = {.memory = memory};
    double **per_channel[] = {&t.weight,    &t.bias,   &t.mean,        &t.var,          &t.mean_error,
                              &t.var_error, &t.sum_dy, &t.sum_dy_xhat, &t.sum_dy_error, &t.sum_dy_xhat_error};
    double **per_element[] = {&t.x, &t.dz, &t.z, &t.dx, &t.z_error, &t.dx_error};
    for (int i = 0; i < 10; i++, next += channels) *per_channel[i] = next;
    for (int i = 0; i < 6; i++, next += elements) *per_element[i] = next;

    const int half = abn_dtype_size(of->dtype) == 2;
    uint64_t state = seed;
    uniform(&state);
    for (ptrdiff_t c = 0; c < channels; c++) {
        const double size = 1.25 + 0.75 * uniform(&state);
        t.weight[c] = uniform(&state) < 0 ? -size : size;
        t.bias[c] = (half ? 3 : 9) * size * uniform(&state);
        if (of->drawn == DRAW_LOST && c % 3) t.weight[c] = c % 3 == 1 ? 0 : size * 1e-9;
        t.mean[c] = 1.5 + uniform(&state);
        t.var[c] = 1.25 + uniform(&state);
    }
    for (ptrdiff_t i = 0; i < elements; i++) {
        const ptrdiff_t row = i / of->of.spatial;
        const int unlike = row < channels && row % 2 && i % of->of.spatial < 8;
        t.x[i] = rounded(of->dtype, (unlike ? 40 : 2) + bell(&state));
        t.dz[i] = rounded(of->dtype, bell(&state));
    }
    return t;
}

void twin_free(twin *t) { free(t->memory); }
