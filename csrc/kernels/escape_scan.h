/* x -> y of a segment, and a bit for each element to be escaped: z does not determine its y. Included by segments.h. */
#ifndef ABN_ESCAPE_SCAN_H
#define ABN_ESCAPE_SCAN_H

#include "elements.h"

/* The index of a vector's constants: a row has one set, columns have one each. */
INLINE ptrdiff_t constants_at(int layout, ptrdiff_t i) { return layout == ABN_ROWS ? 0 : i; }

typedef struct {
    vec below, above, minimum, near;
} escape_limits;

INLINE vec residual_limit(int layout, abn_constants c, ptrdiff_t i) {
    return constant(layout, c, ABN_RESIDUAL_LIMIT, constants_at(layout, i));
}

/* Returns the escape bits of the 64 elements at `from` of a segment of n elements. NaN needs no escape: its comparisons
 * are false. */
INLINE uint64_t escaped_of_word(int layout, const real *y, const storage *residual, ptrdiff_t from, ptrdiff_t n,
                                abn_constants c, escape_limits rule) {
    uint64_t bits = 0;
    for (ptrdiff_t i = from; i < from + 64 && i < n; i += W) {
        const vec value = v_load_real(y + i), distance = v_abs(v_sub(value, rule.minimum));
        unsigned escaped = v_mask_bits(v_lt(distance, rule.near)) | v_mask_bits(v_lt(value, rule.below)) |
                           v_mask_bits(v_lt(rule.above, value));
        if (residual)
            escaped |= v_mask_bits(v_lt(residual_limit(layout, c, i), v_abs(v_load_upto(residual + i, n - i))));
        bits |= (uint64_t)escaped << (i - from);
    }
    return n - from < 64 ? bits & (((uint64_t)1 << (n - from)) - 1) : bits;
}

/* Computes y, branch_mask and escaped of a segment; returns true if any element is escaped. Escapes are rare: elements
 * are compared one by one only if the extremes of 64 elements, ignoring NaN, show that one of them is escaped. */
INLINE int segment_scan(int layout, int with_residual, abn_tile segment, abn_constants c, escape_limits rule,
                        real *restrict y, uint64_t *restrict branch_mask, uint64_t *restrict escaped) {
    const storage *x = segment.source.data, *residual = with_residual ? segment.residual.data : NULL;
    const ptrdiff_t n = segment.length;
    uint64_t any = 0;
    for (ptrdiff_t word = 0; word < n; word += 64) {
        uint64_t left = 0;
        prefetch_at_word(segment.source, word, 2);
        if (residual) prefetch_at_word(segment.residual, word, 2);
        vec nearest = v_set1(LARGEST_REAL), least = nearest, most = v_set1(-LARGEST_REAL), excess = v_zero();
        for (ptrdiff_t i = word; i < word + 64 && i < n; i += W) {
            vec value = affine_apply(v_load_upto(x + i, n - i), affine_constants(layout, c, constants_at(layout, i)));
            if (residual) {
                const vec r = v_load_upto(residual + i, n - i);
                value = v_add(value, r);
                excess = v_max(v_sub(v_abs(r), residual_limit(layout, c, i)), excess);
            }
            v_store_real(y + i, value);
            const vec offset = v_sub(value, rule.minimum);
            nearest = v_min(v_abs(offset), nearest);
            least = v_min(value, least);
            most = v_max(value, most);
            left |= (uint64_t)v_mask_bits(v_lt(offset, v_zero())) << (i - word);
        }
        branch_mask[word / 64] = left;
        escaped[word / 64] = 0;
        if (v_any(v_lt(nearest, rule.near)) || v_any(v_lt(least, rule.below)) || v_any(v_lt(rule.above, most)) ||
            v_any(v_lt(v_zero(), excess)))
            any |= escaped[word / 64] = escaped_of_word(layout, y, residual, word, n, c, rule);
    }
    return any != 0;
}

#endif
