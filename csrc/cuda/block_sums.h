/* Sums over the threads of a block, in an order that depends on the shape alone. */
#ifndef ABN_CUDA_BLOCK_SUMS_H
#define ABN_CUDA_BLOCK_SUMS_H

#include "walk.h"

#define FOLD 32 /* threads that sum the columns of one channel */

/* Adds the rows of buffer[rows][width] to its first row. Every thread of the block calls it. */
INLINE void sum_rows(real *buffer, int rows, int width) {
    while (rows > 1) {
        const int half = (rows + 1) / 2;
        BARRIER();
        for (int i = THREAD; i < (rows - half) * width; i += THREADS) buffer[i] += buffer[half * width + i];
        rows = half;
    }
    BARRIER();
}

/* sums[lane] of every thread -> to[channel] for each channel of the block. to[0] is the first channel of the batch. */
INLINE void store_block_sums(const abn_cuda_pass *p, abn_place at, const real *sums, real *to) {
    SHARED(real, buffer, ABN_THREADS * LANES);
#ifdef ABN_PLANES
    buffer[THREAD] = sums[0];
    sum_rows(buffer, THREADS, 1);
    if (THREAD == 0) to[at.tile] = buffer[0];
#else
    const int width = p->tile_x * ABN_WIDTH;
    for (int lane = 0; lane < LANES; lane++) buffer[THREAD * LANES + lane] = sums[lane];
    sum_rows(buffer, p->tile_y, width);
    if (p->repeat == 1) {
        for (int i = THREAD; i < width; i += THREADS) {
            const int64_t channel = (int64_t)at.tile * width + i;
            if (channel < p->channels) to[channel] = buffer[i];
        }
    } else { /* fold the columns of each channel to FOLD numbers in place, then these to one */
        const int repeat = (int)p->repeat, channels = width / repeat, folded = repeat < FOLD ? repeat : FOLD;
        for (int i = THREAD; i < channels * folded; i += THREADS) {
            real *of = buffer + i / folded * repeat + i % folded;
            double sum = of[0];
            for (int column = folded; i % folded + column < repeat; column += folded) sum += of[column];
            of[0] = (real)sum;
        }
        BARRIER();
        for (int i = THREAD; i < channels; i += THREADS) {
            const int64_t channel = (int64_t)at.tile * channels + i;
            double sum = 0;
            for (int column = 0; column < folded; column++) sum += buffer[i * repeat + column];
            if (channel < p->channels) to[channel] = (real)sum;
        }
    }
#endif
    BARRIER(); /* before the buffer is used again */
}

#endif
