/* Valid positions of a masked batch; without a mask all positions are valid. */
#ifndef ABN_VALID_H
#define ABN_VALID_H

#include "abn.h"
#include "bits.h"

/* The first position in [from, end) whose bit is `value` (0 or 1); `end` if there is none. */
static inline ptrdiff_t abn_mask_find(const abn_mask *mask, int value, ptrdiff_t from, ptrdiff_t end) {
    const uint64_t flip = value ? 0 : ~(uint64_t)0;
    while (from < end) {
        const uint64_t bits = (mask->words[from / 64] ^ flip) >> from % 64;
        if (bits) {
            from += abn_lowest_bit(bits);
            break;
        }
        from += 64 - from % 64;
    }
    return from < end ? from : end;
}

/* The first valid position in [from, end); `end` if there is none. */
static inline ptrdiff_t abn_next_valid(const abn_mask *mask, ptrdiff_t from, ptrdiff_t end) {
    return mask->words && from < end ? abn_mask_find(mask, 1, from, end) : from;
}

/* A valid position: its image, its position there, and how many valid positions precede it. */
typedef struct {
    ptrdiff_t image, position, valid;
} abn_place;

static const abn_place abn_before_first = {0, -1, -1};

/* Moves on to the next valid position of the batch. Start with abn_before_first. Returns 0 past the last one. */
static inline int abn_next_place(const abn_batch *batch, const abn_mask *mask, abn_place *place) {
    ptrdiff_t position = place->position + 1;
    if (mask->words) {
        const ptrdiff_t start = place->image * batch->spatial;
        position = abn_next_valid(mask, start + position, batch->batch * batch->spatial) - start;
    }
    for (; position >= batch->spatial; position -= batch->spatial)
        if (++place->image >= batch->batch) return 0;
    place->position = position;
    place->valid++;
    return 1;
}

/* The number of valid positions: elements of a channel. */
static inline ptrdiff_t abn_valid_positions(const abn_batch *batch, const abn_mask *mask) {
    return mask->words ? mask->valid : batch->batch * batch->spatial;
}

#endif
