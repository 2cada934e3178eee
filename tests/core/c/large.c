#include "large.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "twin.h"

enum {
    PAGES = 257, /* of 4096 bytes: a prime */
    PERIOD_BYTES = PAGES * 4096,
    PERIOD = PERIOD_BYTES / 2, /* elements */
    TIMES = 4115,              /* PERIOD * TIMES is slightly above 2^31 */
};

static const size_t total_bytes = (size_t)PERIOD_BYTES * TIMES;

static void *mapped(void *at, size_t bytes, int rights, int flags, int file) {
    void *memory = mmap(at, bytes, rights, flags, file, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return memory;
}

/* Maps the same pages TIMES times in a row, between two inaccessible pages. */
static char *mirror_open(void) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *all = mapped(NULL, total_bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    const int file = memfd_create("mirror", 0);
    if (file < 0 || ftruncate(file, PERIOD_BYTES)) {
        perror("memfd_create");
        exit(2);
    }
    for (size_t i = 0; i < TIMES; i++)
        mapped(all + page + i * PERIOD_BYTES, PERIOD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file);
    close(file);
    return all + page;
}

static void mirror_close(char *memory) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(memory - page, total_bytes + 2 * page);
}

/* How the period is repeated: as more images, or as more positions. */
typedef struct {
    const char *name;
    shape of_period;
    layout as;
    int more_images;
} geometry;

static const geometry geometries[] = {
    {"one channel", {1, 1, PERIOD}, {"channels-first", 0, 0, 0}, 0},
    {"many images", {1, 4, PERIOD / 4}, {"channels-first", 0, 0, 0}, 1},
    {"small images", {PAGES, 32, 64}, {"channels-first", 0, 0, 0}, 1},
    {"few channels", {1, 4, PERIOD / 4}, {"channels-last", 1, 0, 0}, 1},
    {"many channels", {1, 2048, PAGES}, {"channels-last", 1, 0, 0}, 0},
};

static tensor period_at(const geometry *g, char *memory) {
    tensor t = tensor_open(ABN_FLOAT16, g->of_period, g->as, FLUSH_END);
    array_close(&t.memory); /* only its strides are used */
    t.batch.data = memory;
    return t;
}

static abn_batch whole_of(const geometry *g, const tensor *period) {
    abn_batch whole = period->batch;
    *(g->more_images ? &whole.batch : &whole.spatial) *= TIMES;
    if (!g->more_images) whole.batch_stride *= TIMES;
    return whole;
}

static void compare(const char *what, const double *got, const double *want, const double *error, ptrdiff_t count,
                    double scale) {
    for (ptrdiff_t i = 0; i < count; i++)
        if (!check(fabs(got[i] - want[i] * scale) <= error[i] * scale, "%s[%td] is %g, expected %g +- %g", what, i,
                   got[i], want[i] * scale, error[i] * scale))
            return;
}

/* The library's numbers per channel, and room to read a period. */
typedef struct {
    twin expected;
    double *mean, *var, *inv_std, *sum_dy, *product, *values;
} numbers;

static numbers numbers_open(const problem *of) {
    const ptrdiff_t channels = of->of.channels;
    double *memory = calloc((size_t)(5 * channels + PERIOD), sizeof *memory);
    if (memory == NULL) abort();
    numbers n = {twin_draw(of, 1),      memory,
                 memory + channels,     memory + 2 * channels,
                 memory + 3 * channels, memory + 4 * channels,
                 memory + 5 * channels};
    return n;
}

static void numbers_close(numbers *n) {
    free(n->mean);
    twin_free(&n->expected);
}

static abn_context context_of(const problem *of, const numbers *n, const abn_batch *kept) {
    abn_context context = twin_context(&n->expected, of, kept, kept);
    context.norm = (abn_norm){eps_of_variance, n->expected.weight, n->expected.bias, n->mean, n->var, n->inv_std};
    return context;
}

static void test_geometry(const abn_machine *machine, const geometry *g, char *const memory[4]) {
    const problem of = {g->of_period, ABN_FLOAT16, ABN_LEAKY_RELU, ABN_KEEP_X, 1, DRAW_ORDINARY, NO_RESIDUAL};
    const ptrdiff_t channels = g->of_period.channels;
    numbers n = numbers_open(&of);
    const twin *t = &n.expected;
    twin_solve(&n.expected, &of);
    tensor period[4];
    abn_batch whole[4];
    for (int i = 0; i < 4; i++) {
        period[i] = period_at(g, memory[i]);
        whole[i] = whole_of(g, &period[i]);
    }
    abn_context context = context_of(&of, &n, &whole[0]);
    tensor_write(&period[0], t->x);
    tensor_write(&period[2], t->dz);
    now_testing("large: %s, %td x %td x %td", g->name, whole[0].batch, whole[0].channels, whole[0].spatial);
    check(abn_statistics(machine, &whole[0], NULL, n.mean, n.var) == ABN_OK, "statistics failed");
    compare("mean", n.mean, t->mean, t->mean_error, channels, 1);
    compare("var", n.var, t->var, t->var_error, channels, 1);
    check(abn_forward(machine, &whole[0], &whole[1], &context, 1) == ABN_OK, "forward failed");
    tensor_read(&period[1], n.values);
    compare("z", n.values, t->z, t->z_error, PERIOD, 1);
    const abn_sums sums = {n.sum_dy, n.product, NULL};
    check(abn_backward_reduce(machine, &context, &whole[2], &sums) == ABN_OK, "backward_reduce failed");
    compare("sum_dy", n.sum_dy, t->sum_dy, t->sum_dy_error, channels, TIMES);
    compare("sum_dy_xhat", n.product, t->sum_dy_xhat, t->sum_dy_xhat_error, channels, TIMES);
    const abn_gradients to = {.dx = whole[3]};
    check(abn_backward_apply(machine, &context, &whole[2], &to, &sums, (double)PERIOD * TIMES / (double)channels) ==
              ABN_OK,
          "backward_apply failed");
    tensor_read(&period[3], n.values);
    compare("dx", n.values, t->dx, t->dx_error, PERIOD, 1);
    numbers_close(&n);
}

void test_large(const abn_kernels *kernels) {
    const abn_machine machine = {kernels, 2};
    char *const memory[4] = {mirror_open(), mirror_open(), mirror_open(), mirror_open()};
    for (size_t i = 0; i < sizeof geometries / sizeof *geometries; i++) test_geometry(&machine, &geometries[i], memory);
    for (int i = 0; i < 4; i++) mirror_close(memory[i]);
}

/* ---- without shared pages ---------------------------------------------------------------------------------- */

static size_t available_bytes(void) {
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    size_t kilobytes = 0;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %zu", &kilobytes) == 1) break;
    if (file) fclose(file);
    return kilobytes * 1024;
}

static size_t periods_that_differ(const char *memory) {
    size_t count = 0;
    for (size_t i = 1; i < TIMES; i++) count += memcmp(memory + i * PERIOD_BYTES, memory, PERIOD_BYTES) != 0;
    return count;
}

int test_large_in_place(const abn_kernels *kernels) {
    const geometry *g = &geometries[0];
    const problem of = {g->of_period, ABN_FLOAT16, ABN_ELU, ABN_KEEP_Z, 1, DRAW_ORDINARY, NO_RESIDUAL};
    const abn_machine machine = {kernels, 2};
    enum { ESCAPED = PERIOD - 3 };
    if (available_bytes() < 2 * total_bytes) return 0;
    char *x = mapped(NULL, total_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    char *gradients[2] = {mirror_open(), mirror_open()};
    numbers n = numbers_open(&of);
    twin *t = &n.expected;
    t->weight[0] = 1, t->bias[0] = 0;
    t->x[ESCAPED] = -6; /* cannot be recovered from z of elu */
    twin_solve(t, &of);
    const tensor z = period_at(g, x), dz = period_at(g, gradients[0]), dx = period_at(g, gradients[1]);
    const abn_batch whole_x = whole_of(g, &z), whole_dz = whole_of(g, &dz), whole_dx = whole_of(g, &dx);
    abn_context context = context_of(&of, &n, &whole_x);
    tensor_write(&z, t->x);
    tensor_write(&dz, t->dz);
    for (size_t i = 1; i < TIMES; i++) memcpy(x + i * PERIOD_BYTES, x, PERIOD_BYTES);
    now_testing("large, in place");
    check(abn_forward(&machine, &whole_x, &whole_x, &context, 1) == ABN_OK, "forward failed");
    tensor_read(&z, n.values);
    compare("z", n.values, t->z, t->z_error, PERIOD, 1);
    check(periods_that_differ(x) == 0, "z is not the same everywhere");
    if (check(context.escapes.count == TIMES, "%td elements escaped", context.escapes.count))
        check(context.escapes.index[TIMES - 1] == (int64_t)PERIOD * (TIMES - 1) + ESCAPED, "the last one is at %lld",
              (long long)context.escapes.index[TIMES - 1]);
    const abn_sums sums = {n.sum_dy, n.product, NULL};
    const abn_gradients to = {.dx = whole_dx};
    check(abn_backward(&machine, &context, &whole_dz, &to, &sums, 1) == ABN_OK, "backward failed");
    compare("sum_dy", n.sum_dy, t->sum_dy, t->sum_dy_error, 1, TIMES);
    compare("sum_dy_xhat", n.product, t->sum_dy_xhat, t->sum_dy_xhat_error, 1, TIMES);
    tensor_read(&dx, n.values);
    compare("dx", n.values, t->dx, t->dx_error, PERIOD, 1);
    abn_escapes_free(&context.escapes);
    numbers_close(&n);
    munmap(x, total_bytes);
    for (int i = 0; i < 2; i++) mirror_close(gradients[i]);
    return 1;
}
