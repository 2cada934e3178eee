/* The kernels between the passes: a block has CHANNELS channels, and its threads share the parts of each. */
#ifndef ABN_CUDA_CHANNEL_SUMS_H
#define ABN_CUDA_CHANNEL_SUMS_H

#include "pass.h"
#include "vectors.h"

#define CHANNELS 8 /* adjacent channels of a part are adjacent in memory: 32 bytes of float */
#define FINISH_THREADS 1024
#define SAMPLES 64 /* elements of the residual that are looked at */

typedef struct {
    int32_t channel;
    int lane, lanes; /* of the threads that share a channel */
} abn_channel_lane;

INLINE abn_channel_lane channel_lane(void) {
    return LITERAL(abn_channel_lane){(int32_t)(BLOCK * CHANNELS + THREAD % CHANNELS), THREAD / CHANNELS,
                                     THREADS / CHANNELS};
}

typedef struct {
    double of[ABN_PARTIALS];
} abn_sums_of_channel;

/* Adds the numbers of the lanes of each channel; lane 0 gets the result. Every thread of the block calls it. */
INLINE void sum_lanes(abn_sums_of_channel *numbers) {
    SHARED(abn_sums_of_channel, buffer, FINISH_THREADS);
    buffer[THREAD] = *numbers;
    for (int lanes = THREADS / CHANNELS; lanes > 1;) {
        const int half = (lanes + 1) / 2;
        BARRIER();
        if (THREAD < (lanes - half) * CHANNELS) {
            UNROLLED for (int k = 0; k < ABN_PARTIALS; k++) buffer[THREAD].of[k] +=
                buffer[half * CHANNELS + THREAD].of[k];
        }
        lanes = half;
    }
    *numbers = buffer[THREAD]; /* of lane 0: its own sum */
}

#endif
