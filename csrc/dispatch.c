/* The instruction sets that were compiled in, best first. Each row lists every CPU feature that its code uses. */
#include <string.h>

#include "abn.h"
#include "cpu.h"
#include "kernels/kernels.h"

#define DECLARE(isa)                                                                                                   \
    extern const abn_kernel_set abn_kernels_##isa##_float32, abn_kernels_##isa##_float64, abn_kernels_##isa##_float16, \
        abn_kernels_##isa##_bfloat16;
#define SETS(isa)                                       \
    {                                                   \
        [ABN_FLOAT32] = &abn_kernels_##isa##_float32,   \
        [ABN_FLOAT64] = &abn_kernels_##isa##_float64,   \
        [ABN_FLOAT16] = &abn_kernels_##isa##_float16,   \
        [ABN_BFLOAT16] = &abn_kernels_##isa##_bfloat16, \
    }

#ifdef ABN_WITH_V4
DECLARE(v4)
#endif
#ifdef ABN_WITH_V3
DECLARE(v3)
#endif
#ifdef ABN_WITH_V2
DECLARE(v2)
#endif
#ifdef ABN_WITH_NEON
DECLARE(neon)
#endif
DECLARE(baseline)

static const abn_kernels table[] = {
#ifdef ABN_WITH_V4
    {"v4", ABN_CPU_V2 | ABN_CPU_V3 | ABN_CPU_V4, SETS(v4)},
#endif
#ifdef ABN_WITH_V3
    {"v3", ABN_CPU_V2 | ABN_CPU_V3, SETS(v3)},
#endif
#ifdef ABN_WITH_V2
    {"v2", ABN_CPU_V2, SETS(v2)},
#endif
#ifdef ABN_WITH_NEON
    {"neon", ABN_CPU_NEON, SETS(neon)},
#endif
    {"baseline", 0, SETS(baseline)},
};

const abn_kernels *abn_kernels_at(int index) {
    return index >= 0 && index < (int)(sizeof table / sizeof *table) ? &table[index] : NULL;
}

const char *abn_kernels_name(const abn_kernels *kernels) { return kernels->name; }

int abn_kernels_usable(const abn_kernels *kernels) { return (abn_cpu_features() & kernels->needs) == kernels->needs; }
