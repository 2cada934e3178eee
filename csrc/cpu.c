#include "cpu.h"

#include "abn.h"
#include "threads.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

typedef struct {
    unsigned a, b, c, d;
} registers;

static registers cpuid(unsigned leaf, unsigned subleaf) {
    registers r = {0, 0, 0, 0};
#if defined(_MSC_VER)
    int out[4];
    __cpuidex(out, (int)leaf, (int)subleaf);
    r = (registers){(unsigned)out[0], (unsigned)out[1], (unsigned)out[2], (unsigned)out[3]};
#else
    __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
#endif
    return r;
}

/* The register sets that the operating system saves on a context switch. */
static unsigned long long saved_states(void) {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (unsigned long long)high << 32 | low;
#endif
}

static int all(unsigned have, unsigned want) { return (have & want) == want; }

static unsigned ask_features(void) {
    enum { SSE3 = 1, SSSE3 = 1 << 9, FMA = 1 << 12, SSE41 = 1 << 19, SSE42 = 1 << 20, POPCNT = 1 << 23 };
    enum { OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29 };                         /* leaf 1, ecx */
    const unsigned avx2 = 1u << 5, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* leaf 7, ebx: F DQ BW VL */
    const unsigned long long ymm = 0x6, zmm = 0xe6;                                    /* bits of XCR0 */
    const unsigned highest = cpuid(0, 0).a;
    const registers basic = cpuid(1, 0);
    const registers extended = highest >= 7 ? cpuid(7, 0) : (registers){0, 0, 0, 0};
    unsigned found = 0;
    if (all(basic.c, SSE3 | SSSE3 | SSE41 | SSE42 | POPCNT)) found |= ABN_CPU_V2;
    if (!(found & ABN_CPU_V2) || !all(basic.c, OSXSAVE | AVX | FMA | F16C)) return found;
    const unsigned long long states = saved_states();
    if ((states & ymm) != ymm || !all(extended.b, avx2)) return found;
    found |= ABN_CPU_V3;
    if ((states & zmm) == zmm && all(extended.b, avx512)) found |= ABN_CPU_V4;
    return found;
}

#elif defined(__aarch64__) || defined(_M_ARM64)
static unsigned ask_features(void) { return ABN_CPU_NEON; }
#else
static unsigned ask_features(void) { return 0; }
#endif

static unsigned features;
static abn_caches caches = {512 << 10, 8 << 20};

/* Queries the processor once: on a virtual machine cpuid takes microseconds, too long for every operation. */
void abn_initialize(void) {
    abn_watch_forks();
    features = ask_features();
#if defined(_SC_LEVEL2_CACHE_SIZE) && defined(_SC_LEVEL3_CACHE_SIZE)
    const long level2 = sysconf(_SC_LEVEL2_CACHE_SIZE), level3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (level2 > 0) caches.level2 = (size_t)level2;
    if (level3 > 0) caches.level3 = (size_t)level3;
#endif
}

unsigned abn_cpu_features(void) { return features; }

abn_caches abn_cache_sizes(void) { return caches; }

size_t abn_strip_bytes(void) { return 2 * caches.level2; }
