#include "cases.h"

#include "activations.h"
#include "check.h"
#include "curves.h"

/* Sizes near one, two and four vectors of each width, and near the limits for joining or stacking rows in a tile. */
static const shape light_shapes[] = {
    {1, 1, 2},  {2, 1, 1},   {7, 1, 1},   {2, 3, 7},   {5, 3, 1},   {33, 17, 1}, {1, 17, 33}, {2, 2, 65}, {4, 5, 49},
    {6, 70, 9}, {3, 66, 15}, {5, 129, 3}, {1, 3, 513}, {2, 1, 130}, {0, 3, 4},   {2, 0, 4},   {2, 3, 0},
};

/* More than one chunk of images and of positions, more channels than a strip, rows in slices that threads share. */
static const shape heavy_shapes[] = {{600, 3, 5},   {1100, 7, 1},  {2, 1030, 4},
                                     {3, 130, 401}, {1, 2, 40011}, {9, 1, 5003}};

static const layout layouts[] = {
    {"channels-first", 0, 0, 0}, {"channels-first with gaps", 0, 3, 5}, {"channels-first, images apart", 0, 0, 7},
    {"channels-last", 1, 0, 0},  {"channels-last with gaps", 1, 5, 0},  {"channels-last, images apart", 1, 0, 7},
};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

static const char *const keep_names[] = {"z", "x", "xhat", "y"};
static const char *const residual_names[] = {"no residual", "residual", "swamping residual"};

typedef struct {
    const abn_kernels *kernels;
    effort effort;
    unsigned long count, cheap, others;
} sweep;

static void test_layouts(sweep *s, const problem *of, int heavy) {
    twin expected = {.memory = NULL};
    for (int l = 0; l < LAYOUTS; l++) {
        const int other = (int)(s->count % 3); /* same order of channels, other gaps or none */
        setting in = {s->kernels, layouts[l], layouts[l / 3 * 3 + other], FLUSH_END, ABN_SCHEME_II};
        const int schemes = recovers_xhat(of) ? 2 : 1;
        for (int variant = 0; variant < 2 * schemes; variant++) {
            in.side = variant & 1 ? FLUSH_START : FLUSH_END;
            in.scheme = variant & 2 ? ABN_SCHEME_I : ABN_SCHEME_II;
            if (s->count++ % (unsigned)s->effort.every) continue;
            if (heavy && (s->count / (unsigned)s->effort.every) % 4) continue; /* each costs as much as 100 */
            if (expected.memory == NULL) {
                expected = twin_draw(of, (unsigned)s->count);
                twin_solve(&expected, of);
            }
            now_testing("%s %s, %td x %td x %td %s, others %s, %s, keep %s, scheme %s, %s, %s, %s, flush with the %s",
                        abn_kernels_name(s->kernels), dtype_names[of->dtype], of->of.batch, of->of.channels,
                        of->of.spatial, in.x.name, in.others.name, abn_activation_table[of->activation].name,
                        keep_names[of->keep], in.scheme == ABN_SCHEME_I ? "I" : "II",
                        of->training ? "training" : "evaluation", of->drawn == DRAW_LOST ? "lost weights" : "ordinary",
                        residual_names[of->residual], in.side == FLUSH_END ? "end" : "start");
            test_case(of, &expected, &in);
        }
    }
    twin_free(&expected);
}

/* True for every second problem with tile kernels (a piecewise linear activation without residual), and for every 17th
 * of the others. 2 and 17 do not divide the number of problems, so each is met after as many shapes. */
static int is_next(sweep *s, const problem *p) {
    if (curve_is_piecewise_linear(p->activation) && p->activation != ABN_PRELU && !p->residual)
        return s->cheap++ % 2 == 0;
    return s->others++ % 17 == 0;
}

static void test_problem(sweep *s, const problem *p, int heavy) {
    if (p->keep == ABN_KEEP_Z && abn_activation_table[p->activation].inverse == ABN_NO_INVERSE) return;
    if (p->drawn == DRAW_LOST && !recovers_xhat(p)) return;
    if (is_next(s, p)) test_layouts(s, p, heavy);
}

static void test_problems(sweep *s, shape of, abn_dtype dtype, int heavy) {
    for (abn_activation activation = 0; activation < ABN_ACTIVATIONS; activation++)
        for (residual_draw residual = NO_RESIDUAL; residual < RESIDUALS; residual++)
            for (abn_keep keep = ABN_KEEP_Z; keep <= ABN_KEEP_Y; keep++)
                for (int variant = 0; variant < 4; variant++)
                    test_problem(s,
                                 &(problem){of, dtype, activation, keep, variant < 2,
                                            variant & 1 ? DRAW_LOST : DRAW_ORDINARY, residual},
                                 heavy);
    s->cheap++; /* the next shape tests the other half */
}

/* a*c + d and b*c + a*d */
static void test_stream(const abn_kernels *kernels, flush_side side) {
    for (ptrdiff_t count = 0; count <= 70; count++) {
        const abn_machine machine = {kernels, 2};
        array a = array_open((size_t)count * sizeof(float), side), b = array_open((size_t)count * sizeof(float), side);
        float *first = a.data, *second = b.data;
        now_testing("%s stream over %td", abn_kernels_name(kernels), count);
        for (ptrdiff_t i = 0; i < count; i++) first[i] = (float)i, second[i] = (float)-i;
        abn_stream(&machine, first, NULL, count, 3, 1, 0);
        for (ptrdiff_t i = 0; i < count; i++) check(first[i] == (float)(3 * i + 1), "a[%td] is %g", i, first[i]);
        array_freeze(&a);
        abn_stream(&machine, first, second, count, 2, 3, 24);
        for (ptrdiff_t i = 0; i < count; i++) check(second[i] == (float)(7 * i + 3), "b[%td] is %g", i, second[i]);
        array_close(&a);
        array_close(&b);
    }
}

/* The minimum is where the slope changes its sign. */
static void test_curves(void) {
    for (abn_activation activation = 0; activation < ABN_ACTIVATIONS; activation++) {
        if (abn_activation_table[activation].inverse != ABN_FROM_Z_AND_SIDE) continue;
        const double at = abn_escape_rule_of(activation, 1, ABN_FLOAT64).minimum;
        now_testing("the minimum of %s", abn_activation_table[activation].name);
        check(curve_slope(activation, 1, at - 1e-14) < 0 && curve_slope(activation, 1, at + 1e-14) > 0,
              "it is not at %.17g", at);
    }
}

void test_cases(const abn_kernels *kernels, effort effort) {
    sweep s = {kernels, effort, 0, 0, 0};
    test_curves();
    test_stream(kernels, FLUSH_END);
    test_stream(kernels, FLUSH_START);
    for (abn_dtype dtype = 0; dtype < ABN_DTYPES; dtype++) {
        for (size_t i = 0; i < sizeof light_shapes / sizeof *light_shapes; i++)
            test_problems(&s, light_shapes[i], dtype, 0);
        for (size_t i = 0; effort.heavy && i < sizeof heavy_shapes / sizeof *heavy_shapes; i++)
            test_problems(&s, heavy_shapes[i], dtype, 1);
    }
}
