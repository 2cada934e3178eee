/* What the processor and the operating system support, asked once. */
#ifndef ABN_CPU_H
#define ABN_CPU_H

#include <stddef.h>

enum {
    ABN_CPU_V2 = 1 << 0, /* SSE3, SSSE3, SSE4.1, SSE4.2, POPCNT */
    ABN_CPU_V3 = 1 << 1, /* AVX2, FMA, F16C; the system saves ymm registers */
    ABN_CPU_V4 = 1 << 2, /* AVX-512 F, VL, BW, DQ; the system saves zmm registers */
    ABN_CPU_NEON = 1 << 3,
};

unsigned abn_cpu_features(void);

/* Bytes of one core's second-level cache and of the last level; usual sizes where the system does not tell. */
typedef struct {
    size_t level2, level3;
} abn_caches;

abn_caches abn_cache_sizes(void);

/* How much one thread should take through both passes together. Twice the second level, which measured best: what
 * does not fit there is found in the third, and longer contiguous stretches make up for it. */
size_t abn_group_bytes(void);

#endif
