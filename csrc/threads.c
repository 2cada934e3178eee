#include "threads.h"

#include "abn.h"

#ifdef _OPENMP
#include <omp.h>

int abn_has_openmp(void) { return 1; }

int abn_default_threads(void) { return omp_get_max_threads(); }

/* num_threads() on the region: the process's own OpenMP settings are never changed. */
void abn_parallel(int threads, abn_body *body, void *argument) {
    if (threads <= 1) {
        body(argument, 0, 1);
        return;
    }
#pragma omp parallel num_threads(threads)
    body(argument, omp_get_thread_num(), omp_get_num_threads());
}

void abn_barrier(void) {
#pragma omp barrier
}

#else

int abn_has_openmp(void) { return 0; }

int abn_default_threads(void) { return 1; }

void abn_parallel(int threads, abn_body *body, void *argument) {
    (void)threads;
    body(argument, 0, 1);
}

void abn_barrier(void) {}

#endif
