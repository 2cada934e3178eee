/* vec for x86-64: v4 (AVX-512 F, VL, BW, DQ), v3 (AVX2, FMA, F16C) and v2 (SSE4.2). Included by vector.h. */
#include <immintrin.h>

#if defined(ABN_ISA_V4)
#define VEC_BYTES 64
#define PREFIX _mm512_
#define SI(op) JOIN3(_mm512_, op, _si512)
#elif defined(ABN_ISA_V3)
#define VEC_BYTES 32
#define PREFIX _mm256_
#define SI(op) JOIN3(_mm256_, op, _si256)
#else
#define VEC_BYTES 16
#define PREFIX _mm_
#define SI(op) JOIN3(_mm_, op, _si128)
#endif

#ifdef ABN_DTYPE_FLOAT64
#define MM(op) JOIN3(PREFIX, op, _pd)
#define MI(op) JOIN3(PREFIX, op, _epi64)
#define W (VEC_BYTES / 8)
#else
#define MM(op) JOIN3(PREFIX, op, _ps)
#define MI(op) JOIN3(PREFIX, op, _epi32)
#define W (VEC_BYTES / 4)
#endif

#define i_and(a, b) SI(and)(a, b)

/* The lower 16 bits of each 32-bit lane of `even`, the upper ones of `odd`. */
#if defined(ABN_ISA_V4)
#define i_odd_halves(even, odd) _mm512_mask_mov_epi16(even, 0xaaaaaaaa, odd)
#else
#define i_odd_halves(even, odd) JOIN3(PREFIX, blend_epi16, )(even, odd, 0xaa)
#endif

#if defined(ABN_ISA_V4)
typedef __m512i ivec;
#ifdef ABN_DTYPE_FLOAT64
typedef __m512d vec;
typedef __mmask8 mask;
#define v_bits(v) _mm512_castpd_si512(v)
#define v_from_bits(i) _mm512_castsi512_pd(i)
#define i_set1(x) _mm512_set1_epi64(x)
#define v_compare(a, b, how) _mm512_cmp_pd_mask(a, b, how)
#define v_signs(a) _mm512_movepi64_mask(v_bits(a))
#else
typedef __m512 vec;
typedef __mmask16 mask;
#define v_bits(v) _mm512_castps_si512(v)
#define v_from_bits(i) _mm512_castsi512_ps(i)
#define i_set1(x) _mm512_set1_epi32(x)
#define v_compare(a, b, how) _mm512_cmp_ps_mask(a, b, how)
#define v_signs(a) _mm512_movepi32_mask(v_bits(a))
#define v_lookup(table, i) _mm512_permutexvar_ps(i, _mm512_broadcast_f32x8(_mm256_loadu_ps(table)))
#endif
#define v_select(m, a, b) MM(mask_blend)(m, b, a)
#define v_round(a) MM(roundscale)(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define first_lanes(n) ((mask)((1u << (n)) - 1u))
INLINE vec v_first(vec v, ptrdiff_t n) { return MM(maskz_mov)(first_lanes(n), v); }
INLINE vec v_last(vec v, ptrdiff_t n) { return MM(maskz_mov)((mask)~first_lanes(W - n), v); }
INLINE int v_any(mask m) { return m != 0; }
INLINE unsigned v_mask_bits(mask m) { return m; }
INLINE mask v_bits_mask(unsigned bits) { return (mask)bits; }

#elif defined(ABN_ISA_V3)
typedef __m256i ivec;
#ifdef ABN_DTYPE_FLOAT64
typedef __m256d vec;
#define v_bits(v) _mm256_castpd_si256(v)
#define v_from_bits(i) _mm256_castsi256_pd(i)
#define i_set1(x) _mm256_set1_epi64x(x)
#else
typedef __m256 vec;
#define v_bits(v) _mm256_castps_si256(v)
#define v_from_bits(i) _mm256_castsi256_ps(i)
#define i_set1(x) _mm256_set1_epi32(x)
#define v_lookup(table, i) _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), i)
#endif
typedef vec mask;
#define v_compare(a, b, how) MM(cmp)(a, b, how)

#else
typedef __m128i ivec;
#ifdef ABN_DTYPE_FLOAT64
typedef __m128d vec;
#define v_bits(v) _mm_castpd_si128(v)
#define v_from_bits(i) _mm_castsi128_pd(i)
#define i_set1(x) _mm_set1_epi64x(x)
#else
typedef __m128 vec;
#define v_bits(v) _mm_castps_si128(v)
#define v_from_bits(i) _mm_castsi128_ps(i)
#define i_set1(x) _mm_set1_epi32(x)
#endif
typedef vec mask;
#endif

#if !defined(ABN_ISA_V4)
#define v_select(m, a, b) MM(blendv)(b, a, m)
#define v_signs(a) (a) /* instructions that take a mask read only its sign bits */
#define v_round(a) MM(round)(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
INLINE ivec first_lanes(ptrdiff_t n) { return SI(loadu)((const void *)(lane_window + 8 - n)); }
INLINE vec v_first(vec v, ptrdiff_t n) { return MM(and)(v, v_from_bits(first_lanes(n))); }
INLINE vec v_last(vec v, ptrdiff_t n) { return MM(andnot)(v_from_bits(first_lanes(W - n)), v); }
INLINE int v_any(mask m) { return MM(movemask)(m) != 0; }
INLINE unsigned v_mask_bits(mask m) { return (unsigned)MM(movemask)(m); }
INLINE mask v_bits_mask(unsigned bits) {
    const ivec lanes = SI(loadu)((const void *)lane_bit);
    return v_from_bits(MI(cmpeq)(i_and(i_set1(bits), lanes), lanes));
}
#endif

#if defined(ABN_ISA_V2)
#define v_ge(a, b) MM(cmpge)(a, b)
#define v_lt(a, b) MM(cmplt)(a, b)
#define v_fma(a, b, c) MM(add)(MM(mul)(a, b), c)
#else
#define v_ge(a, b) v_compare(a, b, _CMP_GE_OQ)
#define v_lt(a, b) v_compare(a, b, _CMP_LT_OQ)
#define v_fma(a, b, c) MM(fmadd)(a, b, c)
#endif

#define v_zero() MM(setzero)()
#define v_set1(x) MM(set1)(x)
#define v_add(a, b) MM(add)(a, b)
#define v_sub(a, b) MM(sub)(a, b)
#define v_mul(a, b) MM(mul)(a, b)
#define v_div(a, b) MM(div)(a, b)
#define v_max(a, b) MM(max)(a, b)
#define v_min(a, b) MM(min)(a, b)
#define v_sqrt(a) MM(sqrt)(a)
#define v_abs(a) MM(andnot)(v_set1((real) - 0.0), a)
#define v_load_real(p) MM(loadu)(p)
#define v_store_real(p, v) MM(storeu)(p, v)
#define i_add(a, b) MI(add)(a, b)
#define i_or(a, b) SI(or)(a, b)
#define i_shift_left(a, n) MI(slli)(a, n)
#define i_shift_right(a, n) MI(srli)(a, n)
