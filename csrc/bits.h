/* Single bits of 64-bit words: bit i of an array of words is bit i % 64 of word i / 64. */
#ifndef ABN_BITS_H
#define ABN_BITS_H

#include <stdint.h>

/* The index of the lowest set bit; bits is not 0. */
static inline int abn_lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
    return __builtin_ctzll(bits);
#else
    int i = 0;
    while (!(bits >> i & 1)) i++;
    return i;
#endif
}

/* The number of set bits. */
static inline int abn_count_bits(uint64_t bits) {
    int count = 0;
#if defined(__GNUC__)
    count = __builtin_popcountll(bits);
#else
    for (; bits; bits &= bits - 1) count++;
#endif
    return count;
}

#endif
