#include "branch_mask.h"

#include "threads.h"

static ptrdiff_t bytes_of(int64_t bits) { return (ptrdiff_t)((bits + 7) / 8); }

void abn_branch_mask_put(uint8_t *branch_mask, int64_t index, const uint64_t *bits, ptrdiff_t n) {
    uint8_t *to = branch_mask + index / 8;
    const int shift = (int)(index % 8);
    const ptrdiff_t bytes = bytes_of(shift + n), words = (n + 63) / 64;
    uint64_t carried = 0;
    for (ptrdiff_t word = 0, byte = 0; byte < bytes; word++) {
        uint64_t next = word < words ? bits[word] : 0;
        if (word == n / 64) next &= ((uint64_t)1 << n % 64) - 1;
        const uint64_t shifted = next << shift | carried;
        carried = shift ? next >> (64 - shift) : 0;
        if (byte > 0 && byte + 8 < bytes) {
            for (int b = 0; b < 8; b++) to[byte + b] = (uint8_t)(shifted >> 8 * b);
            byte += 8;
            continue;
        }
        for (int b = 0; b < 8 && byte < bytes; b++, byte++) {
            const uint8_t low = (uint8_t)(shifted >> 8 * b);
            /* The first and the last byte may be shared with other threads. All bytes are zero initially. */
            if (byte == 0 || byte == bytes - 1)
                abn_add_bits(to + byte, low);
            else
                to[byte] = low;
        }
    }
}

void abn_branch_mask_get(const uint8_t *branch_mask, int64_t index, uint64_t *bits, ptrdiff_t n) {
    const uint8_t *from = branch_mask + index / 8;
    const int shift = (int)(index % 8);
    const ptrdiff_t bytes = bytes_of(shift + n);
    for (ptrdiff_t word = 0; word * 64 < n; word++, from += 8) {
        const ptrdiff_t left = bytes - 8 * word;
        uint64_t low = 0;
        if (left >= 8)
            for (int b = 0; b < 8; b++) low |= (uint64_t)from[b] << 8 * b; /* compiles to one load */
        else
            for (int b = 0; b < left; b++) low |= (uint64_t)from[b] << 8 * b;
        bits[word] = low >> shift;
        if (shift && left > 8) bits[word] |= (uint64_t)from[8] << (64 - shift);
    }
}
