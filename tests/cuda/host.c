/* Runs the kernels of csrc/cuda on the CPU: the threads of a block are coroutines that switch at barriers, blocks run one
 * after the other. The test compiles this file together with kernels.cu, plan.c and element.c. */
#define _XOPEN_SOURCE 700
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "cuda/kernels.cu"
#include "cuda/plan.h"

enum { STACK = 1 << 15, MOST_THREADS = 1024 };

int host_thread, host_threads;
int64_t host_block, host_blocks;

static ucontext_t scheduler, coroutines[MOST_THREADS];
static char *stacks;
static int finished[MOST_THREADS];
static void (*kernel)(const abn_cuda_pass);
static abn_cuda_pass parameters;

void host_barrier(void) { swapcontext(&coroutines[host_thread], &scheduler); }

static void run_thread(void) {
    kernel(parameters);
    finished[host_thread] = 1;
    swapcontext(&coroutines[host_thread], &scheduler);
}

static void start_thread(int thread) {
    getcontext(&coroutines[thread]);
    coroutines[thread].uc_stack.ss_sp = stacks + (size_t)thread * STACK;
    coroutines[thread].uc_stack.ss_size = STACK;
    coroutines[thread].uc_link = &scheduler;
    makecontext(&coroutines[thread], run_thread, 0);
    finished[thread] = 0;
}

/* Between two barriers the threads run in order, or in reverse order: a result that depends on it shows a race. */
static void run_block(int reverse) {
    int left = host_threads;
    for (int thread = 0; thread < host_threads; thread++) start_thread(thread);
    while (left > 0) {
        for (int i = 0; i < host_threads; i++) {
            host_thread = reverse ? host_threads - 1 - i : i;
            if (finished[host_thread]) continue;
            swapcontext(&scheduler, &coroutines[host_thread]);
            left -= finished[host_thread];
        }
    }
}

static void launch(void (*of)(const abn_cuda_pass), const abn_cuda_pass *pass, int64_t blocks, int threads,
                   int reverse) {
    if (!stacks) stacks = malloc((size_t)MOST_THREADS * STACK);
    kernel = of;
    parameters = *pass;
    host_threads = threads;
    host_blocks = blocks;
    for (int64_t i = 0; i < blocks; i++) {
        host_block = reverse ? blocks - 1 - i : i;
        run_block(reverse);
    }
}

enum {
    SOURCE,
    RESIDUAL,
    DESTINATION,
    GRADIENT,
    RESIDUAL_GRADIENT,
    WEIGHT,
    BIAS,
    SLOPE,
    RUNNING_MEAN,
    RUNNING_VAR,
    WEIGHT_GRADIENT,
    BIAS_GRADIENT,
    SLOPE_GRADIENT,
    SAVED,
    XHAT,
    REPORT
};

/* The bytes that a forward saves, the elements of a vector, and whether the kernels are those of ABN_COLUMNS. */
void host_plan(int dtype, const int64_t *shape, int channels_last, int64_t *plan) {
    const abn_cuda_plan p = abn_cuda_plan_of((abn_dtype)dtype, shape[0], shape[1], shape[2], channels_last, 2);
    plan[0] = (int64_t)p.saved_bytes;
    plan[1] = p.width;
    plan[2] = p.layout == ABN_CUDA_COLUMNS;
}

/* One direction of a layer. arrays: pointers in the order of the enum. numbers: momentum, eps, param, most_bias. */
void host_run(int backward, int dtype, const int64_t *shape, int channels_last, void **arrays, const double *numbers,
              int training, int capacity, int reverse) {
    const abn_cuda_plan plan = abn_cuda_plan_of((abn_dtype)dtype, shape[0], shape[1], shape[2], channels_last, 2);
    char *scratch = malloc(plan.scratch_bytes);
    memset(scratch, 0xff, plan.scratch_bytes);
    abn_cuda_pass pass = plan.geometry;
    pass.source = arrays[SOURCE];
    pass.residual = arrays[RESIDUAL];
    pass.destination = arrays[DESTINATION];
    pass.gradient = arrays[GRADIENT];
    pass.residual_gradient = arrays[RESIDUAL_GRADIENT];
    pass.weight = arrays[WEIGHT];
    pass.bias = arrays[BIAS];
    pass.slope = arrays[SLOPE];
    pass.running_mean = arrays[RUNNING_MEAN];
    pass.running_var = arrays[RUNNING_VAR];
    pass.weight_gradient = arrays[WEIGHT_GRADIENT];
    pass.bias_gradient = arrays[BIAS_GRADIENT];
    pass.slope_gradient = arrays[SLOPE_GRADIENT];
    pass.saved = arrays[SAVED];
    pass.xhat = arrays[XHAT];
    pass.report = arrays[REPORT];
    pass.constants = scratch + plan.constants_at;
    pass.partial = scratch + plan.partial_at;
    pass.guarded = (int32_t *)(scratch + plan.guarded_at);
    pass.capacity = capacity;
    pass.training = training;
    pass.momentum = numbers[0];
    pass.eps = numbers[1];
    pass.param = numbers[2];
    pass.most_bias = numbers[3];
    if (!backward && !training) memset(pass.guarded, 0, ABN_COUNTERS * sizeof *pass.guarded);
    if (backward || training)
        launch(backward ? cuda_backward_sums : cuda_forward_sums, &pass, plan.sums_blocks, plan.threads, reverse);
    launch(backward ? cuda_backward_finish : cuda_forward_finish, &pass, plan.finish_blocks, plan.finish_threads,
           reverse);
    launch(backward ? cuda_backward_apply : cuda_forward_apply, &pass, plan.apply_blocks, plan.threads, reverse);
    free(scratch);
}
