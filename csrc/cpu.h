/* What the processor and the operating system support; queried once. */
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

/* Bytes of one core's second-level and third-level cache, and how many processors share the latter. If the system does
 * not say: typical sizes, and 1. */
typedef struct {
    size_t level2, level3;
    int sharing;
} abn_caches;

abn_caches abn_cache_sizes(void);

/* The size of a strip of columns in bytes: twice the second-level cache, the fastest size measured. The part that does
 * not fit is read from the third level; longer contiguous reads outweigh that cost. */
size_t abn_strip_bytes(void);

#endif
