/* Columns are channels: channels-last batches, and channels-first batches with short rows (a row is then an image).
 *
 * A chunk is about CHUNK rows of a strip. Its sums are in double and are added in order, so the error does not grow
 * with the batch and the result does not depend on the number of threads. If strips stay in cache from sums to apply,
 * each thread runs both on whole strips. Otherwise the whole batch is read twice, the second time in reverse order,
 * starting with what is still in cache. */
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "element.h"
#include "scratch.h"
#include "threads.h"
#include "tile.h"
#include "walk_layouts.h"

enum {
    CHUNK = 512,      /* rows: sums in double cost 16 bytes per channel and chunk */
    TILE_ROWS = 128,  /* rows summed in real before they are added in double */
    LINE = 64,        /* bytes of a cache line */
    LEAST_LINES = 16, /* a channels-last strip has at least this many cache lines per row */
};

typedef struct {
    abn_operation *op;
    ptrdiff_t rows, images; /* rows: positions of each image; or all images, with images = 1, if a row is an image */
    ptrdiff_t chunk, chunks_per_image, chunks; /* chunk: rows of a chunk; chunks: how many */
    ptrdiff_t strip, strips;                   /* strip: channels of a strip; strips: how many */
    ptrdiff_t widest;                          /* most channels that a tile has room for */
    abn_scratch scratch;                       /* of a strip, per thread */
    double *chunk_sums;                        /* per chunk and strip: `strip` first sums, then as many second ones */
    int *resum;                   /* per thread: nonzero if finish returned nonzero for any of its channels */
    struct thread_arrays *arrays; /* per thread */
} walk;

/* Arrays of one thread. On the heap: some systems give threads a stack of 128 KB. */
typedef struct thread_arrays {
    _Alignas(64) char partial[ABN_PARTIAL_BYTES]; /* fold clears it after each use */
    _Alignas(64) double constants[ABN_CONSTANTS][ABN_COLUMNS_STRIDE];
    double first[ABN_COLUMNS_MAX], second[ABN_COLUMNS_MAX], chunk_first[ABN_COLUMNS_MAX], chunk_second[ABN_COLUMNS_MAX];
} thread_arrays;

static abn_span rows_span(const walk *w, ptrdiff_t strip, ptrdiff_t image, ptrdiff_t row, ptrdiff_t rows) {
    const abn_batch *b = &w->op->source;
    const ptrdiff_t channel = strip * w->strip, left = b->channels - channel;
    const ptrdiff_t channels = left < w->strip ? left : w->strip;
    if (w->op->positions_per_channel > 1) return (abn_span){channel, channels, row, rows, 0, b->spatial};
    return (abn_span){channel, channels, image, 1, row, rows};
}

typedef struct {
    ptrdiff_t image, first, last;
} row_range;

static row_range chunk_rows(const walk *w, ptrdiff_t chunk) {
    const ptrdiff_t image = chunk / w->chunks_per_image, first = chunk % w->chunks_per_image * w->chunk;
    return (row_range){image, first, first + w->chunk < w->rows ? first + w->chunk : w->rows};
}

/* The number of rows of the tile that begins at `row`. Positions that do not fill a joined row form the last tile. */
static ptrdiff_t rows_of_tile(const walk *w, ptrdiff_t row, ptrdiff_t last) {
    const ptrdiff_t left = last - row, joined = w->op->positions_per_row;
    if (left > TILE_ROWS * joined) return TILE_ROWS * joined;
    return left > joined ? left - left % joined : left;
}

static abn_tile tile_at(const walk *w, const abn_span *span, ptrdiff_t image, ptrdiff_t row, int thread) {
    abn_tile tile = abn_tile_of(w->op, span);
    tile.scratch =
        abn_scratch_row(w->op, &w->scratch, thread,
                        (image * w->rows + row + w->op->positions_per_row - 1) / w->op->positions_per_row, 0);
    return tile;
}

static abn_constants constants_of(const abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, unsigned used,
                                  thread_arrays *arrays) {
    abn_constants constants = abn_constants_from(op, channel);
    if (op->positions_per_channel == 1 && op->positions_per_row == 1) return constants;
    for (int which = 0; which < ABN_CONSTANTS; which++) {
        if (!(used & 1u << which)) continue;
        op->set->expand(constants.of[which], (abn_columns){channels, op->positions_per_channel, op->positions_per_row},
                        arrays->constants[which]);
        constants.of[which] = arrays->constants[which];
    }
    return constants;
}

static void sum_chunk(const walk *w, ptrdiff_t chunk, ptrdiff_t strip, int resumming, int thread, double *first,
                      double *second, thread_arrays *arrays) {
    const abn_operation *op = w->op;
    const row_range range = chunk_rows(w, chunk);
    abn_span span = rows_span(w, strip, 0, 0, 0);
    const abn_constants constants = constants_of(op, span.channel, span.channels, op->sums_constants, arrays);
    memset(first, 0, (size_t)span.channels * sizeof *first);
    memset(second, 0, (size_t)span.channels * sizeof *second);
    for (ptrdiff_t row = range.first, rows; row < range.last; row += rows) {
        rows = rows_of_tile(w, row, range.last);
        span = rows_span(w, strip, range.image, row, rows);
        const abn_tile tile = tile_at(w, &span, range.image, row, thread);
        op->sums(op, &tile, &span, &constants, arrays->partial, resumming);
        op->kernels->fold(arrays->partial,
                          (abn_columns){span.channels, op->positions_per_channel, op->positions_per_row}, first,
                          second);
    }
}

static void apply_chunk(const walk *w, ptrdiff_t chunk, ptrdiff_t strip, int thread, thread_arrays *arrays) {
    abn_operation *op = w->op;
    const row_range range = chunk_rows(w, chunk);
    abn_span span = rows_span(w, strip, 0, 0, 0);
    const abn_constants constants = constants_of(op, span.channel, span.channels, op->apply_constants, arrays);
    for (ptrdiff_t row = range.first, rows; row < range.last; row += rows) {
        rows = rows_of_tile(w, row, range.last);
        span = rows_span(w, strip, range.image, row, rows);
        const abn_tile tile = tile_at(w, &span, range.image, row, thread);
        op->apply(op, &tile, &span, &constants, thread);
    }
}

/* Sums and apply of one strip, by one thread. */
static void walk_strip(const walk *w, ptrdiff_t strip, int thread, thread_arrays *arrays) {
    abn_operation *op = w->op;
    const abn_span span = rows_span(w, strip, 0, 0, 0);
    double *first = arrays->first, *second = arrays->second;
    int resumming = 0;
    if (op->begin) op->begin(op, span.channel, span.channels);
    do {
        if (!op->sums) break;
        memset(first, 0, (size_t)span.channels * sizeof *first);
        memset(second, 0, (size_t)span.channels * sizeof *second);
        for (ptrdiff_t chunk = 0; chunk < w->chunks; chunk++) {
            sum_chunk(w, chunk, strip, resumming, thread, arrays->chunk_first, arrays->chunk_second, arrays);
            for (ptrdiff_t c = 0; c < span.channels; c++) {
                first[c] += arrays->chunk_first[c];
                second[c] += arrays->chunk_second[c];
            }
        }
        resumming = op->finish(op, span.channel, span.channels, first, second, resumming);
    } while (resumming);
    if (op->apply)
        for (ptrdiff_t chunk = w->chunks - 1; chunk >= 0; chunk--) apply_chunk(w, chunk, strip, thread, arrays);
}

static void walk_strips(void *argument, int thread, int threads) {
    const walk *w = argument;
    thread_arrays *arrays = w->arrays + thread;
    ptrdiff_t strip, last;
    memset(arrays->partial, 0, sizeof arrays->partial);
    abn_share(w->strips, thread, threads, &strip, &last);
    for (; strip < last; strip++) walk_strip(w, strip, thread, arrays);
}

/* Adds the chunks' sums of channels [channel, last) and calls finish, strip by strip. */
static int finish_channels(const walk *w, ptrdiff_t channel, ptrdiff_t last, int resumming, thread_arrays *arrays) {
    double *first = arrays->first, *second = arrays->second;
    int resum = 0;
    while (channel < last) {
        const ptrdiff_t strip = channel / w->strip, offset = channel % w->strip;
        ptrdiff_t count = w->strip - offset;
        if (count > last - channel) count = last - channel;
        for (ptrdiff_t c = 0; c < count; c++) first[c] = second[c] = 0;
        for (ptrdiff_t chunk = 0; chunk < w->chunks; chunk++) {
            const double *sums = w->chunk_sums + (chunk * w->strips + strip) * 2 * w->strip + offset;
            for (ptrdiff_t c = 0; c < count; c++) {
                first[c] += sums[c];
                second[c] += sums[w->strip + c];
            }
        }
        resum |= w->op->finish(w->op, channel, count, first, second, resumming);
        channel += count;
    }
    return resum;
}

static int any_resum(const walk *w, int threads) {
    int any = 0;
    for (int t = 0; t < threads; t++) any |= w->resum[t];
    return any;
}

/* All threads together: first the sums of all chunks, then apply on all chunks. */
static void walk_chunks(void *argument, int thread, int threads) {
    const walk *w = argument;
    abn_operation *op = w->op;
    thread_arrays *arrays = w->arrays + thread;
    ptrdiff_t first_unit, last_unit, channel, last_channel;
    int resumming = 0;
    memset(arrays->partial, 0, sizeof arrays->partial);
    abn_share(w->chunks * w->strips, thread, threads, &first_unit, &last_unit);
    abn_share(op->source.channels, thread, threads, &channel, &last_channel);
    if (op->begin) {
        op->begin(op, channel, last_channel - channel);
        if (threads > 1) abn_barrier();
    }
    do {
        if (!op->sums) break;
        for (ptrdiff_t u = first_unit; u < last_unit; u++) {
            double *sums = w->chunk_sums + u * 2 * w->strip;
            sum_chunk(w, u / w->strips, u % w->strips, resumming, thread, sums, sums + w->strip, arrays);
        }
        if (threads > 1) abn_barrier();
        w->resum[thread] = finish_channels(w, channel, last_channel, resumming, arrays);
        if (threads > 1) abn_barrier();
        resumming = any_resum(w, threads);
        if (resumming && threads > 1) abn_barrier();
    } while (resumming);
    if (op->apply)
        for (ptrdiff_t u = last_unit - 1; u >= first_unit; u--)
            apply_chunk(w, u / w->strips, u % w->strips, thread, arrays);
}

static abn_status walk_all_chunks(walk *w) {
    const size_t sums = w->op->sums ? (size_t)(w->chunks * w->strips * 2 * w->strip) : 0;
    w->chunk_sums = malloc(sums * sizeof(double) + (size_t)w->op->threads * sizeof(int));
    if (w->chunk_sums == NULL) return ABN_NO_MEMORY;
    w->resum = (int *)(w->chunk_sums + sums);
    abn_parallel(w->op->threads, walk_chunks, w);
    free(w->chunk_sums);
    return ABN_OK;
}

/* How many channels stay in cache from sums to apply, in whole cache lines per row; 0 if the cache is too small. */
static ptrdiff_t channels_in_cache(const walk *w) {
    const abn_operation *op = w->op;
    const size_t element = abn_dtype_size(op->source.dtype);
    const size_t channel_bytes = (size_t)(op->source.batch * op->source.spatial) * element * (size_t)op->arrays;
    const ptrdiff_t fitting = (ptrdiff_t)(abn_strip_bytes() / channel_bytes);
    ptrdiff_t grain = 1; /* channels: each row of a strip begins at a cache line if this divides their number */
    while ((size_t)(grain * op->positions_per_channel) * element % LINE) grain *= 2;
    if (op->positions_per_channel == 1) grain *= LEAST_LINES;
    if (fitting >= op->source.channels && op->source.channels <= w->widest) return op->source.channels;
    if (op->positions_per_row > 1) return 0; /* a joined row has all channels */
    const ptrdiff_t most = fitting < w->widest ? fitting : w->widest;
    return most >= grain ? most - most % grain : op->positions_per_channel > 1 ? most : 0;
}

static abn_status walk_with_arrays(walk *w) {
    if (w->strip > 0) {
        w->strips = (w->op->source.channels + w->strip - 1) / w->strip;
        if (w->strips >= w->op->threads) {
            const ptrdiff_t rows = (w->rows * w->images + w->op->positions_per_row - 1) / w->op->positions_per_row;
            w->scratch = abn_scratch_open(w->op, w->op->threads, rows,
                                          w->strip * w->op->positions_per_channel * w->op->positions_per_row);
            abn_parallel(w->op->threads, walk_strips, w);
            abn_scratch_close(&w->scratch);
            return ABN_OK;
        }
    }
    w->strip = w->op->source.channels < w->widest ? w->op->source.channels : w->widest;
    w->strips = (w->op->source.channels + w->strip - 1) / w->strip;
    return walk_all_chunks(w);
}

abn_status abn_walk_columns(abn_operation *op) {
    enum { ALIGNMENT = _Alignof(thread_arrays) };
    const abn_batch *b = &op->source;
    walk w = {.op = op, .widest = ABN_COLUMNS_MAX / (op->positions_per_channel * op->positions_per_row)};
    w.rows = op->positions_per_channel > 1 ? b->batch : b->spatial;
    w.images = op->positions_per_channel > 1 ? 1 : b->batch;
    const ptrdiff_t joined = (w.rows + op->positions_per_row - 1) / op->positions_per_row;
    w.chunks_per_image = (joined + CHUNK - 1) / CHUNK;
    w.chunk = (joined + w.chunks_per_image - 1) / w.chunks_per_image * op->positions_per_row;
    w.chunks_per_image = (w.rows + w.chunk - 1) / w.chunk;
    w.chunks = w.images * w.chunks_per_image;

    w.strip = channels_in_cache(&w);
    void *memory = malloc((size_t)op->threads * sizeof(thread_arrays) + ALIGNMENT);
    if (memory == NULL) return ABN_NO_MEMORY;
    w.arrays = (thread_arrays *)(((uintptr_t)memory + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
    const abn_status status = walk_with_arrays(&w);
    free(memory);
    return status;
}
