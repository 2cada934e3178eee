/* Columns are channels: channels-last batches, and channels-first batches with short rows (a row is then an image).
 *
 * A chunk is a range of rows. Its sums are in double and are added in order, so the error does not grow with the batch
 * and the result does not depend on the number of threads.
 *
 * Channels-last: rows are read in the order of memory, each over all its channels, once for the sums and once to apply
 * them. Strips that stay in cache from sums to apply would save the second read from memory, but they are short pieces
 * of rows that lie far apart, which halves the memory bandwidth. The second pass takes pieces of PIECE_BYTES in reverse
 * order, so that it starts with what is still in cache.
 *
 * Channels-first: pieces of rows are longer, and if strips stay in cache, each thread runs both passes on whole
 * strips. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "element.h"
#include "scratch.h"
#include "threads.h"
#include "tile.h"
#include "walk_layouts.h"

enum {
    MOST_CHUNKS = 128,
    CHUNK_ROWS = 96,          /* a chunk has at least this many rows: its sums cost 16 bytes per channel */
    SUM_ROWS = 64,            /* rows summed in real before they are added in double */
    PIECE_BYTES = 128 << 10,  /* bytes of a tile in apply, of each array */
    REPEATED_MAX = 1024,      /* columns of a tile if constants are repeated for each column: they stay in L1 */
    LINE = 64,                /* bytes of a cache line */
    LEAST_BYTES = 256,        /* least bytes in a row of a strip, if several threads share a chunk */
    PREFETCH_BYTES = 8 << 10, /* how far ahead to prefetch ... */
    PREFETCHED_ROW = 1 << 10, /* ... rows of at least this many bytes */
};

typedef struct {
    abn_operation *op;
    ptrdiff_t rows;           /* positions of all images; or images, if a row is an image */
    ptrdiff_t rows_per_image; /* a tile does not cross images. Equally spaced images count as one */
    ptrdiff_t chunks;
    ptrdiff_t strip, strips;      /* strip: channels of a strip; strips: how many */
    ptrdiff_t piece;              /* rows of a tile in apply */
    ptrdiff_t ahead;              /* of the inputs of tiles (abn_input) */
    int whole_strips;             /* each thread runs both passes on whole strips */
    abn_scratch scratch;          /* with whole_strips: one strip per thread; otherwise the whole batch */
    double *chunk_sums;           /* per chunk: the first sums of all channels, then the second ones */
    int *resum;                   /* per thread: nonzero if finish returned nonzero for any of its channels */
    struct thread_arrays *arrays; /* per thread */
} walk;

/* Arrays of one thread. On the heap: some systems give threads a stack of 128 KB. */
typedef struct thread_arrays {
    _Alignas(64) char partial[ABN_PARTIAL_BYTES]; /* fold clears it after each use */
    _Alignas(64) double constants[ABN_CONSTANTS][REPEATED_MAX + ABN_PADDING];
} thread_arrays;

/* ---- the parts of a batch ----------------------------------------------------------------------------------- */

static ptrdiff_t channels_of(const walk *w, ptrdiff_t strip) {
    const ptrdiff_t left = w->op->source.channels - strip * w->strip;
    return left < w->strip ? left : w->strip;
}

static abn_columns columns_of(const walk *w, ptrdiff_t strip) {
    return (abn_columns){channels_of(w, strip), w->op->positions_per_channel, w->op->positions_per_row};
}

static abn_span rows_span(const walk *w, ptrdiff_t strip, ptrdiff_t row, ptrdiff_t rows) {
    const ptrdiff_t channel = strip * w->strip, channels = channels_of(w, strip);
    if (w->op->positions_per_channel > 1) return (abn_span){channel, channels, row, rows, 0, w->op->source.spatial};
    return (abn_span){channel, channels, row / w->rows_per_image, 1, row % w->rows_per_image, rows};
}

typedef struct {
    ptrdiff_t first, last;
} row_range;

/* A chunk begins at a joined row. The lengths of two chunks differ by at most one joined row. */
static row_range rows_of_chunk(const walk *w, ptrdiff_t chunk) {
    const ptrdiff_t joined = w->op->positions_per_row, all = (w->rows + joined - 1) / joined;
    const ptrdiff_t first = all * chunk / w->chunks * joined, last = all * (chunk + 1) / w->chunks * joined;
    return (row_range){first, last < w->rows ? last : w->rows};
}

/* The number of rows of the tile at the beginning of the range, at most `most` joined rows. Positions that do not fill
 * a joined row are a tile of their own. */
static ptrdiff_t rows_of_first_tile(const walk *w, row_range range, ptrdiff_t most) {
    const ptrdiff_t joined = w->op->positions_per_row, of_image = w->rows_per_image - range.first % w->rows_per_image;
    const ptrdiff_t left = range.last - range.first, rows = left < of_image ? left : of_image;
    if (rows > most * joined) return most * joined;
    return rows > joined ? rows - rows % joined : rows;
}

/* The number of rows of the tile at the end of the range, at most `most` joined rows. */
static ptrdiff_t rows_of_last_tile(const walk *w, row_range range, ptrdiff_t most) {
    const ptrdiff_t joined = w->op->positions_per_row, of_image = (range.last - 1) % w->rows_per_image + 1;
    const ptrdiff_t left = range.last - range.first, rows = left < of_image ? left : of_image;
    if (rows % joined) return rows % joined;
    return rows < most * joined ? rows : most * joined;
}

static abn_tile tile_at(const walk *w, const abn_span *span, ptrdiff_t row, int thread) {
    const abn_operation *op = w->op;
    abn_tile tile = abn_tile_of(op, span);
    tile.source.ahead = tile.gradient.ahead = w->ahead;
    tile.scratch = abn_scratch_row(op, &w->scratch, w->whole_strips ? thread : 0, row / op->positions_per_row, 0);
    return tile;
}

static abn_constants constants_of(const walk *w, ptrdiff_t strip, unsigned used, thread_arrays *arrays) {
    const abn_operation *op = w->op;
    abn_constants constants = abn_constants_from(op, strip * w->strip);
    if (op->positions_per_channel == 1 && op->positions_per_row == 1) return constants;
    for (int which = 0; which < ABN_CONSTANTS; which++) {
        if (!(used & 1u << which)) continue;
        op->set->expand(constants.of[which], columns_of(w, strip), arrays->constants[which]);
        constants.of[which] = arrays->constants[which];
    }
    return constants;
}

/* Clears the partial sums of a tile's columns, and those that a whole vector at their end reads as well. */
static void clear_partial(const walk *w, thread_arrays *arrays) {
    const abn_columns columns = columns_of(w, 0);
    const ptrdiff_t width = columns.channels * columns.positions_per_channel * columns.positions_per_row;
    const size_t real = abn_real_size(w->op->source.dtype), bytes = (size_t)(width + ABN_PADDING) * real;
    memset(arrays->partial, 0, bytes);
    memset(arrays->partial + ABN_COLUMNS_STRIDE * real, 0, bytes);
}

/* ---- the two passes ------------------------------------------------------------------------------------------- */

static void sum_chunk(const walk *w, ptrdiff_t chunk, ptrdiff_t strip, int resumming, int thread) {
    const abn_operation *op = w->op;
    thread_arrays *arrays = w->arrays + thread;
    const abn_columns columns = columns_of(w, strip);
    const abn_constants constants = constants_of(w, strip, op->sums_constants, arrays);
    double *first = w->chunk_sums + chunk * 2 * op->source.channels + strip * w->strip;
    double *second = first + op->source.channels;
    memset(first, 0, (size_t)columns.channels * sizeof *first);
    memset(second, 0, (size_t)columns.channels * sizeof *second);
    for (row_range left = rows_of_chunk(w, chunk); left.first < left.last;) {
        const ptrdiff_t rows = rows_of_first_tile(w, left, SUM_ROWS);
        const abn_span span = rows_span(w, strip, left.first, rows);
        const abn_tile tile = tile_at(w, &span, left.first, thread);
        op->sums(op, &tile, &span, &constants, arrays->partial, resumming);
        op->kernels->fold(arrays->partial, columns, first, second);
        left.first += rows;
    }
}

static void apply_chunk(const walk *w, ptrdiff_t chunk, ptrdiff_t strip, int thread) {
    abn_operation *op = w->op;
    const abn_constants constants = constants_of(w, strip, op->apply_constants, w->arrays + thread);
    for (row_range left = rows_of_chunk(w, chunk); left.first < left.last;) {
        const ptrdiff_t rows = rows_of_last_tile(w, left, w->piece);
        left.last -= rows;
        const abn_span span = rows_span(w, strip, left.last, rows);
        const abn_tile tile = tile_at(w, &span, left.last, thread);
        op->apply(op, &tile, &span, &constants, thread);
    }
}

/* Adds the sums of all chunks to those of the first one, for channels [channel, last), and calls finish. */
static int finish_channels(const walk *w, ptrdiff_t channel, ptrdiff_t last, int resumming) {
    const ptrdiff_t all = w->op->source.channels;
    double *first = w->chunk_sums, *second = first + all;
    for (ptrdiff_t chunk = 1; chunk < w->chunks; chunk++) {
        const double *sums = w->chunk_sums + chunk * 2 * all;
        for (ptrdiff_t c = channel; c < last; c++) first[c] += sums[c];
        for (ptrdiff_t c = channel; c < last; c++) second[c] += sums[all + c];
    }
    return w->op->finish(w->op, channel, last - channel, first + channel, second + channel, resumming);
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

/* Both passes over one strip, by one thread. */
static void walk_strip(const walk *w, ptrdiff_t strip, int thread) {
    abn_operation *op = w->op;
    const ptrdiff_t channel = strip * w->strip, channels = channels_of(w, strip);
    int resumming = 0;
    if (op->begin) op->begin(op, channel, channels);
    do {
        if (!op->sums) break;
        for (ptrdiff_t chunk = 0; chunk < w->chunks; chunk++) sum_chunk(w, chunk, strip, resumming, thread);
        resumming = finish_channels(w, channel, channel + channels, resumming);
    } while (resumming);
    if (op->apply)
        for (ptrdiff_t chunk = w->chunks - 1; chunk >= 0; chunk--) apply_chunk(w, chunk, strip, thread);
}

static void walk_strips(void *argument, int thread, int threads) {
    const walk *w = argument;
    ptrdiff_t strip, last;
    clear_partial(w, w->arrays + thread);
    abn_share(w->strips, thread, threads, &strip, &last);
    for (; strip < last; strip++) walk_strip(w, strip, thread);
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
    ptrdiff_t first_unit, last_unit, channel, last_channel;
    int resumming = 0;
    clear_partial(w, w->arrays + thread);
    abn_share(w->chunks * w->strips, thread, threads, &first_unit, &last_unit);
    abn_share(op->source.channels, thread, threads, &channel, &last_channel);
    if (op->begin) {
        op->begin(op, channel, last_channel - channel);
        if (threads > 1) abn_barrier();
    }
    do {
        if (!op->sums) break;
        for (ptrdiff_t u = first_unit; u < last_unit; u++)
            sum_chunk(w, u / w->strips, u % w->strips, resumming, thread);
        if (threads > 1) abn_barrier();
        w->resum[thread] = finish_channels(w, channel, last_channel, resumming);
        if (threads > 1) abn_barrier();
        resumming = any_resum(w, threads);
        if (resumming && threads > 1) abn_barrier();
    } while (resumming);
    if (op->apply)
        for (ptrdiff_t u = last_unit - 1; u >= first_unit; u--) apply_chunk(w, u / w->strips, u % w->strips, thread);
}

/* ---- dividing a batch ------------------------------------------------------------------------------------------- */

/* Uses the shape alone, not the number of threads: the chunks determine how sums are rounded. */
static void divide_rows(walk *w) {
    const abn_operation *op = w->op;
    const abn_batch *b = &op->source;
    w->rows = op->positions_per_channel > 1 ? b->batch : b->batch * b->spatial;
    w->rows_per_image = op->positions_per_channel > 1 ? b->batch : b->spatial;
    w->chunks = MOST_CHUNKS;
    while (w->chunks > 1 && w->rows < w->chunks * CHUNK_ROWS * op->positions_per_row) w->chunks /= 2;
}

/* Rounds `channels` down so that the rows of every strip begin at a cache line, if a strip has enough channels. */
static ptrdiff_t whole_lines(const walk *w, ptrdiff_t channels) {
    const size_t bytes = (size_t)w->op->positions_per_channel * abn_dtype_size(w->op->source.dtype);
    ptrdiff_t grain = 1;
    while ((size_t)grain * bytes % LINE) grain *= 2;
    return channels > grain ? channels - channels % grain : channels;
}

/* Channels-first: strips that stay in cache from sums to apply, if there are enough of them for all threads; else 0. */
static ptrdiff_t channels_in_cache(const walk *w, ptrdiff_t most) {
    const abn_operation *op = w->op;
    const size_t channel_bytes = (size_t)(w->rows * op->positions_per_channel) * abn_dtype_size(op->source.dtype);
    const ptrdiff_t fitting = (ptrdiff_t)(abn_strip_bytes() / (channel_bytes * (size_t)op->arrays));
    ptrdiff_t channels = fitting < most ? fitting : most;
    if (channels < op->source.channels) channels = whole_lines(w, channels);
    return op->positions_per_channel > 1 && channels * (op->threads - 1) < op->source.channels ? channels : 0;
}

/* Strips if all threads share the chunks: all channels in one, unless their row does not fit into a tile, or there are
 * fewer chunks than threads. */
static ptrdiff_t channels_of_chunks(const walk *w, ptrdiff_t most) {
    const abn_operation *op = w->op;
    const ptrdiff_t least = LEAST_BYTES / (ptrdiff_t)abn_dtype_size(op->source.dtype);
    const ptrdiff_t threads_per_chunk = (op->threads + w->chunks - 1) / w->chunks;
    const ptrdiff_t channels = (op->source.channels + threads_per_chunk - 1) / threads_per_chunk;
    const ptrdiff_t rounded = (channels + least - 1) / least * least;
    if (op->positions_per_row > 1) return op->source.channels; /* a joined row has all channels */
    return rounded < most ? rounded : most;
}

static void divide_channels(walk *w) {
    const abn_operation *op = w->op;
    const ptrdiff_t columns = op->positions_per_channel * op->positions_per_row, channels = op->source.channels;
    const ptrdiff_t room = (columns > 1 ? REPEATED_MAX : ABN_COLUMNS_MAX) / columns;
    const ptrdiff_t most = channels < room ? channels : room, cached = channels_in_cache(w, most);
    w->whole_strips = cached > 0;
    w->strip = w->whole_strips ? cached : channels_of_chunks(w, most);
    w->strips = (channels + w->strip - 1) / w->strip;
    const ptrdiff_t row_bytes = w->strip * columns * (ptrdiff_t)abn_dtype_size(op->source.dtype);
    w->piece = row_bytes < PIECE_BYTES ? PIECE_BYTES / row_bytes : 1;
    if (!w->whole_strips && row_bytes >= PREFETCHED_ROW) w->ahead = PREFETCH_BYTES;
}

static void open_scratch(walk *w) {
    abn_operation *op = w->op;
    const ptrdiff_t columns = w->strip * op->positions_per_channel * op->positions_per_row;
    const ptrdiff_t rows = (w->rows + op->positions_per_row - 1) / op->positions_per_row;
    const size_t bytes = (size_t)(rows * columns) * abn_dtype_size(op->source.dtype) * (size_t)op->arrays;
    if (w->whole_strips)
        w->scratch = abn_scratch_open(op, op->threads, rows, columns);
    else if (w->strips == 1 && bytes <= abn_strip_bytes() * (size_t)op->threads)
        w->scratch = abn_scratch_open(op, 1, rows, columns);
}

abn_status abn_walk_columns(abn_operation *op) {
    enum { ALIGNMENT = _Alignof(thread_arrays) };
    walk w = {.op = op};
    divide_rows(&w);
    divide_channels(&w);
    const size_t sums = op->sums ? (size_t)(w.chunks * 2 * op->source.channels) * sizeof(double) : 0;
    const size_t per_thread = sizeof(thread_arrays) + sizeof(int);
    char *memory = malloc((size_t)op->threads * per_thread + sums + ALIGNMENT);
    if (memory == NULL) return ABN_NO_MEMORY;
    w.arrays = (thread_arrays *)(((uintptr_t)memory + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
    w.chunk_sums = (double *)(w.arrays + op->threads);
    w.resum = (int *)((char *)w.chunk_sums + sums);
    open_scratch(&w);
    const ptrdiff_t units = w.whole_strips ? w.strips : w.chunks * w.strips;
    abn_parallel(units < op->threads ? (int)units : op->threads, w.whole_strips ? walk_strips : walk_chunks, &w);
    abn_scratch_close(&w.scratch);
    free(memory);
    return ABN_OK;
}
