/* Which elements of y will z not tell? Included by stages.c. */
#ifndef ABN_KERNEL_LOOK_H
#define ABN_KERNEL_LOOK_H

#include "vector.h"

/* Comparisons with NaN are false: it is not lost, and gives NaN by itself. */
static int look(const void *from, ptrdiff_t n, double below, double above, double minimum, double near,
                uint64_t *restrict sides, uint64_t *restrict lost) {
    const real *y = from;
    const vec low = v_set1((real)below), high = v_set1((real)above), centre = v_set1((real)minimum);
    const vec within = v_set1((real)near);
    uint64_t any = 0;
    for (ptrdiff_t word = 0; word < n; word += 64) {
        uint64_t left = 0, bits = 0;
        for (ptrdiff_t i = word; i < word + 64 && i < n; i += W) {
            const vec at = v_load_real(y + i), beside = v_sub(at, centre);
            const vec beyond = v_max(v_sub(within, v_abs(beside)), v_max(v_sub(low, at), v_sub(at, high)));
            left |= (uint64_t)v_mask_bits(v_lt(beside, v_zero())) << (i - word);
            bits |= (uint64_t)v_mask_bits(v_lt(v_zero(), beyond)) << (i - word);
        }
        sides[word / 64] = left;
        any |= lost[word / 64] = n - word < 64 ? bits & (((uint64_t)1 << (n - word)) - 1) : bits;
    }
    return any != 0;
}

static void below_zero(const void *y, void *result, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += W)
        v_store_real((real *)result + i, v_min(v_load_real((const real *)y + i), v_zero()));
}

#endif
