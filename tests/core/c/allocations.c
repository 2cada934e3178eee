/* Makes each allocation of the core fail in turn. The linker (--wrap) replaces malloc, calloc, realloc and free with
 * the __wrap_ functions below, in the core and in the tests: the core needs no hook. */
#include "allocations.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "run.h"

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void __real_free(void *memory);

void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void __wrap_free(void *memory);

static atomic_long alive;     /* allocated blocks */
static atomic_long left = -1; /* allocations until one fails; below 0: none does */
static atomic_long refused;   /* allocations that failed */
static int for_good;          /* True if all allocations after the first failure fail too */

static int refuse(void) {
    const int now = (for_good && refused > 0) || (left >= 0 && left-- == 0);
    refused += now;
    return now;
}

static void *counted_in(void *memory) {
    if (memory) alive++;
    return memory;
}

void *__wrap_malloc(size_t bytes) { return refuse() ? NULL : counted_in(__real_malloc(bytes)); }

void *__wrap_calloc(size_t count, size_t bytes) { return refuse() ? NULL : counted_in(__real_calloc(count, bytes)); }

void *__wrap_realloc(void *memory, size_t bytes) {
    if (refuse()) return NULL;
    return memory ? __real_realloc(memory, bytes) : counted_in(__real_realloc(NULL, bytes));
}

void __wrap_free(void *memory) {
    if (memory) alive--;
    __real_free(memory);
}

/* ---- operations that may run out of memory --------------------------------------------------------------- */

/* The arrays that an operation writes, and its other arguments. */
typedef struct {
    run layer;
    tensor dz, dx, dr;
    array sum_dy, product, param;
} attempt;

typedef abn_status operation(attempt *a);

static abn_status statistics(attempt *a) {
    return abn_statistics(&a->layer.machine, &a->layer.x.batch, NULL, a->sum_dy.data, a->product.data);
}

static abn_status forward(attempt *a) {
    run *r = &a->layer;
    return abn_forward(&r->machine, &r->x.batch, &r->z.batch, &r->context, r->of->training);
}

static abn_status recompute(attempt *a) { return abn_recompute(&a->layer.machine, &a->layer.context, &a->dx.batch); }

static abn_sums sums_of(attempt *a) {
    return (abn_sums){a->sum_dy.data, a->product.data, a->layer.context.channel_param ? a->param.data : NULL};
}

static abn_gradients gradients_of(attempt *a) {
    return (abn_gradients){a->dx.batch, a->layer.of->residual ? a->dr.batch : (abn_batch){.data = NULL}, 0};
}

static abn_status reduce(attempt *a) {
    const abn_sums sums = sums_of(a);
    return abn_backward_reduce(&a->layer.machine, &a->layer.context, &a->dz.batch, &sums);
}

static abn_status backward(attempt *a) {
    const abn_sums sums = sums_of(a);
    const abn_gradients to = gradients_of(a);
    return abn_backward(&a->layer.machine, &a->layer.context, &a->dz.batch, &to, &sums, a->layer.of->training);
}

static abn_status apply(attempt *a) {
    const abn_sums sums = {a->layer.expected->sum_dy, a->layer.expected->sum_dy_xhat, NULL};
    const abn_gradients to = gradients_of(a);
    return abn_backward_apply(&a->layer.machine, &a->layer.context, &a->dz.batch, &to, &sums, 0);
}

static const struct {
    const char *name;
    operation *run;
    int needs_forward, needs_x;
} operations[] = {
    {"statistics", statistics, 0, 0},  {"forward", forward, 0, 0},   {"recompute", recompute, 1, 1},
    {"backward_reduce", reduce, 1, 0}, {"backward", backward, 1, 0}, {"backward_apply", apply, 1, 0},
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

static attempt attempt_open(const problem *of, const twin *expected, const setting *in, int threads) {
    const ptrdiff_t channels = of->of.channels;
    attempt a = {run_open(of, expected, in, threads),
                 tensor_open(of->dtype, of->of, in->others, in->side),
                 tensor_open(of->dtype, of->of, in->x, in->side),
                 tensor_open(of->dtype, of->of, in->x, in->side),
                 array_of_doubles(NULL, channels, in->side),
                 array_of_doubles(NULL, channels, in->side),
                 array_of_doubles(NULL, channels, in->side)};
    tensor_write(&a.dz, expected->dz);
    return a;
}

static void attempt_close(attempt *a) {
    run_close(&a->layer);
    tensor_close(&a->dz);
    tensor_close(&a->dx);
    tensor_close(&a->dr);
    array_close(&a->sum_dy);
    array_close(&a->product);
    array_close(&a->param);
}

/* Copies the bytes of all arrays, to compare them before and after an operation. Returns their number. */
enum { WRITTEN = 9 };

static size_t copy_arrays(const attempt *a, char *to) {
    const array *written[WRITTEN] = {&a->layer.x.memory, &a->layer.z.memory, &a->layer.branch_mask,
                                     &a->dz.memory,      &a->dx.memory,      &a->dr.memory,
                                     &a->sum_dy,         &a->product,        &a->param};
    size_t bytes = 0;
    for (int i = 0; i < WRITTEN; i++) {
        if (to) memcpy(to + bytes, written[i]->data, written[i]->bytes);
        bytes += written[i]->bytes;
    }
    return bytes;
}

/* True for a forward in place: if the list of escaped elements cannot grow, x may already be written (see abn.h). */
static int may_be_half_done(const attempt *a, int operation_index) {
    return operations[operation_index].run == forward && recovers_xhat(a->layer.of);
}

/* Makes allocation number `which` fail. Returns 0 if the operation makes fewer allocations. */
static int fail_one(const problem *of, const twin *expected, const setting *in, int threads, int index, long which) {
    attempt a = attempt_open(of, expected, in, threads);
    if (operations[index].needs_forward) check(forward(&a) == ABN_OK, "forward failed");
    const size_t bytes = copy_arrays(&a, NULL);
    char *before = malloc(bytes), *after = malloc(bytes);
    if (!before || !after) abort();
    copy_arrays(&a, before);
    const long alive_before = alive;
    refused = 0;
    left = which;
    const abn_status status = operations[index].run(&a);
    left = -1;
    const int failed = refused > 0;
    refused = 0;
    copy_arrays(&a, after);
    if (failed) {
        check(status == ABN_NO_MEMORY, "allocation %ld failed, but the status is not ABN_NO_MEMORY", which);
        check(alive == alive_before, "allocation %ld failed and %ld blocks leaked", which, alive - alive_before);
        check(may_be_half_done(&a, index) || memcmp(before, after, bytes) == 0,
              "allocation %ld failed after arrays were written", which);
        if (operations[index].run == forward)
            check(a.layer.context.escapes.index == NULL && a.layer.context.escapes.count == 0,
                  "escapes were not freed");
        check(operations[index].run(&a) == ABN_OK, "not usable again after failure %ld", which);
    } else {
        check(status == ABN_OK, "failed although no allocation failed");
    }
    free(before);
    free(after);
    attempt_close(&a);
    return failed;
}

static void fail_each(const problem *of, const setting *in) {
    twin expected = twin_draw(of, 1);
    twin_solve(&expected, of);
    for (int index = 0; index < OPERATIONS; index++) {
        if (operations[index].needs_x && of->keep == ABN_KEEP_Z) continue;
        for (int variant = 0; variant < 4; variant++) {
            const int threads = variant & 1 ? 3 : 1;
            long which = 0;
            for_good = variant >= 2;
            now_testing("%s of %s, %td x %td x %td %s, %s, keep %d, %d threads, %s", operations[index].name,
                        dtype_names[of->dtype], of->of.batch, of->of.channels, of->of.spatial, in->x.name,
                        abn_activation_table[of->activation].name, of->keep, threads,
                        for_good ? "all later allocations fail" : "one allocation fails");
            while (fail_one(of, &expected, in, threads, index, which)) which++;
            check(which > 0, "no allocation was made to fail");
        }
    }
    for_good = 0;
    twin_free(&expected);
}

void test_allocations(const abn_kernels *kernels) {
    /* By row, by row with threads that share a channel, stacked, joined, in chunks that threads share. */
    static const shape shapes[] = {{2, 6, 600}, {1, 2, 40011}, {6, 7, 9}, {700, 3, 1}, {3, 130, 401}};
    static const layout layouts[] = {{"channels-first", 0, 0, 0}, {"channels-last", 1, 0, 0}};
    /* Side data: escapes; guarded channels; none; branch mask and escapes; slopes, guarded channels and escapes; the
     * last two. */
    static const problem kinds[] = {
        {{0}, ABN_FLOAT16, ABN_ELU, ABN_KEEP_Z, 1, DRAW_ORDINARY, NO_RESIDUAL},
        {{0}, ABN_FLOAT32, ABN_LEAKY_RELU, ABN_KEEP_Z, 1, DRAW_LOST, NO_RESIDUAL},
        {{0}, ABN_FLOAT32, ABN_RELU, ABN_KEEP_XHAT, 0, DRAW_ORDINARY, RESIDUAL_LIKE_X},
        {{0}, ABN_FLOAT16, ABN_SILU, ABN_KEEP_Z, 1, DRAW_ORDINARY, NO_RESIDUAL},
        {{0}, ABN_FLOAT32, ABN_PRELU, ABN_KEEP_Z, 1, DRAW_ORDINARY, RESIDUAL_SWAMPS},
        {{0}, ABN_FLOAT16, ABN_RELU, ABN_KEEP_Y, 1, DRAW_LOST, RESIDUAL_SWAMPS},
    };
    const long alive_before = alive;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (int l = 0; l < 2; l++) {
            const setting in = {kernels, layouts[l], layouts[l], FLUSH_END, ABN_SCHEME_II};
            for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
                if ((2 * s + (size_t)l + i) % 6 > 1) continue; /* each kind with three or four of the ten */
                problem of = kinds[i];
                of.of = shapes[s];
                fail_each(&of, &in);
            }
        }
    }
    check(alive == alive_before, "%ld blocks leaked", alive - alive_before);
}
