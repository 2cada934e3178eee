/* One problem through statistics, forward, recompute and backward, by one thread and by three. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "run.h"

enum { ALONE = 1, SHARED = 3 };

/* What came out, to be compared between numbers of threads. */
typedef struct {
    double *of_elements, *of_channels;
    ptrdiff_t elements, channels;
} results;

/* Not a number: of a channel that holds something infinite, of which nothing is promised. */
static void compare(const char *what, const double *got, const double *want, const double *error, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) {
        if (isnan(want[i]) || isnan(error[i])) continue;
        if (!check(fabs(got[i] - want[i]) <= error[i], "%s[%td] is %g, expected %g +- %g", what, i, got[i], want[i],
                   error[i]))
            return;
    }
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
    check(abn_statistics(&r->machine, &r->x.batch, mean.data, var.data) == ABN_OK, "statistics failed");
    array_thaw(&r->x.memory);
    memcpy(mean_and_var, mean.data, mean.bytes);
    memcpy(mean_and_var + channels, var.data, var.bytes);
    array_close(&mean);
    array_close(&var);
}

/* From here on what is kept may only be read. */
static void run_forward(run *r, double *z) {
    const problem *of = r->of;
    if (of->keep == ABN_KEEP_X) array_freeze(&r->x.memory);
    check(abn_forward(&r->machine, &r->x.batch, &r->z.batch, &r->context, of->training) == ABN_OK, "forward failed");
    array *kept[] = {&r->x.memory, &r->mean, &r->var, &r->inv_std, &r->slot, &r->beside};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) array_freeze(kept[i]);
    tensor_read(&r->z, z);
    compare("z", z, r->expected->z, r->expected->z_error, elements_of(of->of));
}

static void run_recompute(run *r, double *z) {
    tensor again = tensor_open(r->of->dtype, r->of->of, r->in->others, r->in->side);
    check(abn_recompute(&r->machine, &r->context, &again.batch) == ABN_OK, "recompute failed");
    tensor_read(&again, z);
    compare("z again", z, r->expected->z, r->expected->z_error, elements_of(r->of->of));
    tensor_close(&again);
}

static void compare_gradients(const run *r, const double *dx, const double *sums) {
    const twin *t = r->expected;
    const ptrdiff_t channels = r->of->of.channels;
    compare("sum_dy", sums, t->sum_dy, t->sum_dy_error, channels);
    compare("sum_dy_xhat", sums + channels, t->sum_dy_xhat, t->sum_dy_xhat_error, channels);
    compare("dx", dx, t->dx, t->dx_error, elements_of(r->of->of));
}

/* In two steps from a dz that may only be read, or in one that writes over dz. */
static void run_backward(run *r, int in_place, double *dx_values, double *sums) {
    const shape of = r->of->of;
    const ptrdiff_t channels = of.channels;
    tensor dz = tensor_open(r->of->dtype, of, r->in->others, r->in->side);
    tensor dx = in_place ? dz : tensor_open(r->of->dtype, of, r->in->x, r->in->side);
    array sum_dy = array_of_doubles(NULL, channels, r->in->side),
          product = array_of_doubles(NULL, channels, r->in->side);
    tensor_write(&dz, r->expected->dz);
    if (in_place) {
        check(abn_backward(&r->machine, &r->context, &dz.batch, &dx.batch, sum_dy.data, product.data,
                           r->of->training) == ABN_OK,
              "backward failed");
    } else {
        const double count = r->of->training ? (double)(of.batch * of.spatial) : 0;
        array_freeze(&dz.memory);
        check(abn_backward_reduce(&r->machine, &r->context, &dz.batch, sum_dy.data, product.data) == ABN_OK,
              "backward_reduce failed");
        array_freeze(&sum_dy);
        array_freeze(&product);
        check(abn_backward_apply(&r->machine, &r->context, &dz.batch, &dx.batch, sum_dy.data, product.data, count) ==
                  ABN_OK,
              "backward_apply failed");
    }
    tensor_read(&dx, dx_values);
    memcpy(sums, sum_dy.data, sum_dy.bytes);
    memcpy(sums + channels, product.data, product.bytes);
    if (elements_of(of) > 0) compare_gradients(r, dx_values, sums);
    if (!in_place) tensor_close(&dz);
    tensor_close(&dx);
    array_close(&sum_dy);
    array_close(&product);
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
    for (int in_place = 0; in_place < 2; in_place++)
        run_backward(&r, in_place, place(&elements_next, elements), place(&channels_next, 2 * channels));
    out->elements = elements_next - out->of_elements;
    out->channels = channels_next - out->of_channels;
    run_close(&r);
}

static results results_open(shape of) {
    const size_t elements = 4 * (size_t)elements_of(of) + 1, channels = 6 * (size_t)of.channels + 1;
    results r = {malloc(elements * sizeof(double)), malloc(channels * sizeof(double)), 0, 0};
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
