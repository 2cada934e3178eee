/* Channels-first: every channel is a row of S elements in each image.
 *
 * A chunk is several whole images if rows are short, or part of one long row. It is summed in vector lanes of real; the
 * chunks' sums are added in order in double, so the error does not grow with the size of a channel and the result does
 * not depend on the number of threads.
 *
 * A strip is as many neighbouring channels as stay in cache from sums to apply: hardware prefetching works best on long
 * contiguous reads (prefetch instructions were measured to cost time). apply visits the tiles in reverse order,
 * starting with those still in first-level cache. */
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "element.h"
#include "scratch.h"
#include "threads.h"
#include "tile.h"
#include "walk_layouts.h"

enum {
    CHUNK = 16384,           /* elements */
    CHUNK_ROWS = 64,         /* at most: very short rows use few lanes of a vector, so each lane adds many numbers */
    CHANNELS_PER_THREAD = 4, /* with fewer channels, all threads share each channel */
};

typedef struct {
    abn_operation *op;
    ptrdiff_t tile_length, tiles_per_row;
    ptrdiff_t tiles; /* of one channel or strip */
    ptrdiff_t tiles_per_chunk, chunks;
    ptrdiff_t strip;     /* channels of a strip */
    abn_scratch scratch; /* of a strip, per thread */
    double *chunk_sums;  /* if threads share channels: two per chunk */
    int resum;           /* the result of finish for a shared channel */
} walk;

static abn_span tile_span(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t tile) {
    const ptrdiff_t image = tile / w->tiles_per_row, from = tile % w->tiles_per_row * w->tile_length;
    const ptrdiff_t left = w->op->source.spatial - from;
    return (abn_span){channel, channels, image, 1, from, left < w->tile_length ? left : w->tile_length};
}

static ptrdiff_t first_tile_of(const walk *w, ptrdiff_t chunk) {
    const ptrdiff_t tile = chunk * w->tiles_per_chunk;
    return tile < w->tiles ? tile : w->tiles;
}

/* Rows of the scratch: the channels of the strip, image by image. */
static abn_tile tile_at(const walk *w, const abn_span *span, int thread) {
    abn_tile tile = abn_tile_of(w->op, span);
    tile.scratch = abn_scratch_row(w->op, &w->scratch, thread, span->image * span->channels, span->from);
    return tile;
}

static void sum_chunk(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t chunk, int resumming, int thread,
                      double *first, double *second) {
    _Alignas(64) char partial[2 * ABN_ROWS_MAX * ABN_LANE_BYTES];
    const abn_constants constants = abn_constants_from(w->op, channel);
    memset(partial, 0, 2 * (size_t)channels * ABN_LANE_BYTES);
    for (ptrdiff_t tile = first_tile_of(w, chunk); tile < first_tile_of(w, chunk + 1); tile++) {
        const abn_span span = tile_span(w, channel, channels, tile);
        const abn_tile at = tile_at(w, &span, thread);
        w->op->sums(w->op, &at, &span, &constants, partial, resumming);
    }
    w->op->kernels->fold(partial, (abn_columns){channels, 1, 1}, first, second);
}

static void apply_tiles(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t first, ptrdiff_t last,
                        int thread) {
    const abn_constants constants = abn_constants_from(w->op, channel);
    for (ptrdiff_t tile = last - 1; tile >= first; tile--) {
        const abn_span span = tile_span(w, channel, channels, tile);
        const abn_tile at = tile_at(w, &span, thread);
        w->op->apply(w->op, &at, &span, &constants, thread);
    }
}

/* Sums and apply of one strip, by one thread. */
static void walk_strip(const walk *w, ptrdiff_t channel, ptrdiff_t channels, int thread) {
    abn_operation *op = w->op;
    double first[ABN_ROWS_MAX], second[ABN_ROWS_MAX];
    int resumming = 0;
    if (op->begin) op->begin(op, channel, channels);
    do {
        if (!op->sums) break;
        for (ptrdiff_t c = 0; c < channels; c++) first[c] = second[c] = 0;
        for (ptrdiff_t chunk = 0; chunk < w->chunks; chunk++)
            sum_chunk(w, channel, channels, chunk, resumming, thread, first, second);
        resumming = op->finish(op, channel, channels, first, second, resumming);
    } while (resumming);
    if (op->apply) apply_tiles(w, channel, channels, 0, w->tiles, thread);
}

static void walk_strips(void *argument, int thread, int threads) {
    const walk *w = argument;
    const ptrdiff_t channels = w->op->source.channels;
    ptrdiff_t strip, last;
    abn_share((channels + w->strip - 1) / w->strip, thread, threads, &strip, &last);
    for (; strip < last; strip++) {
        const ptrdiff_t channel = strip * w->strip, left = channels - channel;
        walk_strip(w, channel, left < w->strip ? left : w->strip, thread);
    }
}

/* Thread 0 adds the sums of all threads and calls finish. Returns what finish returned, in every thread. */
static int finish_shared_channel(walk *w, ptrdiff_t channel, int thread, int threads, int resumming) {
    if (threads > 1) abn_barrier();
    if (thread == 0) {
        double first = 0, second = 0;
        for (ptrdiff_t chunk = 0; chunk < w->chunks; chunk++) {
            first += w->chunk_sums[2 * chunk];
            second += w->chunk_sums[2 * chunk + 1];
        }
        w->resum = w->op->finish(w->op, channel, 1, &first, &second, resumming);
    }
    if (threads > 1) abn_barrier();
    return w->resum;
}

/* Channel by channel; all threads work on the same channel. */
static void walk_shared_channels(void *argument, int thread, int threads) {
    walk *w = argument;
    abn_operation *op = w->op;
    ptrdiff_t first_chunk, last_chunk;
    abn_share(w->chunks, thread, threads, &first_chunk, &last_chunk);
    for (ptrdiff_t channel = 0; channel < op->source.channels; channel++) {
        int resumming = 0;
        if (thread == 0 && op->begin) op->begin(op, channel, 1);
        if (threads > 1) abn_barrier();
        do {
            if (!op->sums) break;
            for (ptrdiff_t chunk = first_chunk; chunk < last_chunk; chunk++) {
                double *sums = w->chunk_sums + 2 * chunk;
                sums[0] = sums[1] = 0;
                sum_chunk(w, channel, 1, chunk, resumming, thread, sums, sums + 1);
            }
            resumming = finish_shared_channel(w, channel, thread, threads, resumming);
        } while (resumming);
        if (op->apply) apply_tiles(w, channel, 1, first_tile_of(w, first_chunk), first_tile_of(w, last_chunk), thread);
    }
}

/* Divides rows into tiles of equal length, whole vectors except for the last one, and tiles into chunks. */
static void divide(walk *w) {
    enum { GRAIN = 64 }; /* elements: a multiple of the length of every vector */
    const abn_batch *b = &w->op->source;
    const ptrdiff_t tiles = (b->spatial + CHUNK - 1) / CHUNK;
    w->tile_length = ((b->spatial + tiles - 1) / tiles + GRAIN - 1) / GRAIN * GRAIN;
    if (w->tile_length > b->spatial) w->tile_length = b->spatial;
    w->tiles_per_row = (b->spatial + w->tile_length - 1) / w->tile_length;
    w->tiles = b->batch * w->tiles_per_row;
    w->tiles_per_chunk = w->tiles_per_row > 1 ? 1 : CHUNK / b->spatial;
    if (w->tiles_per_chunk > CHUNK_ROWS) w->tiles_per_chunk = CHUNK_ROWS;
    w->chunks = (w->tiles + w->tiles_per_chunk - 1) / w->tiles_per_chunk;
}

abn_status abn_walk_rows(abn_operation *op) {
    const abn_batch *b = &op->source;
    const size_t channel_bytes = (size_t)(b->batch * b->spatial) * abn_dtype_size(b->dtype) * (size_t)op->arrays;
    const abn_caches caches = abn_cache_sizes();
    walk w = {.op = op};
    divide(&w);
    if (op->threads > 1 && w.chunks > 1 &&
        (b->channels < CHANNELS_PER_THREAD * op->threads || channel_bytes > caches.level3 / 8)) {
        w.chunk_sums = malloc(2 * (size_t)w.chunks * sizeof(double));
        if (w.chunk_sums == NULL) return ABN_NO_MEMORY;
        abn_parallel(op->threads, walk_shared_channels, &w);
        free(w.chunk_sums);
        return ABN_OK;
    }
    const ptrdiff_t per_thread = (b->channels + op->threads - 1) / op->threads;
    w.strip = (ptrdiff_t)(abn_strip_bytes() / channel_bytes);
    if (w.strip > ABN_ROWS_MAX) w.strip = ABN_ROWS_MAX;
    if (w.strip > per_thread) w.strip = per_thread;
    if (w.strip < 1) w.strip = 1;
    if (channel_bytes <= 2 * abn_strip_bytes())
        w.scratch = abn_scratch_open(op, op->threads, b->batch * w.strip, b->spatial);
    abn_parallel(op->threads, walk_strips, &w);
    abn_scratch_close(&w.scratch);
    return ABN_OK;
}
