/* Loads and stores between memory and vec. `storage` is the element type; half types are widened to float
 * on load and rounded to nearest even on store. The *_first forms touch the first n elements only (n < W). */
#ifndef ABN_STORAGE_H
#define ABN_STORAGE_H

#include "vector.h"

#if defined(ABN_DTYPE_FLOAT32) || defined(ABN_DTYPE_FLOAT64)
typedef real storage;
#define v_load(p) v_load_real(p)
#define v_store(p, v) v_store_real(p, v)

#if defined(ABN_ISA_V4)
INLINE vec v_load_first(const storage *p, ptrdiff_t n) { return MM(maskz_loadu)(first_lanes(n), p); }
INLINE void v_store_first(storage *p, vec v, ptrdiff_t n) { MM(mask_storeu)(p, first_lanes(n), v); }
#define ABN_STORAGE_HAS_FIRST
#elif defined(ABN_ISA_V3)
INLINE vec v_load_first(const storage *p, ptrdiff_t n) { return MM(maskload)(p, first_lanes(n)); }
INLINE void v_store_first(storage *p, vec v, ptrdiff_t n) { MM(maskstore)(p, first_lanes(n), v); }
#define ABN_STORAGE_HAS_FIRST
#endif

#else
typedef uint16_t storage;

#if defined(ABN_DTYPE_FLOAT16) && defined(ABN_ISA_V4)
#define HALF_LOAD(p) _mm256_loadu_si256((const void *)(p))
#define HALF_STORE(p, h) _mm256_storeu_si256((void *)(p), h)
#define HALF_LOAD_FIRST(p, n) _mm256_maskz_loadu_epi16(first_lanes(n), p)
#define HALF_STORE_FIRST(p, h, n) _mm256_mask_storeu_epi16(p, first_lanes(n), h)
#define HALF_WIDEN(h) _mm512_cvtph_ps(h)
#define HALF_NARROW(v) _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

#elif defined(ABN_DTYPE_FLOAT16) && defined(ABN_ISA_V3)
#define HALF_LOAD(p) _mm_loadu_si128((const void *)(p))
#define HALF_STORE(p, h) _mm_storeu_si128((void *)(p), h)
#define HALF_WIDEN(h) _mm256_cvtph_ps(h)
#define HALF_NARROW(v) _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

#elif defined(ABN_DTYPE_FLOAT16) && defined(ABN_ISA_NEON)
#define HALF_LOAD(p) vld1_u16(p)
#define HALF_STORE(p, h) vst1_u16(p, h)
#define HALF_WIDEN(h) vcvt_f32_f16(vreinterpret_f16_u16(h))
#define HALF_NARROW(v) vreinterpret_u16_f16(vcvt_f16_f32(v))

#elif defined(ABN_DTYPE_BFLOAT16) && (defined(ABN_ISA_V4) || defined(ABN_ISA_V3) || defined(ABN_ISA_V2))
/* Rounds to nearest even: adds 0x7fff plus the lowest kept bit. The bfloat16 is the upper half of the result. NaN stays
 * NaN: the low half of every NaN here is zero, so nothing carries. Such NaNs come from bfloat16 elements or
 * abn_set_real, and arithmetic keeps their low half. */
INLINE ivec bfloat16_rounded(vec v) {
    const ivec bits = v_bits(v);
    const ivec odd = i_and(i_shift_right(bits, 16), i_set1(1));
    return i_add(bits, i_add(odd, i_set1(0x7fff)));
}
INLINE ivec bfloat16_bits(vec v) { return i_shift_right(bfloat16_rounded(v), 16); }

/* 2 * W elements are the halves of W integers: the even ones shifted, the odd ones masked. */
INLINE void v_load_pair(const storage *p, vec *pair) {
    const ivec both = SI(loadu)((const void *)p);
    pair[0] = v_from_bits(i_shift_left(both, 16));
    pair[1] = v_from_bits(i_and(both, i_set1(-0x10000)));
}
INLINE void v_store_pair(storage *p, const vec *pair) {
    const ivec even = bfloat16_bits(pair[0]), odd = bfloat16_rounded(pair[1]);
    SI(storeu)((void *)p, i_odd_halves(even, odd));
}
#define ABN_STORAGE_HAS_PAIR
#if defined(ABN_ISA_V4)
#define HALF_LOAD(p) _mm256_loadu_si256((const void *)(p))
#define HALF_STORE(p, h) _mm256_storeu_si256((void *)(p), h)
#define HALF_LOAD_FIRST(p, n) _mm256_maskz_loadu_epi16(first_lanes(n), p)
#define HALF_STORE_FIRST(p, h, n) _mm256_mask_storeu_epi16(p, first_lanes(n), h)
#define HALF_WIDEN(h) v_from_bits(i_shift_left(_mm512_cvtepu16_epi32(h), 16))
#define HALF_NARROW(v) _mm512_cvtepi32_epi16(bfloat16_bits(v))
#elif defined(ABN_ISA_V3)
#define HALF_LOAD(p) _mm_loadu_si128((const void *)(p))
#define HALF_STORE(p, h) _mm_storeu_si128((void *)(p), h)
#define HALF_WIDEN(h) v_from_bits(i_shift_left(_mm256_cvtepu16_epi32(h), 16))
INLINE __m128i bfloat16_narrow(vec v) {
    const __m256i bits = bfloat16_bits(v);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}
#define HALF_NARROW(v) bfloat16_narrow(v)
#else
#define HALF_LOAD(p) _mm_loadl_epi64((const void *)(p))
#define HALF_STORE(p, h) _mm_storel_epi64((void *)(p), h)
#define HALF_WIDEN(h) v_from_bits(i_shift_left(_mm_cvtepu16_epi32(h), 16))
INLINE __m128i bfloat16_narrow(vec v) {
    const __m128i bits = bfloat16_bits(v);
    return _mm_packus_epi32(bits, bits);
}
#define HALF_NARROW(v) bfloat16_narrow(v)
#endif
#endif

#ifdef HALF_LOAD
#define v_load(p) HALF_WIDEN(HALF_LOAD(p))
#define v_store(p, v) HALF_STORE(p, HALF_NARROW(v))
#else /* element by element; not inlined, because hundreds of copies would take minutes to compile */
#include "../half.h"
#ifdef ABN_DTYPE_FLOAT16
#define half_to_real(h) abn_float16_to_float(h)
#define real_to_half(f) abn_float_to_float16(f)
#else
#define half_to_real(h) abn_bfloat16_to_float(h)
#define real_to_half(f) abn_float_to_bfloat16(f)
#endif
NOT_INLINE vec v_load(const storage *p) {
    real lanes[W];
    for (int i = 0; i < W; i++) lanes[i] = half_to_real(p[i]);
    return v_load_real(lanes);
}
NOT_INLINE void v_store(storage *p, vec v) {
    real lanes[W];
    v_store_real(lanes, v);
    for (int i = 0; i < W; i++) p[i] = real_to_half(lanes[i]);
}
#endif

#ifdef HALF_LOAD_FIRST
INLINE vec v_load_first(const storage *p, ptrdiff_t n) { return HALF_WIDEN(HALF_LOAD_FIRST(p, n)); }
INLINE void v_store_first(storage *p, vec v, ptrdiff_t n) { HALF_STORE_FIRST(p, HALF_NARROW(v), n); }
#define ABN_STORAGE_HAS_FIRST
#endif
#endif

/* Two vectors of 2 * W neighbouring elements, for kernels to which their order is irrelevant. It depends on the storage
 * type alone. */
#ifndef ABN_STORAGE_HAS_PAIR
INLINE void v_load_pair(const storage *p, vec *pair) {
    pair[0] = v_load(p);
    pair[1] = v_load(p + W);
}
INLINE void v_store_pair(storage *p, const vec *pair) {
    v_store(p, pair[0]);
    v_store(p + W, pair[1]);
}
#endif

/* The number of elements before the first address aligned to a whole vector, less than W. Loads and stores across cache
 * lines cost twice, and large NumPy arrays begin 16 bytes after a cache line. */
INLINE ptrdiff_t elements_to_whole_vector(const storage *p) {
    const uintptr_t bytes = W * sizeof(storage);
    return (ptrdiff_t)((bytes - (uintptr_t)p % bytes) % bytes / sizeof(storage));
}

#ifndef ABN_STORAGE_HAS_FIRST
/* Copies n < W elements in parts of W/2, W/4, ..., 1: the bits of n. */
INLINE void copy_first(storage *to, const storage *from, ptrdiff_t n) {
    UNROLLED for (int part = W / 2; part > 0; part /= 2) {
        if (!(n & part)) continue;
        memcpy(to, from, (size_t)part * sizeof *to);
        to += part;
        from += part;
    }
}

/* Inlined, every loop would compile a copy of these two. */
NOT_INLINE vec v_load_first(const storage *p, ptrdiff_t n) {
    storage lanes[W] = {0};
    copy_first(lanes, p, n);
    return v_load(lanes);
}
NOT_INLINE void v_store_first(storage *p, vec v, ptrdiff_t n) {
    storage lanes[W];
    v_store(lanes, v);
    copy_first(p, lanes, n);
}
#endif

/* Loads and stores min(n, W) elements. */
INLINE vec v_load_upto(const storage *p, ptrdiff_t n) { return n >= W ? v_load(p) : v_load_first(p, n); }
INLINE void v_store_upto(storage *p, vec v, ptrdiff_t n) {
    if (n >= W)
        v_store(p, v);
    else
        v_store_first(p, v, n);
}

#endif
