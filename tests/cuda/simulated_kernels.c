/* The kernels of csrc/cuda on the CPU: the threads of a block are coroutines that switch at barriers. A "module" of the
 * simulated driver is this file compiled with the macros of one combination. */
#define _XOPEN_SOURCE 700
#include <stdlib.h>
#include <ucontext.h>

#include "cuda/kernels.cu"

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

/* Blocks run one after the other, too; `reverse` is their order and that of the threads. */
void host_launch(void (*of)(const abn_cuda_pass), const abn_cuda_pass *pass, int64_t blocks, int threads, int reverse) {
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
