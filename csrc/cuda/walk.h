/* Which elements a thread works on: vectors of ABN_WIDTH elements, each `step` vectors after the last. */
#ifndef ABN_CUDA_WALK_H
#define ABN_CUDA_WALK_H

#include "pass.h"
#include "vectors.h"

/* How many different channels the elements of a thread's vectors belong to: one, or each lane its own. */
#ifdef ABN_PLANES
#define LANES 1
#else
#define LANES ABN_WIDTH
#endif

typedef struct {
    int64_t offset; /* of the next vector's first element */
    int64_t unit;   /* of the next vector */
    int32_t count;  /* vectors that are left */
    int32_t unit_step;
    int64_t step;
#ifdef ABN_PLANES
    int64_t position, position_step, plane, wrap; /* in vectors within an image; in elements from image to image */
#endif
} abn_walk;

/* A block's place: its part, its channel (ABN_PLANES) or tile, and its units. */
typedef struct {
    int32_t part, tile;
    int64_t begin, end;
} abn_place;

/* Neighbouring blocks work on neighbouring memory. */
INLINE abn_place sums_place(const abn_cuda_pass *p, int64_t block) {
    abn_place at;
#ifdef ABN_PLANES
    at.part = (int32_t)(block % p->parts);
    at.tile = (int32_t)(block / p->parts);
#else
    at.part = (int32_t)(block / p->tiles);
    at.tile = (int32_t)(block % p->tiles);
#endif
    at.begin = p->part_length * at.part;
    at.end = at.begin + p->part_length < p->units ? at.begin + p->part_length : p->units;
    return at;
}

/* The second pass begins with the last split of every part: the sums read it last, and it may still be in the cache. */
INLINE abn_place apply_place(const abn_cuda_pass *p, int64_t block) {
    const int64_t blocks = (int64_t)p->parts * p->tiles, split = p->splits - 1 - block / blocks;
    abn_place at = sums_place(p, block % blocks);
    at.begin += split * p->split_length;
    if (at.begin + p->split_length < at.end) at.end = at.begin + p->split_length;
    return at;
}

/* The first column of this thread. */
INLINE int64_t column_of(const abn_cuda_pass *p, abn_place at) {
    return ((int64_t)at.tile * p->tile_x + THREAD % p->tile_x) * ABN_WIDTH;
}

INLINE int32_t channel_of(const abn_cuda_pass *p, abn_place at, int lane) {
#ifdef ABN_PLANES
    return at.tile;
#else
    const int64_t column = column_of(p, at) + lane;
    return (int32_t)(p->repeat == 1 ? column : (int32_t)column / (int32_t)p->repeat);
#endif
}

/* True if the thread has elements: the last tile may reach past the columns. */
INLINE int is_active(const abn_cuda_pass *p, abn_place at) {
#ifdef ABN_PLANES
    return 1;
#else
    return column_of(p, at) < p->columns;
#endif
}

#ifdef ABN_PLANES
INLINE int64_t offset_of(const abn_cuda_pass *p, int32_t channel, int64_t unit) {
    const int64_t plane = p->positions / ABN_WIDTH, image = unit / plane;
    return (image * p->channels + channel) * p->positions + (unit - image * plane) * ABN_WIDTH;
}
#endif

INLINE abn_walk walk_begin(const abn_cuda_pass *p, abn_place at) {
    abn_walk w;
#ifdef ABN_PLANES
    const int64_t first = at.begin + THREAD;
    const int32_t plane = (int32_t)(p->positions / ABN_WIDTH), images = THREADS / plane;
    w.unit = first;
    w.unit_step = THREADS;
    w.plane = plane;
    w.position = first % plane;
    w.position_step = THREADS - images * plane;
    w.wrap = (p->channels - 1) * p->positions;
    w.offset = offset_of(p, at.tile, first);
    w.step = images * p->channels * p->positions + w.position_step * ABN_WIDTH;
    w.count = first < at.end ? (int32_t)((at.end - first + THREADS - 1) / THREADS) : 0;
#else
    const int64_t first = at.begin + THREAD / p->tile_x;
    w.unit = first;
    w.unit_step = p->tile_y;
    w.offset = first * p->columns + column_of(p, at);
    w.step = p->tile_y * p->columns;
    w.count = first < at.end && is_active(p, at) ? (int32_t)((at.end - first + p->tile_y - 1) / p->tile_y) : 0;
#endif
    return w;
}

INLINE void walk_next(abn_walk *w) {
    w->count--;
    w->unit += w->unit_step;
    w->offset += w->step;
#ifdef ABN_PLANES
    w->position += w->position_step;
    if (w->position >= w->plane) {
        w->position -= w->plane;
        w->offset += w->wrap;
    }
#endif
}

/* The offset of the first element of a block's part of a channel. */
INLINE int64_t first_offset(const abn_cuda_pass *p, abn_place at, int32_t channel) {
#ifdef ABN_PLANES
    return offset_of(p, channel, at.begin);
#else
    return at.begin * p->columns + channel * p->repeat;
#endif
}

/* The number of elements of a channel in a part. */
INLINE int64_t part_count(const abn_cuda_pass *p, int32_t part) {
    const int64_t left = p->units - p->part_length * part, units = left < p->part_length ? left : p->part_length;
#ifdef ABN_PLANES
    return units * ABN_WIDTH;
#else
    return units * p->repeat;
#endif
}

/* image * positions + position of lane i of a vector: its place in a channel of the side buffer. */
INLINE int64_t index_in_channel(const abn_cuda_pass *p, abn_place at, int64_t unit, int i) {
#ifdef ABN_PLANES
    return unit * ABN_WIDTH + i;
#else
    if (p->repeat == 1) return unit;
    return unit * p->positions + (int32_t)(column_of(p, at) + i) % (int32_t)p->repeat;
#endif
}

/* ---- numbers per channel ------------------------------------------------------------------------------------- */

typedef struct ALIGNED(LANES * sizeof(real) > 16 ? 16 : LANES * sizeof(real)) {
    real lane[LANES];
} lane_numbers;

/* The numbers of array `which` of `arrays` for the channels of a thread's lanes. Those of a row are adjacent: the
 * number of channels is a multiple of ABN_WIDTH. */
INLINE lane_numbers numbers_at(const abn_cuda_pass *p, const void *arrays, int which, abn_place at) {
    const real *array = (const real *)arrays + which * p->channels;
    lane_numbers numbers;
#ifdef ABN_COLUMNS
    if (p->repeat == 1) return *(const lane_numbers *)(array + channel_of(p, at, 0));
#endif
    UNROLLED for (int lane = 0; lane < LANES; lane++) numbers.lane[lane] = array[channel_of(p, at, lane)];
    return numbers;
}

INLINE int32_t slot_at(const abn_cuda_pass *p, int32_t channel) {
    return ((const int32_t *)((const real *)p->saved + ABN_SAVED * p->channels))[channel];
}

#endif
