/* Loads and stores of ABN_WIDTH adjacent elements, as one access of up to 16 bytes. Half types are widened to float,
 * and rounded to nearest even. */
#ifndef ABN_CUDA_VECTORS_H
#define ABN_CUDA_VECTORS_H

#include "../half.h"
#include "../kernels/vector.h"
#include "machine.h"

#if defined(ABN_DTYPE_FLOAT16)
typedef uint16_t storage;
#ifdef __CUDACC_RTC__
INLINE real to_real(storage h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
INLINE storage to_storage(real f) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
#else
INLINE real to_real(storage h) { return abn_float16_to_float(h); }
INLINE storage to_storage(real f) { return abn_float_to_float16(f); }
#endif

#elif defined(ABN_DTYPE_BFLOAT16)
typedef uint16_t storage;
INLINE real to_real(storage h) { return abn_bfloat16_to_float(h); }
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800
INLINE storage to_storage(real f) {
    uint16_t h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
#else
INLINE storage to_storage(real f) { return abn_float_to_bfloat16(f); }
#endif

#else
typedef real storage;
INLINE real to_real(storage x) { return x; }
INLINE storage to_storage(real x) { return x; }
#endif

typedef struct {
    storage lane[ABN_WIDTH];
} vector;

/* The same bytes, in one or more words that a single instruction moves. */
#if defined(ABN_DTYPE_FLOAT16) || defined(ABN_DTYPE_BFLOAT16)
#if ABN_WIDTH == 1
typedef uint16_t word;
#define WORDS 1
#else
typedef uint32_t word;
#define WORDS (ABN_WIDTH / 2)
#endif
#else
typedef storage word;
#define WORDS ABN_WIDTH
#endif

typedef struct ALIGNED(ABN_WIDTH * sizeof(storage)) {
    word word[WORDS];
} words;

INLINE vector load_vector(const void *array, int64_t offset) {
    const words from = *(const words *)((const storage *)array + offset);
    vector v;
    memcpy(&v, &from, sizeof v);
    return v;
}

/* Two numbers, rounded, in one word: one instruction where there is one. */
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800 && (defined(ABN_DTYPE_FLOAT16) || defined(ABN_DTYPE_BFLOAT16))
#ifdef ABN_DTYPE_FLOAT16
#define PAIR_INSTRUCTION "cvt.rn.f16x2.f32 %0, %2, %1;"
#else
#define PAIR_INSTRUCTION "cvt.rn.bf16x2.f32 %0, %2, %1;"
#endif
INLINE uint32_t pair_of(real first, real second) {
    uint32_t pair;
    asm(PAIR_INSTRUCTION : "=r"(pair) : "f"(first), "f"(second));
    return pair;
}
#endif

INLINE void store_vector(void *array, int64_t offset, const real *numbers) {
    words to;
#if defined(PAIR_INSTRUCTION) && ABN_WIDTH > 1
    UNROLLED for (int i = 0; i < WORDS; i++) to.word[i] = pair_of(numbers[2 * i], numbers[2 * i + 1]);
#else
    vector v;
    UNROLLED for (int i = 0; i < ABN_WIDTH; i++) v.lane[i] = to_storage(numbers[i]);
    memcpy(&to, &v, sizeof v);
#endif
    *(words *)((storage *)array + offset) = to;
}

#endif
