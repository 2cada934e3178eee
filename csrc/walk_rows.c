/* Channels-first: every channel is a row of S elements in each image.
 *
 * A chunk is several whole images if rows are short, or part of one long row. It is summed in vector lanes of real; the
 * chunks' sums are added in order in double, so the error does not grow with the size of a channel and the result does
 * not depend on the number of threads.
 *
 * A strip is a few neighbouring channels that stay in cache from sums to apply. Memory is busy all the time: sums
 * prefetches a few KB ahead in walking order, across the gap between two images, which hardware prefetchers do not
 * cross; apply, which reads from cache, prefetches the next strip, or of long channels its own next tile. apply visits
 * the tiles in reverse order, starting with those still in first-level cache. */
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
    STRIP_BYTES = 262144,    /* of each array, at most; measured with 512 KB and with 2 MB of second-level cache */
    SCRATCH_CACHES = 4,      /* scratch pays if a channel is at most this many times the second-level cache */
    PREFETCHED_CACHES = 4,   /* the next strip is prefetched if it is at most this many times the second-level cache */
    CHANNELS_PER_THREAD = 4, /* with fewer channels, all threads share each channel */
};

typedef struct {
    abn_operation *op;
    ptrdiff_t tile_length, tiles_per_row;
    ptrdiff_t tiles; /* of one channel or strip */
    ptrdiff_t tiles_per_chunk, chunks;
    ptrdiff_t strip;     /* channels of a strip; 1 if threads share channels */
    int prefetches_next; /* apply prefetches the next strip */
    abn_scratch scratch; /* of a strip, per thread */
    double *chunk_sums;  /* if threads share channels: two per chunk */
    int resum;           /* the result of finish for a shared channel */
} walk;

static abn_span tile_span(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t tile) {
    const ptrdiff_t per_row = w->tiles_per_row, image = per_row == 1 ? tile : tile / per_row;
    const ptrdiff_t from = (tile - image * per_row) * w->tile_length;
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
        abn_tile at = tile_at(w, &span, thread);
        if (tile + 1 < w->tiles) {
            const abn_span next = tile_span(w, channel, channels, tile + 1);
            abn_tile_prefetch(w->op, &next, &next, &at);
        }
        w->op->sums(w->op, &at, &span, &constants, partial, resumming);
    }
    w->op->kernels->fold(partial, (abn_columns){channels, 1, 1}, first, second);
}

/* Applies tiles [first, last), the last one first. Meanwhile the same tiles of the strip at channel `next` are
 * prefetched, in the order in which they will be summed, or the tile to be applied next if `next` is -1. The forward
 * does not sum the residual: of that array, it is always the tile to be applied next. */
static void apply_tiles(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t first, ptrdiff_t last,
                        ptrdiff_t next, int thread) {
    abn_operation *op = w->op;
    const abn_constants constants = abn_constants_from(op, channel);
    for (ptrdiff_t tile = last - 1; tile >= first; tile--) {
        const abn_span span = tile_span(w, channel, channels, tile);
        const abn_span later = tile_span(w, channel, channels, tile > first ? tile - 1 : tile);
        const abn_span ahead = next >= 0 ? tile_span(w, next, channels, first + last - 1 - tile) : later;
        abn_tile at = tile_at(w, &span, thread);
        abn_tile_prefetch(op, &ahead, op->gradient.data ? &ahead : &later, &at);
        op->apply(op, &at, &span, &constants, thread);
    }
}

/* Sums and apply of one strip, by one thread. */
static void walk_strip(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t next, int thread) {
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
    if (op->apply) apply_tiles(w, channel, channels, 0, w->tiles, next, thread);
}

static void walk_strips(void *argument, int thread, int threads) {
    const walk *w = argument;
    const ptrdiff_t channels = w->op->source.channels;
    ptrdiff_t strip, last;
    abn_share((channels + w->strip - 1) / w->strip, thread, threads, &strip, &last);
    for (; strip < last; strip++) {
        const ptrdiff_t channel = strip * w->strip, left = channels - channel;
        const ptrdiff_t next = w->prefetches_next && strip + 1 < last ? channel + w->strip : -1;
        walk_strip(w, channel, left < w->strip ? left : w->strip, next, thread);
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
        const ptrdiff_t next = w->prefetches_next && channel + 1 < op->source.channels ? channel + 1 : -1;
        if (op->apply)
            apply_tiles(w, channel, 1, first_tile_of(w, first_chunk), first_tile_of(w, last_chunk), next, thread);
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
    w->tiles_per_chunk = CHUNK / w->tile_length;
    if (w->tiles_per_chunk < 1) w->tiles_per_chunk = 1;
    if (w->tiles_per_chunk > CHUNK_ROWS) w->tiles_per_chunk = CHUNK_ROWS;
    w->chunks = (w->tiles + w->tiles_per_chunk - 1) / w->tiles_per_chunk;
}

/* The threads that share one third-level cache. */
static size_t sharing_threads(const abn_operation *op) {
    const int sharing = abn_cache_sizes().sharing;
    return (size_t)(op->threads < sharing ? op->threads : sharing);
}

/* True if all threads should work on the same channel: if there are few channels, or if long ones, one per thread, may
 * not stay in the third-level cache from sums to apply. Half of it is left to other processes and to what apply has
 * written. Threads wait for each other in every channel, so long ones alone are shared. */
static int shares_channels(const walk *w, size_t channel_bytes) {
    const abn_operation *op = w->op;
    const size_t level3 = abn_cache_sizes().level3;
    if (op->threads == 1 || w->chunks == 1) return 0;
    if (op->source.channels < CHANNELS_PER_THREAD * op->threads) return 1;
    return channel_bytes > level3 / 8 && channel_bytes * sharing_threads(op) >= level3 / 2;
}

/* True if apply should prefetch the next strip: if this many strips, each with the next one, take at most half of the
 * third-level cache. In a strip of many second-level caches, what is prefetched displaces what is read next. */
static int next_strips_fit(const walk *w, size_t channel_bytes, size_t strips) {
    const size_t bytes = channel_bytes * (size_t)w->strip;
    const abn_caches caches = abn_cache_sizes();
    return bytes <= PREFETCHED_CACHES * caches.level2 && 2 * bytes * strips <= caches.level3 / 2;
}

static ptrdiff_t channels_of_strip(const abn_operation *op) {
    const abn_batch *b = &op->source;
    const size_t array_bytes = (size_t)(b->batch * b->spatial) * abn_dtype_size(b->dtype);
    const ptrdiff_t per_thread = (b->channels + op->threads - 1) / op->threads;
    const size_t level2 = abn_cache_sizes().level2;
    ptrdiff_t strip = (ptrdiff_t)((level2 / 2 < STRIP_BYTES ? level2 / 2 : STRIP_BYTES) / array_bytes);
    if (strip > ABN_ROWS_MAX) strip = ABN_ROWS_MAX;
    if (strip > per_thread) strip = per_thread;
    return strip > 1 ? strip : 1;
}

abn_status abn_walk_rows(abn_operation *op) {
    const abn_batch *b = &op->source;
    const size_t channel_bytes = (size_t)(b->batch * b->spatial) * abn_dtype_size(b->dtype) * (size_t)op->arrays;
    walk w = {.op = op, .strip = 1};
    divide(&w);
    if (shares_channels(&w, channel_bytes)) {
        w.chunk_sums = malloc(2 * (size_t)w.chunks * sizeof(double));
        if (w.chunk_sums == NULL) return ABN_NO_MEMORY;
        w.prefetches_next = next_strips_fit(&w, channel_bytes, 1);
        abn_parallel(op->threads, walk_shared_channels, &w);
        free(w.chunk_sums);
        return ABN_OK;
    }
    w.strip = channels_of_strip(op);
    w.prefetches_next = next_strips_fit(&w, channel_bytes, sharing_threads(op));
    if (channel_bytes <= SCRATCH_CACHES * abn_cache_sizes().level2)
        w.scratch = abn_scratch_open(op, op->threads, b->batch * w.strip, b->spatial);
    abn_parallel(op->threads, walk_strips, &w);
    abn_scratch_close(&w.scratch);
    return ABN_OK;
}
