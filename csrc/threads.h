/* The one place that starts threads. */
#ifndef ABN_THREADS_H
#define ABN_THREADS_H

#include <stddef.h>
#include <stdint.h>

/* body(argument, thread, threads) on each of `threads` threads, or on fewer when the system gives fewer. */
typedef void abn_body(void *argument, int thread, int threads);
void abn_parallel(int threads, abn_body *body, void *argument);

/* Once, before the first abn_parallel: a forked child has none of its parent's threads, and OpenMP runtimes wait for
 * them forever. Children therefore compute on the thread that they have. */
void abn_watch_forks(void);

/* Inside a body: waits for all its threads. */
void abn_barrier(void);

/* Inside a body: *at |= bits, while other threads may do the same. */
void abn_add_bits(uint8_t *at, uint8_t bits);

/* This thread's share of `count` units: [first, last). */
static inline void abn_share(ptrdiff_t count, int thread, int threads, ptrdiff_t *first, ptrdiff_t *last) {
    *first = count * thread / threads;
    *last = count * (thread + 1) / threads;
}

#endif
