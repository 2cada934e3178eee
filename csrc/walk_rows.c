/* Channels-first: every channel is a row of S elements in each image.
 *
 * Sums go over slices, cut by shape alone: some whole images of short rows, or a piece of a long row. A slice is
 * summed in vector lanes, and the slices' sums are added in order in double, so that the error does not grow with the
 * size of a channel and the result is the same however slices are dealt to threads. */
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "operation.h"
#include "threads.h"
static int E(const char*n,int d){const char*v=getenv(n);return v?atoi(v):d;}
static int eP,eA,eL2,eSPLIT;

enum {
    SLICE = 4096,            /* elements */
    SPLIT_CHANNELS_PER_THREAD = 4, /* with fewer, or larger, channels threads share each channel */
};

typedef struct {
    abn_operation *op;
    ptrdiff_t slices, images_per_slice, pieces_per_image, piece; /* piece: elements of a row in one tile */
    ptrdiff_t tiles;
    ptrdiff_t group; /* channels that go through both passes together */
    /* threads sharing a channel */
    double *slice_sums; /* 2 * slices */
    int again;
} walk;

static abn_span tile_span(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t tile) {
    const ptrdiff_t image = tile / w->pieces_per_image, from = tile % w->pieces_per_image * w->piece;
    const ptrdiff_t left = w->op->source.spatial - from;
    return (abn_span){channel, channels, image, 1, from, left < w->piece ? left : w->piece};
}

static ptrdiff_t tiles_of_slice(const walk *w, ptrdiff_t slice, ptrdiff_t *first) {
    const ptrdiff_t per_slice = w->images_per_slice; /* 1 when rows are cut in pieces */
    const ptrdiff_t last = (slice + 1) * per_slice;
    *first = slice * per_slice;
    return last < w->tiles ? last : w->tiles;
}

/* While a tile is summed, the one that comes next is fetched. */
static void sum_slice(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t slice, double *first,
                      double *second) {
    _Alignas(64) char partial[2 * ABN_ROWS_MAX * ABN_LANE_BYTES];
    ptrdiff_t tile, last = tiles_of_slice(w, slice, &tile);
    const abn_constants constants = abn_constants_from(w->op, channel);
    memset(partial, 0, 2 * (size_t)channels * ABN_LANE_BYTES);
    for (; tile < last; tile++) {
        const abn_span span = tile_span(w, channel, channels, tile);
        ptrdiff_t P=eP<w->tiles?eP:w->tiles-1;
        ptrdiff_t nt=tile+P; ptrdiff_t nc=channel;
        if(nt>=w->tiles){nt-=w->tiles; nc=channel+channels; if(nc>=w->op->source.channels) nc=channel;}
        const abn_span ahead = tile_span(w, nc, channels, nt);
        abn_tile t = abn_tile_of(w->op, &span, &ahead);
        if(eA&&nc!=channel) t.source.ahead=t.gradient.ahead=0;
        w->op->sums(w->op, &t, &span, &constants, partial);
    }
    w->op->kernels->fold(partial, (abn_columns){channels, 1, 1}, first, second);
}

static void apply_tile(const walk *w, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t tile, int thread) {
    const abn_span span = tile_span(w, channel, channels, tile);
    /* apply runs backwards: tile k of this pass prefetches tile (tiles-1-k) of the next group */
    ptrdiff_t k=w->tiles-1-tile; abn_span ahead=span; if(eA&&channel+channels<w->op->source.channels&&k<eA) ahead=tile_span(w,channel+channels,channels,k);
    const abn_tile t = abn_tile_of(w->op, &span, eA?&ahead:NULL);
    const abn_constants constants = abn_constants_from(w->op, channel);
    w->op->apply(w->op, &t, &span, &constants, thread);
}

/* Both passes over one group of channels by one thread; the second backwards, over what is still in cache. */
static void walk_group(const walk *w, ptrdiff_t channel, ptrdiff_t channels, int thread) {
    abn_operation *op = w->op;
    double first[ABN_ROWS_MAX], second[ABN_ROWS_MAX];
    int again = 0;
    if (op->begin) op->begin(op, channel, channels);
    do {
        if (!op->sums) break;
        for (ptrdiff_t c = 0; c < channels; c++) first[c] = second[c] = 0;
        for (ptrdiff_t slice = 0; slice < w->slices; slice++) sum_slice(w, channel, channels, slice, first, second);
        again = op->finish(op, channel, channels, first, second, again);
    } while (again);
    if (op->apply)
        for (ptrdiff_t tile = w->tiles - 1; tile >= 0; tile--) apply_tile(w, channel, channels, tile, thread);
    if (op->end) op->end(op, channel, channels);
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

/* One channel after the other, each shared by all threads. */
static void walk_shared_channels(void *argument, int thread, int threads) {
    walk *w = argument;
    abn_operation *op = w->op;
    ptrdiff_t first_slice, last_slice, first_tile, last_tile;
    abn_share(w->slices, thread, threads, &first_slice, &last_slice);
    tiles_of_slice(w, first_slice, &first_tile);
    tiles_of_slice(w, last_slice, &last_tile);
    if (last_tile > w->tiles) last_tile = w->tiles;
    for (ptrdiff_t channel = 0; channel < op->source.channels; channel++) {
        int again = 0;
        if (thread == 0 && op->begin) op->begin(op, channel, 1);
        if (threads > 1) abn_barrier();
        do {
            if (!op->sums) break;
            for (ptrdiff_t slice = first_slice; slice < last_slice; slice++) {
                double *sums = w->slice_sums + 2 * slice;
                sums[0] = sums[1] = 0;
                sum_slice(w, channel, 1, slice, sums, sums + 1);
            }
            if (threads > 1) abn_barrier();
            if (thread == 0) {
                double first = 0, second = 0;
                for (ptrdiff_t slice = 0; slice < w->slices; slice++) {
                    first += w->slice_sums[2 * slice];
                    second += w->slice_sums[2 * slice + 1];
                }
                w->again = op->finish(op, channel, 1, &first, &second, again);
            }
            if (threads > 1) abn_barrier();
            again = w->again;
        } while (again);
        if (op->apply)
            for (ptrdiff_t tile = last_tile - 1; tile >= first_tile; tile--) apply_tile(w, channel, 1, tile, thread);
        if (op->end) {
            if (threads > 1) abn_barrier();
            if (thread == 0) op->end(op, channel, 1);
        }
    }
}

abn_status abn_walk_rows(abn_operation *op) {
    const abn_batch *b = &op->source;
    const size_t channel_bytes = (size_t)op->per_channel * abn_dtype_size(b->dtype) * (size_t)op->arrays;
    const abn_caches caches = abn_cache_sizes();
    walk w = {.op = op};
    eP=E("P",4);eA=E("A",4);eL2=E("L2",50);eSPLIT=E("SPLIT",4096);
    w.piece = b->spatial < SLICE ? b->spatial : SLICE;
    w.pieces_per_image = (b->spatial + w.piece - 1) / w.piece;
    w.images_per_slice = b->spatial < SLICE ? SLICE / b->spatial : 1;
    w.tiles = b->batch * w.pieces_per_image;
    w.slices = (w.tiles + w.images_per_slice - 1) / w.images_per_slice;

    if (op->threads > 1 && w.slices > 1 &&
        (b->channels < SPLIT_CHANNELS_PER_THREAD * op->threads || channel_bytes > ((size_t)eSPLIT<<10))) {
        w.slice_sums = malloc(2 * (size_t)w.slices * sizeof(double));
        if (w.slice_sums == NULL) return ABN_NO_MEMORY;
        abn_parallel(op->threads, walk_shared_channels, &w);
        free(w.slice_sums);
        return ABN_OK;
    }
    const size_t in_cache = caches.level2 * (size_t)eL2 / 100 / (channel_bytes ? channel_bytes : 1);
    const ptrdiff_t per_thread = (b->channels + op->threads - 1) / op->threads;
    w.group = in_cache < 1 ? 1 : in_cache > ABN_ROWS_MAX ? ABN_ROWS_MAX : (ptrdiff_t)in_cache;
    if (w.group > per_thread) w.group = per_thread;
    abn_parallel(op->threads, walk_groups, &w);
    return ABN_OK;
}
