/* One bit per element, in the order of what is kept per element: on which side of the activation's minimum is y? */
#ifndef ABN_SIDES_H
#define ABN_SIDES_H

#include <stddef.h>
#include <stdint.h>

/* n bits from bit `index` of sides on: set where `bits` has them set (put), read into `bits` (get). Bit i of `bits` is
 * bit i % 64 of word i / 64. Threads may put into neighbouring bits at once. */
void abn_sides_put(uint8_t *sides, int64_t index, const uint64_t *bits, ptrdiff_t n);
void abn_sides_get(const uint8_t *sides, int64_t index, uint64_t *bits, ptrdiff_t n);

#endif
