#include "threads.h"

#include "abn.h"

#ifdef _OPENMP
#include <omp.h>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>

static int used, orphaned; /* used: this process started threads; orphaned: its parent did before the fork */

static void after_fork_in_child(void) { orphaned = used; }

void abn_watch_forks(void) {
    static int watching;
    if (!watching) watching = pthread_atfork(NULL, NULL, after_fork_in_child) == 0;
}
#else
static int used, orphaned;

void abn_watch_forks(void) {}
#endif

int abn_has_openmp(void) { return 1; }

int abn_default_threads(void) { return omp_get_max_threads(); }

/* The num_threads clause leaves the OpenMP settings of the process unchanged. */
void abn_parallel(int threads, abn_body *body, void *argument) {
    if (threads <= 1 || orphaned) {
        body(argument, 0, 1);
        return;
    }
#pragma omp atomic write
    used = 1;
#pragma omp parallel num_threads(threads)
    body(argument, omp_get_thread_num(), omp_get_num_threads());
}

void abn_barrier(void) {
#pragma omp barrier
}

void abn_add_bits(uint8_t *at, uint8_t bits) {
#pragma omp atomic update
    *at |= bits;
}

#else

int abn_has_openmp(void) { return 0; }

int abn_default_threads(void) { return 1; }

void abn_watch_forks(void) {}

void abn_parallel(int threads, abn_body *body, void *argument) {
    (void)threads;
    body(argument, 0, 1);
}

void abn_barrier(void) {}

void abn_add_bits(uint8_t *at, uint8_t bits) { *at |= bits; }

#endif
