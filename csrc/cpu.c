#include "cpu.h"

#include <stdio.h>
#include <stdlib.h>

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
static abn_caches caches = {512 << 10, 8 << 20, 1};

#if defined(__linux__)
/* Reads one line of a file that describes a cache of processor 0. Returns 0 if there is none. */
static int read_line(int index, const char *name, char *line, int size) {
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
    FILE *file = fopen(path, "r");
    if (file == NULL) return 0;
    const int found = fgets(line, size, file) != NULL;
    fclose(file);
    return found;
}

/* The number of processors in a list such as "0-3,8". */
static int count_processors(const char *list) {
    int count = 0;
    for (char *end; *list >= '0' && *list <= '9'; list = *end == ',' ? end + 1 : end) {
        const long first = strtol(list, &end, 10), last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        count += (int)(last - first + 1);
    }
    return count > 0 ? count : 1;
}

/* sysconf adds up the last-level caches of some processors; a thread has only the one of its own core complex. */
static void read_topology(void) {
    char level[16], size[16], processors[256];
    for (int index = 0; read_line(index, "level", level, sizeof level); index++) {
        if (!read_line(index, "size", size, sizeof size)) continue;
        char *unit;
        const size_t number = (size_t)strtol(size, &unit, 10);
        const size_t bytes = number << (*unit == 'K' ? 10 : *unit == 'M' ? 20 : 0);
        if (bytes == 0) continue;
        if (level[0] == '2') caches.level2 = bytes;
        if (level[0] != '3') continue;
        caches.level3 = bytes;
        if (read_line(index, "shared_cpu_list", processors, sizeof processors))
            caches.sharing = count_processors(processors);
    }
}
#else
static void read_topology(void) {}
#endif

/* Queries the processor once: on a virtual machine cpuid takes microseconds, too long for every operation. */
void abn_initialize(void) {
    abn_watch_forks();
    features = ask_features();
#if defined(_SC_LEVEL2_CACHE_SIZE) && defined(_SC_LEVEL3_CACHE_SIZE)
    const long level2 = sysconf(_SC_LEVEL2_CACHE_SIZE), level3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (level2 > 0) caches.level2 = (size_t)level2;
    if (level3 > 0) caches.level3 = (size_t)level3;
#endif
    read_topology();
}

unsigned abn_cpu_features(void) { return features; }

abn_caches abn_cache_sizes(void) { return caches; }

size_t abn_strip_bytes(void) { return 2 * caches.level2; }
