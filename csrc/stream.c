/* Streams over float32 arrays: the memory-bandwidth reference of the benchmarks. */
#include "abn.h"
#include "kernels/kernels.h"
#include "threads.h"

typedef struct {
    const abn_kernel_set *set;
    float *a, *b;
    ptrdiff_t count;
    float c, d;
    ptrdiff_t prefetch;
} stream;

static void stream_share(void *argument, int thread, int threads) {
    const stream *s = argument;
    ptrdiff_t first, last;
    abn_share(s->count, thread, threads, &first, &last);
    s->set->stream(s->a + first, s->b ? s->b + first : NULL, last - first, s->c, s->d, s->prefetch);
}

void abn_stream(const abn_machine *machine, float *a, float *b, ptrdiff_t count, float c, float d, ptrdiff_t prefetch) {
    stream s = {machine->kernels->sets[ABN_FLOAT32], a, b, count, c, d, prefetch};
    abn_parallel(machine->threads, stream_share, &s);
}
