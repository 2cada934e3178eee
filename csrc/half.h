/* float16 and bfloat16, one element at a time: rounding to nearest even, NaN stays NaN. */
#ifndef ABN_HALF_H
#define ABN_HALF_H

#include <stdint.h>
#include <string.h>

static inline float abn_bits_to_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t abn_float_to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float abn_bfloat16_to_float(uint16_t h) { return abn_bits_to_float((uint32_t)h << 16); }

static inline uint16_t abn_float_to_bfloat16(float f) {
    const uint32_t bits = abn_float_to_bits(f);
    if (f != f) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float abn_float16_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) return abn_bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    /* rest << 13 is the float whose exponent is 112 too small. Multiplying by 2^112 is right for subnormals too. */
    return abn_bits_to_float(sign | abn_float_to_bits(abn_bits_to_float(rest << 13) * 0x1p112f));
}

static inline uint16_t abn_float_to_float16(float f) {
    const uint32_t bits = abn_float_to_bits(f), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to 65536 or more: infinity */
    if (rest < 0x38800000) { /* subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits */
        return (uint16_t)(sign | (abn_float_to_bits(abn_bits_to_float(rest) + 0.5f) - 0x3f000000));
    }
    return (uint16_t)(sign | ((rest + 0xfff + (rest >> 13 & 1)) - 0x38000000) >> 13);
}

#endif
