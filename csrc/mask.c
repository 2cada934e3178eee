/* Masked batches. A walk cuts the batch into tiles as it would without a mask. Here the steps of an operation are wrapped
 * so that each tile is cut into segments of valid positions, and the operation sees tiles of these alone.
 *
 * A long run of valid positions is a segment of its own and is worked on where it lies: padded sequences take the same
 * kernels as unmasked ones. Several short runs in a row, where positions or few channels lie side by side, are gathered
 * into an array in the nearest cache, worked on there, and scattered back, because a kernel call costs more than a few
 * elements. Both depend on shape and mask alone, so results do not depend on the number of threads.
 *
 * In the spans that the operation sees, valid positions are numbered from 0 (abn.h). */
#include "mask.h"

#include <stdlib.h>
#include <string.h>

#include "parts.h"

enum {
    BLOCK = 512,    /* positions; a multiple of 64 */
    LONG_RUN = 128, /* positions of a row from which on a run is worked on in place, between others as well */
    GATHERED = 512, /* elements that are gathered at once, for each array; on the stack, which may be small */
};

/* One call of a step. */
typedef struct {
    const abn_operation *op;
    abn_operation *writable; /* the same, for apply; NULL: sums */
    const abn_tile *tile;
    const abn_span *span;
    const abn_constants *constants;
    void *partial;
    int again, thread;
    ptrdiff_t capacity; /* positions that may be gathered; 0: none */
} step;

/* Valid positions of a tile, as offsets from its first position. */
typedef struct {
    ptrdiff_t first, end, count;
    int runs;
    ptrdiff_t number; /* of the first one, among all valid positions */
} segment;

/* ---- cutting ------------------------------------------------------------------------------------------------ */

static ptrdiff_t valid_before(const abn_operation *op, ptrdiff_t position) {
    const uint64_t *words = op->mask.words;
    ptrdiff_t word = position / BLOCK * (BLOCK / 64), count = op->of_valid.before[position / BLOCK];
    for (; word < position / 64; word++) count += abn_count_bits(words[word]);
    if (position % 64) count += abn_count_bits(words[word] << (64 - position % 64));
    return count;
}

static ptrdiff_t first_position(const step *s) { return s->span->image * s->op->source.spatial + s->span->from; }

/* Appends the next run of the tile to the segment, if it has room for it. */
static int append_run(const step *s, segment *g) {
    const ptrdiff_t start = first_position(s), end = start + s->span->count;
    const ptrdiff_t first = abn_mask_find(&s->op->mask, 1, start + g->end, end);
    if (first == end) return 0;
    const ptrdiff_t last = abn_mask_find(&s->op->mask, 0, first, end), length = last - first;
    const ptrdiff_t long_run = s->op->repeat > 1 ? s->op->repeat : LONG_RUN;
    if (g->runs > 0 && (length >= long_run || g->count + length > s->capacity)) return 0;
    if (g->runs == 0) g->first = first - start;
    g->end = last - start;
    g->count += length;
    g->runs++;
    return length < long_run;
}

/* The next segment of the tile; one without positions comes before the first. 0: there is none. */
static int next_segment(const step *s, segment *g) {
    g->number += g->count;
    g->count = 0;
    g->runs = 0;
    while (append_run(s, g));
    return g->runs > 0;
}

/* ---- working on a segment ---------------------------------------------------------------------------------- */

/* Where the position at an offset lies in a tile. */
static ptrdiff_t row_at(const abn_operation *op, ptrdiff_t offset) {
    return op->layout == ABN_ROWS ? 0 : offset / op->repeat;
}

static ptrdiff_t column_at(const step *s, ptrdiff_t offset) {
    return s->op->layout == ABN_ROWS ? offset : offset % s->op->repeat * s->span->channels;
}

static void call(const step *s, abn_tile tile, abn_span span, const abn_constants *constants, void *partial) {
    abn_tile_shape(s->op, &span, &tile);
    if (s->writable)
        s->op->of_valid.apply(s->writable, &tile, &span, constants, s->thread);
    else
        s->op->of_valid.sums(s->op, &tile, &span, constants, partial, s->again);
}

/* Positions side by side, from the beginning of the tile on. Those that do not fill a joined row come last. */
static void work(const step *s, abn_tile tile, abn_span span, const abn_constants *constants, void *partial) {
    const ptrdiff_t repeat = s->op->repeat, left = span.count > repeat ? span.count % repeat : 0;
    span.count -= left;
    call(s, tile, span, constants, partial);
    if (left == 0) return;
    tile = abn_tile_moved(s->op, &tile, span.count / repeat, 0);
    span.from += span.count;
    span.count = left;
    call(s, tile, span, constants, partial);
}

static abn_span span_of(const step *s, const segment *g) {
    return (abn_span){s->span->channel, s->span->channels, 0, 1, g->number, g->count};
}

static void work_in_place(const step *s, const segment *g) {
    const abn_tile tile = abn_tile_moved(s->op, s->tile, row_at(s->op, g->first), column_at(s, g->first));
    work(s, tile, span_of(s, g), s->constants, s->partial);
}

/* ---- gathering ------------------------------------------------------------------------------------------------ */

/* The elements of a segment in one line, as offsets from its first element: a tile has fewer than 2^16 in a line. */
typedef struct {
    uint16_t at[GATHERED];
    ptrdiff_t count, extent;
} gathered_line;

static void list_elements(const step *s, const segment *g, gathered_line *line) {
    const uint64_t *words = s->op->mask.words;
    const ptrdiff_t first = first_position(s) + g->first, end = first + g->end - g->first;
    const ptrdiff_t width = s->op->layout == ABN_ROWS ? 1 : s->span->channels;
    ptrdiff_t count = 0;
    for (ptrdiff_t word = first / 64; word * 64 < end; word++) {
        uint64_t bits = words[word];
        if (word == first / 64) bits &= ~(uint64_t)0 << first % 64;
        if (end - word * 64 < 64) bits &= ~(~(uint64_t)0 << (end - word * 64));
        for (; bits; bits &= bits - 1) {
            const ptrdiff_t offset = (word * 64 + abn_lowest_bit(bits) - first) * width;
            for (ptrdiff_t c = 0; c < width; c++) line->at[count++] = (uint16_t)(offset + c);
        }
    }
    line->count = count;
    line->extent = (g->end - g->first) * width;
}

#define MOVE_ELEMENTS(type, to_index, from_index) \
    for (ptrdiff_t i = 0; i < line->count; i++) ((type *)to)[to_index] = ((const type *)from)[from_index]

static void gather(const gathered_line *line, size_t size, void *to, const void *from) {
    switch (size) {
        case 2: MOVE_ELEMENTS(uint16_t, i, line->at[i]); return;
        case 4: MOVE_ELEMENTS(uint32_t, i, line->at[i]); return;
        default: MOVE_ELEMENTS(uint64_t, i, line->at[i]); return;
    }
}

static void scatter(const gathered_line *line, size_t size, void *to, const void *from) {
    switch (size) {
        case 2: MOVE_ELEMENTS(uint16_t, line->at[i], i); return;
        case 4: MOVE_ELEMENTS(uint32_t, line->at[i], i); return;
        default: MOVE_ELEMENTS(uint64_t, line->at[i], i); return;
    }
}

/* The arrays of a tile, gathered. */
typedef struct {
    _Alignas(64) double source[GATHERED], gradient[GATHERED], residual[GATHERED], destination[GATHERED],
        residual_gradient[GATHERED];
} gathered;

static void gather_input(const step *s, const gathered_line *line, abn_input *input, double *to) {
    if (!input->data) return;
    gather(line, abn_dtype_size(s->op->source.dtype), to, input->data);
    *input = (abn_input){to, s->op->repeat * s->span->channels};
}

static abn_tile gather_tile(const step *s, const gathered_line *line, abn_tile tile, gathered *to) {
    const abn_tile from = tile;
    const ptrdiff_t stride = s->op->repeat * s->span->channels;
    gather_input(s, line, &tile.source, to->source);
    gather_input(s, line, &tile.gradient, to->gradient);
    gather_input(s, line, &tile.residual, to->residual);
    if (from.destination.data) {
        void *at = from.destination.data == from.source.data     ? to->source
                   : from.destination.data == from.gradient.data ? to->gradient
                                                                 : to->destination;
        tile.destination = (abn_output){at, stride};
    }
    if (from.residual_gradient.data) {
        if (s->op->add_to_residual)
            gather(line, abn_dtype_size(s->op->source.dtype), to->residual_gradient, from.residual_gradient.data);
        tile.residual_gradient = (abn_output){to->residual_gradient, stride};
    }
    return tile;
}

/* Zeros between the elements, unless these were added to what was there. */
static void scatter_output(const step *s, const gathered_line *line, int adds, void *to, const void *from) {
    const size_t size = abn_dtype_size(s->op->source.dtype);
    if (!to) return;
    if (!adds) memset(to, 0, (size_t)line->extent * size);
    scatter(line, size, to, from);
}

static void work_gathered(const step *s, const segment *g) {
    const abn_operation *op = s->op;
    const int rows = op->layout == ABN_ROWS;
    gathered arrays;
    gathered_line line;
    list_elements(s, g, &line);
    for (ptrdiff_t row = 0; row < (rows ? s->tile->rows : 1); row++) {
        const abn_constants constants = abn_constants_moved(op, s->constants, row);
        const abn_tile tile = abn_tile_moved(op, s->tile, rows ? row : row_at(op, g->first), column_at(s, g->first));
        const abn_tile at = gather_tile(s, &line, tile, &arrays);
        abn_span span = span_of(s, g);
        if (rows) {
            span.channel += row;
            span.channels = 1;
        }
        work(s, at, span, &constants, s->partial ? abn_partial_at(op, s->partial, row) : NULL);
        if (!s->writable) continue;
        if (op->rewrites_source) scatter_output(s, &line, 0, (void *)(uintptr_t)tile.source.data, at.source.data);
        scatter_output(s, &line, 0, tile.destination.data, at.destination.data);
        scatter_output(s, &line, op->add_to_residual, tile.residual_gradient.data, at.residual_gradient.data);
    }
}

/* ---- what is not valid ----------------------------------------------------------------------------------------- */

static void zero_output(const step *s, abn_output to, ptrdiff_t first, ptrdiff_t end) {
    const abn_operation *op = s->op;
    const size_t size = abn_dtype_size(op->source.dtype);
    ptrdiff_t lines = end - first, length = s->span->channels;
    if (!to.data || lines == 0) return;
    if (op->layout == ABN_ROWS) {
        length = lines;
        lines = s->span->channels;
    } else if (op->repeat > 1) { /* without gaps between positions */
        length *= lines;
        lines = 1;
    }
    char *at = abn_at(op, to.data, to.stride, row_at(op, first), column_at(s, first));
    for (ptrdiff_t line = 0; line < lines; line++, at += to.stride * (ptrdiff_t)size)
        memset(at, 0, (size_t)length * size);
}

/* Positions [first, end) of the tile. */
static void zero(const step *s, ptrdiff_t first, ptrdiff_t end) {
    const abn_operation *op = s->op;
    const abn_tile *tile = s->tile;
    if (!s->writable) return;
    if (op->rewrites_source)
        zero_output(s, (abn_output){(void *)(uintptr_t)tile->source.data, tile->source.stride}, first, end);
    zero_output(s, tile->destination, first, end);
    if (!op->add_to_residual) zero_output(s, tile->residual_gradient, first, end);
}

/* ---- the steps -------------------------------------------------------------------------------------------------- */

static void for_each_segment(step s) {
    const abn_operation *op = s.op;
    segment g = {.number = valid_before(op, first_position(&s))};
    if (op->layout == ABN_ROWS)
        s.capacity = GATHERED;
    else if (op->repeat > 1)
        s.capacity = GATHERED / (op->repeat * s.span->channels) * op->repeat;
    for (ptrdiff_t done = 0;; done = g.end) {
        const int found = next_segment(&s, &g);
        zero(&s, done, found ? g.first : s.span->count);
        if (!found) break;
        if (g.runs > 1)
            work_gathered(&s, &g);
        else
            work_in_place(&s, &g);
    }
}

static void masked_sums(const abn_operation *op, const abn_tile *tile, const abn_span *span,
                        const abn_constants *constants, void *partial, int again) {
    for_each_segment(
        (step){.op = op, .tile = tile, .span = span, .constants = constants, .partial = partial, .again = again});
}

static void masked_apply(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                         int thread) {
    for_each_segment(
        (step){.op = op, .writable = op, .tile = tile, .span = span, .constants = constants, .thread = thread});
}

abn_status abn_mask_open(abn_operation *op) {
    const ptrdiff_t positions = op->source.batch * op->source.spatial, words = (positions + 63) / 64;
    if (!op->mask.words) return ABN_OK;
    op->of_valid.before = malloc((size_t)(positions / BLOCK + 1) * sizeof *op->of_valid.before);
    if (!op->of_valid.before) return ABN_NO_MEMORY;
    for (ptrdiff_t word = 0, count = 0; word <= words; word++) {
        if (word % (BLOCK / 64) == 0 && word / (BLOCK / 64) <= positions / BLOCK)
            op->of_valid.before[word / (BLOCK / 64)] = count;
        if (word < words) count += abn_count_bits(op->mask.words[word]);
    }
    op->of_valid.sums = op->sums;
    op->of_valid.apply = op->apply;
    if (op->sums) op->sums = masked_sums;
    if (op->apply) op->apply = masked_apply;
    if (op->repeat > 1) op->wants_memo = 0; /* the rows of gathered positions are not those of the memo */
    if (op->per_channel == 0) {             /* nothing but zeros to write */
        op->begin = NULL;
        op->sums = NULL;
    }
    return ABN_OK;
}

void abn_mask_close(abn_operation *op) { free(op->of_valid.before); }
