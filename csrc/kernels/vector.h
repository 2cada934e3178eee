/* One vector type, `vec`, of W lanes of `real` (float, or double for float64 storage), and the few operations that
 * the kernels use. One vector_<machine>.h per family of instruction sets; the kernels themselves are written once.
 *
 * v_first(v, n) keeps the first n lanes and zeroes the rest, v_last(v, n) the last n. Masks come from comparisons
 * (ordered: a NaN lane compares false), from bits, or from the sign bits of a vector (v_signs). v_select(mask, a, b)
 * takes a where the mask is set. v_min and v_max return their second operand if either is NaN: a NaN in the second one
 * propagates. Integer lanes (`ivec`) have the width of `real` and serve the exponent arithmetic of exp and log.
 * v_lookup(table, i), float only, is table[i % 8]. */
#ifndef ABN_VECTOR_H
#define ABN_VECTOR_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef ABN_DTYPE_FLOAT64
typedef double real;
typedef int64_t real_bits;
#define REAL_MANTISSA 52
#define LARGEST_REAL DBL_MAX
#else
typedef float real;
typedef int32_t real_bits;
#define REAL_MANTISSA 23
#define LARGEST_REAL FLT_MAX
#endif

#if defined(_MSC_VER)
#define INLINE static __forceinline
#define NOT_INLINE static __declspec(noinline)
#else
#define INLINE static inline __attribute__((always_inline))
#define NOT_INLINE static __attribute__((noinline, unused))
#endif

#if defined(__CUDACC_RTC__)
#define UNROLLED _Pragma("unroll")
#elif defined(__GNUC__) && !defined(__clang__)
#define UNROLLED _Pragma("GCC unroll 8")
#elif defined(__clang__)
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED
#endif

/* A compound literal: LITERAL(type){...}. C++, as which a GPU's compiler reads kernels, has another notation. */
#ifdef __cplusplus
#define LITERAL(type) type
#else
#define LITERAL(type) (type)
#endif

/* Starts to read a cache line into the first-level or second-level cache. `level` is a literal. Any address is
 * allowed. */
#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#define prefetch_line(address, level) _mm_prefetch((const char *)(address), (level) == 1 ? _MM_HINT_T0 : _MM_HINT_T1)
#elif defined(_MSC_VER) || defined(__CUDACC_RTC__)
#define prefetch_line(address, level) ((void)(address))
#else
#define prefetch_line(address, level) __builtin_prefetch(address, 0, 4 - (level))
#endif

/* W lanes loaded from lane_window + 8 - n are the mask of the first n lanes. */
static const real_bits lane_window[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
/* The bit that stands for each lane of a mask in v_mask_bits and v_bits_mask. */
static const real_bits lane_bit[8] = {1, 2, 4, 8, 16, 32, 64, 128};

#define JOIN3_(a, b, c) a##b##c
#define JOIN3(a, b, c) JOIN3_(a, b, c)

#if defined(ABN_ISA_V4) || defined(ABN_ISA_V3) || defined(ABN_ISA_V2)
#include "vector_x86.h"
#elif defined(ABN_ISA_NEON)
#include "vector_neon.h"
#else
#include "vector_scalar.h"
#endif

#if !defined(ABN_DTYPE_FLOAT64) && !defined(v_lookup)
INLINE vec v_lookup(const real *table, ivec index) {
    real_bits indices[W];
    real found[W];
    memcpy(indices, &index, sizeof indices);
    for (int lane = 0; lane < W; lane++) found[lane] = table[indices[lane] & 7];
    return v_load_real(found);
}
#endif

#endif
