/* Draws the inputs of the twin. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "twin.h"

const double eps_of_variance = 1e-5;

double param_of(abn_activation activation) {
    return activation == ABN_LEAKY_RELU ? 0.01 : activation == ABN_ELU || activation == ABN_CELU ? 0.75 : 1;
}

abn_context twin_context(const twin *t, const problem *of, const abn_batch *kept, const abn_batch *residual) {
    return (abn_context){
        .keep = of->keep,
        .scheme = ABN_SCHEME_II,
        .kept = *kept,
        .activation = of->activation,
        .activation_param = param_of(of->activation),
        .channel_param = abn_activation_table[of->activation].param == ABN_CHANNEL_PARAM ? t->param : NULL,
        .residual = of->residual ? *residual : (abn_batch){.data = NULL},
        .norm = {.eps = eps_of_variance, .weight = t->weight, .bias = t->bias, .mean = t->mean, .var = t->var},
    };
}

static double uniform(uint64_t *state) { /* in (-1, 1) */
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(*state >> 11) + 0.5) * 0x1p-52 - 1;
}

static double bell(uint64_t *state) { /* mean 0, variance 1 */
    return uniform(state) + uniform(state) + uniform(state);
}

static twin twin_open(const problem *of) {
    const size_t channels = (size_t)of->of.channels, elements = (size_t)elements_of(of->of);
    twin t = {.memory = NULL};
    double **per_channel[] = {
        &t.weight,         &t.bias,      &t.param,      &t.mean,      &t.var,          &t.sum_dy,
        &t.sum_dy_xhat,    &t.sum_param, &t.mean_error, &t.var_error, &t.sum_dy_error, &t.sum_dy_xhat_error,
        &t.sum_param_error};
    double **per_element[] = {&t.x,  &t.residual,   &t.dz,      &t.xhat,    &t.y,        &t.z,       &t.dx,
                              &t.dy, &t.xhat_error, &t.y_error, &t.z_error, &t.dx_error, &t.dy_error};
    enum {
        PER_CHANNEL = sizeof per_channel / sizeof *per_channel,
        PER_ELEMENT = sizeof per_element / sizeof *per_element
    };
    double *next = t.memory = calloc(PER_CHANNEL * channels + PER_ELEMENT * elements + 1, sizeof *next);
    t.slot = calloc(channels + 1, sizeof *t.slot);
    if (!t.memory || !t.slot) abort();
    for (int i = 0; i < PER_CHANNEL; i++, next += channels) *per_channel[i] = next;
    for (int i = 0; i < PER_ELEMENT; i++, next += elements) *per_element[i] = next;
    return t;
}

/* Slopes of prelu. The library must keep xhat of channels whose slope is not positive. */
static const double slopes[] = {0.25, -0.5, 1.5, 0};

static void draw_channels(twin *t, const problem *of, uint64_t *state) {
    const int half = abn_dtype_size(of->dtype) == 2;
    for (ptrdiff_t c = 0; c < of->of.channels; c++) {
        const double size = 1.25 + 0.75 * uniform(state);
        t->weight[c] = uniform(state) < 0 ? -size : size;
        t->bias[c] = (half ? 3 : 9) * size * uniform(state);
        if (of->drawn == DRAW_LOST && c % 3) t->weight[c] = c % 3 == 1 ? 0 : size * 1e-9;
        t->param[c] = of->activation == ABN_PRELU ? slopes[c % 4] : param_of(of->activation);
        t->mean[c] = 1.5 + uniform(state);
        t->var[c] = 1.25 + uniform(state);
    }
}

static double draw_residual(const problem *of, ptrdiff_t i, uint64_t *state) {
    const double drawn = bell(state), swamping = of->dtype == ABN_FLOAT16 ? 4e3 : 1e6;
    const ptrdiff_t kind = channel_of(of->of, i) % 3;
    if (of->residual == NO_RESIDUAL) return 0;
    if (of->residual == RESIDUAL_SWAMPS && (kind == 1 || (kind == 2 && i % 13 == 0))) return swamping * drawn;
    return drawn;
}

/* Every second channel begins with a few elements unlike the others. The library takes the first centre of its sums
 * from these, and must then recompute the sums with a better centre. */
twin twin_draw(const problem *of, unsigned seed) {
    const ptrdiff_t channels = of->of.channels, elements = elements_of(of->of);
    twin t = twin_open(of);
    uint64_t state = seed;
    uniform(&state);
    draw_channels(&t, of, &state);
    for (ptrdiff_t i = 0; i < elements; i++) {
        const ptrdiff_t row = i / of->of.spatial;
        const int unlike = row < channels && row % 2 && i % of->of.spatial < 8;
        t.x[i] = rounded(of->dtype, (unlike ? 40 : 2) + bell(&state));
        t.dz[i] = rounded(of->dtype, bell(&state));
        t.residual[i] = rounded(of->dtype, draw_residual(of, i, &state));
    }
    return t;
}

void twin_free(twin *t) {
    free(t->memory);
    free(t->slot);
}
