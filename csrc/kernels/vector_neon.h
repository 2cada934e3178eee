/* vec for arm64: 128-bit NEON. Included by vector.h. */
#include <arm_neon.h>

#define VEC_BYTES 16
#ifdef ABN_DTYPE_FLOAT64
#define W 2
#define NV(op) JOIN3(v, op, q_f64)
#define NI(op) JOIN3(v, op, q_s64)
typedef float64x2_t vec;
typedef int64x2_t ivec;
typedef uint64x2_t mask;
#define v_bits(v) vreinterpretq_s64_f64(v)
#define v_from_bits(i) vreinterpretq_f64_s64(i)
#define v_mask_words(m) vreinterpretq_u32_u64(m)
#define i_shift_right(a, n) vreinterpretq_s64_u64(vshrq_n_u64(vreinterpretq_u64_s64(a), n))
#define i_set1(x) vdupq_n_s64(x)
#define i_shift_left(a, n) vshlq_n_s64(a, n)
#define v_set1(x) vdupq_n_f64(x)
#else
#define W 4
#define NV(op) JOIN3(v, op, q_f32)
#define NI(op) JOIN3(v, op, q_s32)
typedef float32x4_t vec;
typedef int32x4_t ivec;
typedef uint32x4_t mask;
#define v_bits(v) vreinterpretq_s32_f32(v)
#define v_from_bits(i) vreinterpretq_f32_s32(i)
#define v_mask_words(m) (m)
#define i_shift_right(a, n) vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), n))
#define i_set1(x) vdupq_n_s32(x)
#define i_shift_left(a, n) vshlq_n_s32(a, n)
#define v_set1(x) vdupq_n_f32(x)
#endif

#define v_zero() v_set1(0)
#define v_add(a, b) NV(add)(a, b)
#define v_sub(a, b) NV(sub)(a, b)
#define v_mul(a, b) NV(mul)(a, b)
#define v_div(a, b) NV(div)(a, b)
#define v_fma(a, b, c) NV(fma)(c, a, b)
#define v_max(a, b) v_select(v_lt(b, a), a, b)
#define v_min(a, b) v_select(v_lt(a, b), a, b)
#define v_sqrt(a) NV(sqrt)(a)
#define v_abs(a) NV(abs)(a)
#define v_round(a) NV(rndn)(a)
#define v_ge(a, b) NV(cge)(a, b)
#define v_lt(a, b) NV(clt)(a, b)
#define v_select(m, a, b) NV(bsl)(m, a, b)
#define v_signs(a) NI(cltz)(v_bits(a))
#define v_load_real(p) NV(ld1)(p)
#define v_store_real(p, v) NV(st1)(p, v)
#define i_add(a, b) NI(add)(a, b)
#define i_and(a, b) NI(and)(a, b)
#define i_or(a, b) NI(orr)(a, b)

INLINE vec v_first(vec v, ptrdiff_t n) { return v_from_bits(i_and(v_bits(v), NI(ld1)(lane_window + 8 - n))); }
INLINE vec v_last(vec v, ptrdiff_t n) { return v_from_bits(NI(bic)(v_bits(v), NI(ld1)(lane_window + 8 - (W - n)))); }
INLINE int v_any(mask m) { return vmaxvq_u32(v_mask_words(m)) != 0; }
INLINE mask v_bits_mask(unsigned bits) { return NI(tst)(i_set1(bits), NI(ld1)(lane_bit)); }
INLINE unsigned v_mask_bits(mask m) {
    return (unsigned)NI(addv)(v_bits(v_select(m, v_from_bits(NI(ld1)(lane_bit)), v_zero())));
}
