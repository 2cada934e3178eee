/* The branch mask: one bit per element, set if y is left of the activation's minimum. abn.h defines the bit's index. */
#ifndef ABN_BRANCH_MASK_H
#define ABN_BRANCH_MASK_H

#include <stddef.h>
#include <stdint.h>

/* Write (put) or read (get) the n bits of the mask from bit `index` on. Bit i of `bits` is bit i % 64 of word i / 64.
 * put can only set bits; the mask must be zero before. Threads may write neighbouring bits at the same time. */
void abn_branch_mask_put(uint8_t *branch_mask, int64_t index, const uint64_t *bits, ptrdiff_t n);
void abn_branch_mask_get(const uint8_t *branch_mask, int64_t index, uint64_t *bits, ptrdiff_t n);

#endif
