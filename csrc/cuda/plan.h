/* How the kernels divide a batch of a given shape among blocks and threads. It depends on shape, layout, storage type
 * and the number of multiprocessors alone, and so do the results. */
#ifndef ABN_CUDA_PLAN_H
#define ABN_CUDA_PLAN_H

#include <stddef.h>

#include "../abn.h"
#include "pass.h"

#define ABN_CUDA_THREADS 256 /* most threads of a block */

enum { ABN_CUDA_PLANES, ABN_CUDA_COLUMNS };

typedef struct {
    abn_cuda_pass geometry; /* its first group of members; the rest is zero */
    int layout;             /* ABN_CUDA_PLANES or ABN_CUDA_COLUMNS: which kernels */
    int width;              /* elements per vector */
    int threads;            /* of the blocks of sums and apply */
    int64_t sums_blocks, apply_blocks;
    int finish_threads;
    int64_t finish_blocks;
    size_t saved_bytes, scratch_bytes;           /* memory of the device that one call needs */
    size_t constants_at, partial_at, guarded_at; /* in the scratch */
} abn_cuda_plan;

abn_cuda_plan abn_cuda_plan_of(abn_dtype dtype, int64_t images, int64_t channels, int64_t positions, int channels_last,
                               int multiprocessors);

#endif
