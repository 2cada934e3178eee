/* vec of one lane, plain C: any machine, any compiler. Included by vector.h. */
#include <math.h>

#define VEC_BYTES sizeof(real)
#define W 1
typedef real vec;
typedef real_bits ivec;
typedef int mask;

#define v_zero() ((real)0)
#define v_set1(x) ((real)(x))
#define v_add(a, b) ((a) + (b))
#define v_sub(a, b) ((a) - (b))
#define v_mul(a, b) ((a) * (b))
#define v_div(a, b) ((a) / (b))
#define v_fma(a, b, c) ((a) * (b) + (c))
#define v_max(a, b) ((a) > (b) ? (a) : (b))
#define v_min(a, b) ((a) < (b) ? (a) : (b))
#define v_ge(a, b) ((a) >= (b))
#define v_lt(a, b) ((a) < (b))
#define v_select(m, a, b) ((m) ? (a) : (b))
#define v_signs(a) (v_bits(a) < 0)
#define v_any(m) (m)
#define v_mask_bits(m) ((unsigned)(m))
#define v_bits_mask(bits) ((mask)((bits) & 1))
#define v_load_real(p) (*(p))
#define v_store_real(p, v) (*(p) = (v))
#define v_first(v, n) ((n) > 0 ? (v) : 0)
#define v_last(v, n) v_first(v, n)
#define i_set1(x) ((real_bits)(x))
#define i_add(a, b) ((real_bits)((unsigned_bits)(a) + (unsigned_bits)(b))) /* wraps around, as vectors do */
#define i_and(a, b) ((a) & (b))
#define i_or(a, b) ((a) | (b))

#ifdef ABN_DTYPE_FLOAT64
typedef uint64_t unsigned_bits;
#define v_round(a) rint(a)
#define v_sqrt(a) sqrt(a)
#define v_abs(a) fabs(a)
#else
typedef uint32_t unsigned_bits;
#define v_round(a) rintf(a)
#define v_sqrt(a) sqrtf(a)
#define v_abs(a) fabsf(a)
#endif
#define i_shift_left(a, n) ((real_bits)((unsigned_bits)(a) << (n)))
#define i_shift_right(a, n) ((real_bits)((unsigned_bits)(a) >> (n)))

INLINE ivec v_bits(vec v) {
    ivec i;
    memcpy(&i, &v, sizeof i);
    return i;
}
INLINE vec v_from_bits(ivec i) {
    vec v;
    memcpy(&v, &i, sizeof v);
    return v;
}
