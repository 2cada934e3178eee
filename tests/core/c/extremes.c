#include "extremes.h"

#include <math.h>

#include "cases.h"
#include "check.h"

/* x of an element, from its index in the channel and a random number of mean 2 and variance 1. */
typedef double pattern(abn_dtype dtype, ptrdiff_t index, double drawn);

static double all_zero(abn_dtype dtype, ptrdiff_t index, double drawn) {
    (void)dtype, (void)index, (void)drawn;
    return 0;
}

static double constant(abn_dtype dtype, ptrdiff_t index, double drawn) {
    (void)dtype, (void)index, (void)drawn;
    return 3.7;
}

static double outlier(abn_dtype dtype, ptrdiff_t index, double drawn) {
    return index != 7 ? drawn : dtype == ABN_FLOAT16 ? 6e4 : 1e30;
}

static double far_from_zero(abn_dtype dtype, ptrdiff_t index, double drawn) {
    (void)index;
    return dtype == ABN_FLOAT16 ? 1e3 + drawn : 1e6 + 1e-3 * drawn;
}

static double denormal(abn_dtype dtype, ptrdiff_t index, double drawn) {
    (void)index;
    return 100 * spacing_near_zero(dtype) * drawn;
}

static double huge(abn_dtype dtype, ptrdiff_t index, double drawn) {
    (void)index;
    return (dtype == ABN_FLOAT16 ? 1e3 : 1e18) * (drawn - 2);
}

static double infinite(abn_dtype dtype, ptrdiff_t index, double drawn) {
    (void)dtype;
    return index == 7 ? INFINITY : drawn;
}

static double not_a_number(abn_dtype dtype, ptrdiff_t index, double drawn) {
    (void)dtype;
    return index == 7 ? NAN : drawn;
}

/* In training an infinity or NaN affects its whole channel; in evaluation no other element. */
enum { EVALUATION, TRAINING };

static const struct {
    const char *name;
    pattern *x;
    int training;
} patterns[] = {
    {"all zero", all_zero, TRAINING},   {"constant", constant, TRAINING},
    {"one outlier", outlier, TRAINING}, {"far from zero", far_from_zero, TRAINING},
    {"denormal", denormal, TRAINING},   {"huge", huge, TRAINING},
    {"infinite", infinite, TRAINING},   {"not a number", not_a_number, EVALUATION},
};

static const double weights[] = {0, -0.0, 1e-38, -1e-20, 1e-3, 1, -1, 1e10, -1e30};
static const double biases[] = {0, 1e-38, 1, -1e3, 1e30};
enum { WEIGHTS = sizeof weights / sizeof *weights, BIASES = sizeof biases / sizeof *biases };

/* Drops the error bound where the result, within its error, may overflow the type. */
static void drop_bounds_near_overflow(twin *t, const problem *of) {
    const double largest = formats[of->dtype].largest / 4;
    for (ptrdiff_t i = 0; i < elements_of(of->of); i++) {
        if (fabs(t->z[i]) + t->z_error[i] >= largest) t->z_error[i] = INFINITY;
        if (fabs(t->dx[i]) + t->dx_error[i] >= largest) t->dx_error[i] = INFINITY;
    }
}

static void test_pattern(const abn_kernels *kernels, const problem *of, int which, unsigned seed) {
    twin t = twin_draw(of, seed);
    for (ptrdiff_t c = 0; c < of->of.channels; c++) {
        t.weight[c] = weights[c / 2 % WEIGHTS];
        t.bias[c] = biases[c / 2 / WEIGHTS];
    }
    for (ptrdiff_t i = 0; i < elements_of(of->of); i++) /* every second channel; the others must not change */
        if (i / of->of.spatial % 2 == 0)
            t.x[i] = rounded(of->dtype, patterns[which].x(of->dtype, i % of->of.spatial, t.x[i]));
    twin_solve(&t, of);
    drop_bounds_near_overflow(&t, of);
    for (int last = 0; last < 2; last++) {
        const layout as = {last ? "channels-last" : "channels-first", last, 0, 0};
        const setting in = {kernels, as, as, FLUSH_END, seed & 1 ? ABN_SCHEME_I : ABN_SCHEME_II};
        now_testing("%s %s %s, %s, %s, keep %d, scheme %d", abn_kernels_name(kernels), dtype_names[of->dtype], as.name,
                    patterns[which].name, abn_activation_table[of->activation].name, of->keep, in.scheme);
        test_case(of, &t, &in);
    }
    twin_free(&t);
}

/* Two of three patterns have a residual; over all activations each pattern occurs with one and without. `every` should
 * have no common divisor with the 8 patterns and the 3 residuals. */
void test_extremes(const abn_kernels *kernels, int every) {
    enum { PATTERNS = sizeof patterns / sizeof *patterns };
    const shape of = {2, 2 * WEIGHTS * BIASES, 35};
    unsigned seed = 0, count = 0;
    for (abn_dtype dtype = 0; dtype < ABN_DTYPES; dtype++)
        for (abn_activation activation = 0; activation < ABN_ACTIVATIONS; activation++)
            for (abn_keep keep = ABN_KEEP_Z; keep <= ABN_KEEP_Y; keep++)
                for (int which = 0; which < PATTERNS; which++, seed++) {
                    if (keep == ABN_KEEP_Z && abn_activation_table[activation].inverse == ABN_NO_INVERSE) continue;
                    if (activation > ABN_ELU && activation != ABN_RELU && seed % 5) continue;
                    if (count++ % (unsigned)every) continue;
                    test_pattern(
                        kernels,
                        &(problem){of, dtype, activation, keep, patterns[which].training, DRAW_ORDINARY, seed % 3},
                        which, seed);
                }
}
