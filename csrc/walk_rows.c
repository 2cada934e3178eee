/* Channels-first: every channel is a row of S elements in each image.
 *
 * Sums go over slices, cut by shape alone: some whole images of short rows, or a piece of a long row. A slice is
 * summed in vector lanes, and the slices' sums are added in order in double, so that the error does not grow with the
 * size of a channel and the result is the same however slices are dealt to threads.
 *
 * Neighbouring channels go through both passes together, as many as stay in cache between the two: long contiguous
 * stretches are what the processor's own prefetching wants (prefetch instructions only cost time here). The second
 * pass runs backwards: it begins with what the first pass left in the nearest cache. */
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "operation.h"
#include "threads.h"

enum {
    SLICE = 16384,           /* elements */
    SLICE_ROWS = 64,         /* of very short rows, which are added to the same few lanes */
    CHANNELS_PER_THREAD = 4, /* with fewer, threads share each channel */
};

typedef struct {
    abn_operation *op;
    ptrdiff_t piece, pieces_per_image; /* elements of a row in one tile */
    ptrdiff_t tiles;                   /* of one channel, or one group of channels */
    ptrdiff_t tiles_per_slice, slices;
    ptrdiff_t group;    /* channels that go through both passes together */
    abn_memo memo;      /* of a group, for each thread */
    double *slice_sums; /* where threads share a channel: two per slice */
    int again;
} walk;

static abn_span tile_span(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t tile) {
    const ptrdiff_t image = tile / w->pieces_per_image, from = tile % w->pieces_per_image * w->piece;
    const ptrdiff_t left = w->op->source.spatial - from;
    return (abn_span){channel, channels, image, 1, from, left < w->piece ? left : w->piece};
}

static ptrdiff_t first_tile_of(const walk *w, ptrdiff_t slice) {
    const ptrdiff_t tile = slice * w->tiles_per_slice;
    return tile < w->tiles ? tile : w->tiles;
}

/* Rows of the memo: image by image, the group's channels. */
static abn_tile tile_at(const walk *w, const abn_span *span, int thread) {
    abn_tile tile = abn_tile_of(w->op, span);
    tile.memo = abn_memo_row(w->op, &w->memo, thread, span->image * span->channels, span->from);
    return tile;
}

static void sum_slice(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t slice, int again, int thread,
                      double *first, double *second) {
    _Alignas(64) char partial[2 * ABN_ROWS_MAX * ABN_LANE_BYTES];
    const abn_constants constants = abn_constants_from(w->op, channel);
    memset(partial, 0, 2 * (size_t)channels * ABN_LANE_BYTES);
    for (ptrdiff_t tile = first_tile_of(w, slice); tile < first_tile_of(w, slice + 1); tile++) {
        const abn_span span = tile_span(w, channel, channels, tile);
        const abn_tile at = tile_at(w, &span, thread);
        w->op->sums(w->op, &at, &span, &constants, partial, again);
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

/* Both passes over one group of channels by one thread. */
static void walk_group(const walk *w, ptrdiff_t channel, ptrdiff_t channels, int thread) {
    abn_operation *op = w->op;
    double first[ABN_ROWS_MAX], second[ABN_ROWS_MAX];
    int again = 0;
    if (op->begin) op->begin(op, channel, channels);
    do {
        if (!op->sums) break;
        for (ptrdiff_t c = 0; c < channels; c++) first[c] = second[c] = 0;
        for (ptrdiff_t slice = 0; slice < w->slices; slice++)
            sum_slice(w, channel, channels, slice, again, thread, first, second);
        again = op->finish(op, channel, channels, first, second, again);
    } while (again);
    if (op->apply) apply_tiles(w, channel, channels, 0, w->tiles, thread);
}

static void walk_groups(void *argument, int thread, int threads) {
    const walk *w = argument;
    const ptrdiff_t channels = w->op->source.channels;
    ptrdiff_t group, last;
    abn_share((channels + w->group - 1) / w->group, thread, threads, &group, &last);
    for (; group < last; group++) {
        const ptrdiff_t channel = group * w->group, left = channels - channel;
        walk_group(w, channel, left < w->group ? left : w->group, thread);
    }
}

/* Thread 0 adds up what all have summed; nonzero: the sums have to be taken again. */
static int finish_shared_channel(walk *w, ptrdiff_t channel, int thread, int threads, int again) {
    if (threads > 1) abn_barrier();
    if (thread == 0) {
        double first = 0, second = 0;
        for (ptrdiff_t slice = 0; slice < w->slices; slice++) {
            first += w->slice_sums[2 * slice];
            second += w->slice_sums[2 * slice + 1];
        }
        w->again = w->op->finish(w->op, channel, 1, &first, &second, again);
    }
    if (threads > 1) abn_barrier();
    return w->again;
}

/* One channel after the other, each shared by all threads. */
static void walk_shared_channels(void *argument, int thread, int threads) {
    walk *w = argument;
    abn_operation *op = w->op;
    ptrdiff_t first_slice, last_slice;
    abn_share(w->slices, thread, threads, &first_slice, &last_slice);
    for (ptrdiff_t channel = 0; channel < op->source.channels; channel++) {
        int again = 0;
        if (thread == 0 && op->begin) op->begin(op, channel, 1);
        if (threads > 1) abn_barrier();
        do {
            if (!op->sums) break;
            for (ptrdiff_t slice = first_slice; slice < last_slice; slice++) {
                double *sums = w->slice_sums + 2 * slice;
                sums[0] = sums[1] = 0;
                sum_slice(w, channel, 1, slice, again, thread, sums, sums + 1);
            }
            again = finish_shared_channel(w, channel, thread, threads, again);
        } while (again);
        if (op->apply) apply_tiles(w, channel, 1, first_tile_of(w, first_slice), first_tile_of(w, last_slice), thread);
    }
}

/* Pieces of equal size, whole vectors but for the last. */
static void cut(walk *w) {
    enum { GRAIN = 64 };
    const abn_batch *b = &w->op->source;
    const ptrdiff_t pieces = (b->spatial + SLICE - 1) / SLICE;
    w->piece = ((b->spatial + pieces - 1) / pieces + GRAIN - 1) / GRAIN * GRAIN;
    if (w->piece > b->spatial) w->piece = b->spatial;
    w->pieces_per_image = (b->spatial + w->piece - 1) / w->piece;
    w->tiles = b->batch * w->pieces_per_image;
    w->tiles_per_slice = w->pieces_per_image > 1 ? 1 : SLICE / b->spatial;
    if (w->tiles_per_slice > SLICE_ROWS) w->tiles_per_slice = SLICE_ROWS;
    w->slices = (w->tiles + w->tiles_per_slice - 1) / w->tiles_per_slice;
}

abn_status abn_walk_rows(abn_operation *op) {
    const abn_batch *b = &op->source;
    const size_t channel_bytes = (size_t)(b->batch * b->spatial) * abn_dtype_size(b->dtype) * (size_t)op->arrays;
    const abn_caches caches = abn_cache_sizes();
    walk w = {.op = op};
    cut(&w);
    if (op->threads > 1 && w.slices > 1 &&
        (b->channels < CHANNELS_PER_THREAD * op->threads || channel_bytes > caches.level3 / 8)) {
        w.slice_sums = malloc(2 * (size_t)w.slices * sizeof(double));
        if (w.slice_sums == NULL) return ABN_NO_MEMORY;
        abn_parallel(op->threads, walk_shared_channels, &w);
        free(w.slice_sums);
        return ABN_OK;
    }
    const ptrdiff_t per_thread = (b->channels + op->threads - 1) / op->threads;
    w.group = (ptrdiff_t)(abn_group_bytes() / channel_bytes);
    if (w.group > ABN_ROWS_MAX) w.group = ABN_ROWS_MAX;
    if (w.group > per_thread) w.group = per_thread;
    if (w.group < 1) w.group = 1;
    if (channel_bytes <= 2 * abn_group_bytes()) w.memo = abn_memo_open(op, op->threads, b->batch * w.group, b->spatial);
    abn_parallel(op->threads, walk_groups, &w);
    abn_memo_close(&w.memo);
    return ABN_OK;
}
