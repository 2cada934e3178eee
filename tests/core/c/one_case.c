/* One problem through statistics, forward, recompute and backward, by one thread and by three. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "run.h"

enum { ALONE = 1, SHARED = 3 };

/* Results, compared between runs with different numbers of threads. */
typedef struct {
    double *of_elements, *of_channels;
    ptrdiff_t elements, channels;
} results;

/* An expected NaN must be NaN. If only the error bound is NaN, the channel has an infinity, and any result is right. */
static int is_right(double got, double want, double error) {
    if (isnan(want)) return isnan(got);
    return isnan(error) || fabs(got - want) <= error;
}

static void compare(const char *what, const double *got, const double *want, const double *error, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++)
        if (!check(is_right(got[i], want[i], error[i]), "%s[%td] is %g, expected %g +- %g", what, i, got[i], want[i],
                   error[i]))
            return;
}

/* The next place for `count` results. */
static double *place(double **next, ptrdiff_t count) {
    double *at = *next;
    *next += count;
    return at;
}

static void run_statistics(run *r, double *mean_and_var) {
    const ptrdiff_t channels = r->of->of.channels;
    array mean = array_of_doubles(NULL, channels, r->in->side), var = array_of_doubles(NULL, channels, r->in->side);
    array_freeze(&r->x.memory);
    check(abn_statistics(&r->machine, &r->x.batch, NULL, mean.data, var.data) == ABN_OK, "statistics failed");
    array_thaw(&r->x.memory);
    memcpy(mean_and_var, mean.data, mean.bytes);
    memcpy(mean_and_var + channels, var.data, var.bytes);
    array_close(&mean);
    array_close(&var);
}

/* Freezes the saved arrays: later operations must not write them. */
static void run_forward(run *r, double *z) {
    const problem *of = r->of;
    if (of->keep == ABN_KEEP_X) array_freeze(&r->x.memory);
    check(abn_forward(&r->machine, &r->x.batch, &r->z.batch, &r->context, of->training) == ABN_OK, "forward failed");
    array *kept[] = {&r->x.memory, &r->mean, &r->var, &r->inv_std, &r->slot, &r->guarded_xhat, &r->branch_mask};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) array_freeze(kept[i]);
    tensor_read(&r->z, z);
    compare("z", z, r->expected->z, r->expected->z_error, elements_of(of->of));
    check_side_data(r);
}

static void run_recompute(run *r, double *z) {
    tensor recomputed = tensor_open(r->of->dtype, r->of->of, r->in->others, r->in->side);
    check(abn_recompute(&r->machine, &r->context, &recomputed.batch) == ABN_OK, "recompute failed");
    tensor_read(&recomputed, z);
    compare("recomputed z", z, r->expected->z, r->expected->z_error, elements_of(r->of->of));
    tensor_close(&recomputed);
}

/* The arrays of a backward, between inaccessible pages. */
typedef struct {
    tensor dz, dx, dr;
    array dy, dy_xhat, param;
} gradients;

/* dr starts as a copy of dz, to which an in-place backward adds the gradient of the residual. */
static gradients gradients_open(const run *r, int in_place) {
    const problem *of = r->of;
    const flush_side side = r->in->side;
    const ptrdiff_t channels = of->of.channels, params = r->context.channel_param ? channels : 0;
    gradients g = {.dz = tensor_open(of->dtype, of->of, r->in->others, side)};
    g.dx = in_place ? g.dz : tensor_open(of->dtype, of->of, r->in->x, side);
    g.dr = tensor_open(of->dtype, of->of, r->in->x, side);
    g.dy = array_of_doubles(NULL, channels, side);
    g.dy_xhat = array_of_doubles(NULL, channels, side);
    g.param = array_of_doubles(NULL, params, side);
    tensor_write(&g.dz, r->expected->dz);
    tensor_write(&g.dr, r->expected->dz);
    return g;
}

static void gradients_close(gradients *g, int in_place) {
    if (!in_place) tensor_close(&g->dz);
    tensor_close(&g->dx);
    tensor_close(&g->dr);
    array_close(&g->dy);
    array_close(&g->dy_xhat);
    array_close(&g->param);
}

static void compare_dr(const run *r, const double *dr, int added) {
    const twin *t = r->expected;
    const ptrdiff_t elements = elements_of(r->of->of);
    const double stored = ldexp(1, -formats[r->of->dtype].digits);
    for (ptrdiff_t i = 0; i < elements; i++) {
        const double want = t->dy[i] + (added ? t->dz[i] : 0);
        const double error = t->dy_error[i] + 2 * stored * fabs(want);
        if (!check(is_right(dr[i], want, error), "dr[%td] is %.9g, expected %.9g +- %g; y is %g", i, dr[i], want, error,
                   t->y[i]))
            return;
    }
}

/* In place: one step, which writes dx over dz and adds the gradient of the residual to dr. Otherwise: two steps from a
 * read-only dz, which write dr. */
static void run_backward(run *r, int in_place, double **elements, double **channels) {
    const shape of = r->of->of;
    const twin *t = r->expected;
    gradients g = gradients_open(r, in_place);
    const abn_gradients to = {g.dx.batch, r->of->residual ? g.dr.batch : (abn_batch){.data = NULL}, in_place};
    const abn_sums sums = {g.dy.data, g.dy_xhat.data, g.param.bytes ? g.param.data : NULL};
    if (in_place) {
        check(abn_backward(&r->machine, &r->context, &g.dz.batch, &to, &sums, r->of->training) == ABN_OK,
              "backward failed");
    } else {
        const double count = r->of->training ? (double)(of.batch * of.spatial) : 0;
        array *read_only[] = {&g.dz.memory, &g.dy, &g.dy_xhat, &g.param};
        array_freeze(&g.dz.memory);
        check(abn_backward_reduce(&r->machine, &r->context, &g.dz.batch, &sums) == ABN_OK, "backward_reduce failed");
        for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) array_freeze(read_only[i]);
        check(abn_backward_apply(&r->machine, &r->context, &g.dz.batch, &to, &sums, count) == ABN_OK,
              "backward_apply failed");
    }
    double *dx = place(elements, elements_of(of)), *dr = place(elements, elements_of(of));
    double *of_channels[] = {place(channels, of.channels), place(channels, of.channels), place(channels, of.channels)};
    tensor_read(&g.dx, dx);
    tensor_read(&g.dr, dr);
    memcpy(of_channels[0], g.dy.data, g.dy.bytes);
    memcpy(of_channels[1], g.dy_xhat.data, g.dy_xhat.bytes);
    memcpy(of_channels[2], g.param.data, g.param.bytes);
    if (elements_of(of) > 0) {
        compare("sum_dy", of_channels[0], t->sum_dy, t->sum_dy_error, of.channels);
        compare("sum_dy_xhat", of_channels[1], t->sum_dy_xhat, t->sum_dy_xhat_error, of.channels);
        if (sums.param) compare("sum_param", of_channels[2], t->sum_param, t->sum_param_error, of.channels);
        compare("dx", dx, t->dx, t->dx_error, elements_of(of));
        if (to.residual.data) compare_dr(r, dr, in_place);
    }
    gradients_close(&g, in_place);
}

static void run_all(const problem *of, const twin *expected, const setting *in, int threads, results *out) {
    const ptrdiff_t elements = elements_of(of->of), channels = of->of.channels;
    double *elements_next = out->of_elements, *channels_next = out->of_channels;
    run r = run_open(of, expected, in, threads);
    double *mean_and_var = place(&channels_next, 2 * channels);
    run_statistics(&r, mean_and_var);
    if (of->training && elements > 0) {
        compare("mean", mean_and_var, expected->mean, expected->mean_error, channels);
        compare("var", mean_and_var + channels, expected->var, expected->var_error, channels);
    }
    run_forward(&r, place(&elements_next, elements));
    if (of->keep != ABN_KEEP_Z) run_recompute(&r, place(&elements_next, elements));
    for (int in_place = 0; in_place < 2; in_place++) run_backward(&r, in_place, &elements_next, &channels_next);
    out->elements = elements_next - out->of_elements;
    out->channels = channels_next - out->of_channels;
    run_close(&r);
}

static results results_open(shape of) {
    const size_t elements = 6 * (size_t)elements_of(of) + 1, channels = 8 * (size_t)of.channels + 1;
    results r = {calloc(elements, sizeof(double)), calloc(channels, sizeof(double)), 0, 0};
    if (!r.of_elements || !r.of_channels) abort();
    return r;
}

static void results_close(results *r) {
    free(r->of_elements);
    free(r->of_channels);
}

void test_case(const problem *of, const twin *expected, const setting *in) {
    results alone = results_open(of->of), shared = results_open(of->of);
    run_all(of, expected, in, ALONE, &alone);
    run_all(of, expected, in, SHARED, &shared);
    check(memcmp(alone.of_elements, shared.of_elements, (size_t)alone.elements * sizeof(double)) == 0,
          "elements differ between %d threads and %d", ALONE, SHARED);
    check(memcmp(alone.of_channels, shared.of_channels, (size_t)alone.channels * sizeof(double)) == 0,
          "sums differ between %d threads and %d", ALONE, SHARED);
    results_close(&alone);
    results_close(&shared);
}
