/* Tiles whose columns belong to channels: channels-last batches, and short channels-first rows with the images as rows.
 *
 * The batch is cut, by shape alone, into chunks of about CHUNK rows, and side by side into strips of channels. A chunk's
 * sums are kept in double and added in order, so that the error does not grow with the batch and the result is the
 * same however strips and chunks are dealt to threads. A strip that stays in cache from its sums to its second pass is
 * taken through both at once; otherwise the whole batch is read twice, the second time backwards, because that begins
 * with what the first pass left in cache. */
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "operation.h"
#include "threads.h"

enum {
    CHUNK = 512,      /* rows: sums in double cost 16 bytes per channel and chunk */
    BLOCK = 128,      /* rows summed in float before they are added in double */
    LINE = 64,        /* bytes of a cache line */
    LEAST_LINES = 16, /* a channels-last strip should take this many of each row */
};

typedef struct {
    abn_operation *op;
    ptrdiff_t rows, stacks; /* rows of a stack; more than one stack where images cannot be joined */
    ptrdiff_t chunk, chunks_per_stack, chunks;
    ptrdiff_t strip, strips;  /* channels of a strip */
    ptrdiff_t widest;         /* channels that a tile has room for */
    abn_memo memo;            /* of a strip, for each thread */
    double *chunk_sums;       /* per chunk and strip 2 * strip */
    int *again;               /* per thread: does any of its channels need its sums again? */
    struct workspace *spaces; /* per thread */
} walk;

/* What a thread keeps at hand: on the heap, because some systems give their threads 128 KB of stack. */
typedef struct workspace {
    _Alignas(64) char partial[ABN_PARTIAL_BYTES]; /* cleared between uses: fold sees to it */
    _Alignas(64) double constants[ABN_CONSTANTS][ABN_COLUMNS_STRIDE];
    double first[ABN_COLUMNS_MAX], second[ABN_COLUMNS_MAX], chunk_first[ABN_COLUMNS_MAX], chunk_second[ABN_COLUMNS_MAX];
} workspace;

static abn_span rows_span(const walk *w, ptrdiff_t strip, ptrdiff_t stack, ptrdiff_t row, ptrdiff_t rows) {
    const abn_batch *b = &w->op->source;
    const ptrdiff_t channel = strip * w->strip, left = b->channels - channel;
    const ptrdiff_t channels = left < w->strip ? left : w->strip;
    if (w->op->spread > 1) return (abn_span){channel, channels, row, rows, 0, b->spatial};
    return (abn_span){channel, channels, stack, 1, row, rows};
}

typedef struct {
    ptrdiff_t stack, first, last;
} row_range;

static row_range chunk_rows(const walk *w, ptrdiff_t chunk) {
    const ptrdiff_t stack = chunk / w->chunks_per_stack, first = chunk % w->chunks_per_stack * w->chunk;
    return (row_range){stack, first, first + w->chunk < w->rows ? first + w->chunk : w->rows};
}

/* How many of the rows from `row` on go into one tile; those that do not fill a joined row come last, alone. */
static ptrdiff_t rows_of_tile(const walk *w, ptrdiff_t row, ptrdiff_t last) {
    const ptrdiff_t left = last - row, repeat = w->op->repeat;
    if (left > BLOCK * repeat) return BLOCK * repeat;
    return left > repeat ? left - left % repeat : left;
}

static abn_tile tile_at(const walk *w, const abn_span *span, ptrdiff_t stack, ptrdiff_t row, int thread) {
    abn_tile tile = abn_tile_of(w->op, span);
    tile.memo = abn_memo_row(w->op, &w->memo, thread, (stack * w->rows + row + w->op->repeat - 1) / w->op->repeat, 0);
    return tile;
}

static abn_constants constants_of(const abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, unsigned used,
                                  workspace *space) {
    abn_constants constants = abn_constants_from(op, channel);
    if (op->spread == 1 && op->repeat == 1) return constants;
    for (int which = 0; which < ABN_CONSTANTS; which++) {
        if (!(used & 1u << which)) continue;
        op->set->expand(constants.of[which], (abn_columns){channels, op->spread, op->repeat}, space->constants[which]);
        constants.of[which] = space->constants[which];
    }
    return constants;
}

static void sum_chunk(const walk *w, ptrdiff_t chunk, ptrdiff_t strip, int again, int thread, double *first,
                      double *second, workspace *space) {
    const abn_operation *op = w->op;
    const row_range range = chunk_rows(w, chunk);
    abn_span span = rows_span(w, strip, 0, 0, 0);
    const abn_constants constants = constants_of(op, span.channel, span.channels, op->sums_use, space);
    memset(first, 0, (size_t)span.channels * sizeof *first);
    memset(second, 0, (size_t)span.channels * sizeof *second);
    for (ptrdiff_t row = range.first, rows; row < range.last; row += rows) {
        rows = rows_of_tile(w, row, range.last);
        span = rows_span(w, strip, range.stack, row, rows);
        const abn_tile tile = tile_at(w, &span, range.stack, row, thread);
        op->sums(op, &tile, &span, &constants, space->partial, again);
        op->kernels->fold(space->partial, (abn_columns){span.channels, op->spread, op->repeat}, first, second);
    }
}

static void apply_chunk(const walk *w, ptrdiff_t chunk, ptrdiff_t strip, int thread, workspace *space) {
    abn_operation *op = w->op;
    const row_range range = chunk_rows(w, chunk);
    abn_span span = rows_span(w, strip, 0, 0, 0);
    const abn_constants constants = constants_of(op, span.channel, span.channels, op->apply_use, space);
    for (ptrdiff_t row = range.first, rows; row < range.last; row += rows) {
        rows = rows_of_tile(w, row, range.last);
        span = rows_span(w, strip, range.stack, row, rows);
        const abn_tile tile = tile_at(w, &span, range.stack, row, thread);
        op->apply(op, &tile, &span, &constants, thread);
    }
}

/* Both passes over one strip by one thread. */
static void walk_strip(const walk *w, ptrdiff_t strip, int thread, workspace *space) {
    abn_operation *op = w->op;
    const abn_span span = rows_span(w, strip, 0, 0, 0);
    double *first = space->first, *second = space->second;
    int again = 0;
    if (op->begin) op->begin(op, span.channel, span.channels);
    do {
        if (!op->sums) break;
        memset(first, 0, (size_t)span.channels * sizeof *first);
        memset(second, 0, (size_t)span.channels * sizeof *second);
        for (ptrdiff_t chunk = 0; chunk < w->chunks; chunk++) {
            sum_chunk(w, chunk, strip, again, thread, space->chunk_first, space->chunk_second, space);
            for (ptrdiff_t c = 0; c < span.channels; c++) {
                first[c] += space->chunk_first[c];
                second[c] += space->chunk_second[c];
            }
        }
        again = op->finish(op, span.channel, span.channels, first, second, again);
    } while (again);
    if (op->apply)
        for (ptrdiff_t chunk = w->chunks - 1; chunk >= 0; chunk--) apply_chunk(w, chunk, strip, thread, space);
}

static void walk_strips(void *argument, int thread, int threads) {
    const walk *w = argument;
    workspace *space = w->spaces + thread;
    ptrdiff_t strip, last;
    memset(space->partial, 0, sizeof space->partial);
    abn_share(w->strips, thread, threads, &strip, &last);
    for (; strip < last; strip++) walk_strip(w, strip, thread, space);
}

/* Adds up the chunks' sums of channels [channel, last), at most a strip's width at a time. */
static int finish_channels(const walk *w, ptrdiff_t channel, ptrdiff_t last, int again, workspace *space) {
    double *first = space->first, *second = space->second;
    int more = 0;
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
        more |= w->op->finish(w->op, channel, count, first, second, again);
        channel += count;
    }
    return more;
}

static int any_again(const walk *w, int threads) {
    int any = 0;
    for (int t = 0; t < threads; t++) any |= w->again[t];
    return any;
}

/* All threads together: first every chunk's sums, then every chunk's second pass. */
static void walk_chunks(void *argument, int thread, int threads) {
    const walk *w = argument;
    abn_operation *op = w->op;
    workspace *space = w->spaces + thread;
    ptrdiff_t unit, last_unit, channel, last_channel;
    int again = 0;
    memset(space->partial, 0, sizeof space->partial);
    abn_share(w->chunks * w->strips, thread, threads, &unit, &last_unit);
    abn_share(op->source.channels, thread, threads, &channel, &last_channel);
    if (op->begin) {
        op->begin(op, channel, last_channel - channel);
        if (threads > 1) abn_barrier();
    }
    do {
        if (!op->sums) break;
        for (ptrdiff_t u = unit; u < last_unit; u++) {
            double *sums = w->chunk_sums + u * 2 * w->strip;
            sum_chunk(w, u / w->strips, u % w->strips, again, thread, sums, sums + w->strip, space);
        }
        if (threads > 1) abn_barrier();
        w->again[thread] = finish_channels(w, channel, last_channel, again, space);
        if (threads > 1) abn_barrier();
        again = any_again(w, threads);
        if (again && threads > 1) abn_barrier();
    } while (again);
    if (op->apply)
        for (ptrdiff_t u = last_unit - 1; u >= unit; u--) apply_chunk(w, u / w->strips, u % w->strips, thread, space);
}

static abn_status walk_all_chunks(walk *w) {
    const size_t sums = w->op->sums ? (size_t)(w->chunks * w->strips * 2 * w->strip) : 0;
    w->chunk_sums = malloc(sums * sizeof(double) + (size_t)w->op->threads * sizeof(int));
    if (w->chunk_sums == NULL) return ABN_NO_MEMORY;
    w->again = (int *)(w->chunk_sums + sums);
    abn_parallel(w->op->threads, walk_chunks, w);
    free(w->chunk_sums);
    return ABN_OK;
}

/* How many channels side by side stay in cache over all rows? Whole cache lines of each row, or 0. */
static ptrdiff_t channels_in_cache(const walk *w) {
    const abn_operation *op = w->op;
    const size_t element = abn_dtype_size(op->source.dtype);
    const size_t channel_bytes = (size_t)(op->source.batch * op->source.spatial) * element * (size_t)op->arrays;
    const ptrdiff_t fitting = (ptrdiff_t)(abn_group_bytes() / channel_bytes);
    ptrdiff_t grain = 1;
    while ((size_t)(grain * op->spread) * element % LINE) grain *= 2;
    if (op->spread == 1) grain *= LEAST_LINES;
    if (fitting >= op->source.channels && op->source.channels <= w->widest) return op->source.channels;
    if (op->repeat > 1) return 0; /* a joined row has all channels */
    const ptrdiff_t most = fitting < w->widest ? fitting : w->widest;
    return most >= grain ? most - most % grain : op->spread > 1 ? most : 0;
}

static abn_status walk_with_spaces(walk *w) {
    if (w->strip > 0) {
        w->strips = (w->op->source.channels + w->strip - 1) / w->strip;
        if (w->strips >= w->op->threads) {
            const ptrdiff_t rows = (w->rows * w->stacks + w->op->repeat - 1) / w->op->repeat;
            w->memo = abn_memo_open(w->op, w->op->threads, rows, w->strip * w->op->spread * w->op->repeat);
            abn_parallel(w->op->threads, walk_strips, w);
            abn_memo_close(&w->memo);
            return ABN_OK;
        }
    }
    w->strip = w->op->source.channels < w->widest ? w->op->source.channels : w->widest;
    w->strips = (w->op->source.channels + w->strip - 1) / w->strip;
    return walk_all_chunks(w);
}

abn_status abn_walk_columns(abn_operation *op) {
    enum { ALIGNMENT = _Alignof(workspace) };
    const abn_batch *b = &op->source;
    walk w = {.op = op, .widest = ABN_COLUMNS_MAX / (op->spread * op->repeat)};
    w.rows = op->spread > 1 ? b->batch : b->spatial;
    w.stacks = op->spread > 1 ? 1 : b->batch;
    const ptrdiff_t joined = (w.rows + op->repeat - 1) / op->repeat;
    w.chunks_per_stack = (joined + CHUNK - 1) / CHUNK;
    w.chunk = (joined + w.chunks_per_stack - 1) / w.chunks_per_stack * op->repeat;
    w.chunks_per_stack = (w.rows + w.chunk - 1) / w.chunk;
    w.chunks = w.stacks * w.chunks_per_stack;

    w.strip = channels_in_cache(&w);
    void *memory = malloc((size_t)op->threads * sizeof(workspace) + ALIGNMENT);
    if (memory == NULL) return ABN_NO_MEMORY;
    w.spaces = (workspace *)(((uintptr_t)memory + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
    const abn_status status = walk_with_spaces(&w);
    free(memory);
    return status;
}
