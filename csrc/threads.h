/* Threads: the only file that uses OpenMP. */
#ifndef ABN_THREADS_H
#define ABN_THREADS_H

#include <stddef.h>
#include <stdint.h>

/* Calls body(argument, thread, threads) on each of `threads` threads, or on fewer if the system provides fewer. */
typedef void abn_body(void *argument, int thread, int threads);
void abn_parallel(int threads, abn_body *body, void *argument);

/* Call once, before the first abn_parallel. A forked child has none of its parent's threads, and OpenMP runtimes would
 * wait for them forever: after a fork, abn_parallel in the child uses one thread. */
void abn_watch_forks(void);

/* Within a body: waits for all its threads. */
void abn_barrier(void);

/* Within a body: *at |= bits, atomically. */
void abn_add_bits(uint8_t *at, uint8_t bits);

/* This thread's share of `count` units: [first, last). */
static inline void abn_share(ptrdiff_t count, int thread, int threads, ptrdiff_t *first, ptrdiff_t *last) {
    *first = count * thread / threads;
    *last = count * (thread + 1) / threads;
}

#endif
