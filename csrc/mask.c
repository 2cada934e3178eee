/* Masked batches. A walk divides the batch into tiles as it does without a mask. The steps installed here divide each
 * tile into ranges of valid positions and call the operation's own steps on tiles of valid positions only.
 *
 * A range is one long run of valid positions, computed in place, so that padded sequences take the same kernels as
 * unmasked ones; or several short runs, gathered into arrays in first-level cache, computed there, and scattered back,
 * because a kernel call costs more than a few elements. The division depends on shape and mask alone, so results do not
 * depend on the number of threads.
 *
 * In the spans passed on, valid positions are numbered from 0 (abn.h). */
#include "mask.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "element.h"
#include "tile.h"
#include "valid.h"

enum {
    COUNT_STEP = 512, /* positions between two stored counts of valid positions; a multiple of 64 */
    LONG_RUN = 128,   /* ABN_ROWS: a run of at least this many positions is a range of its own */
    GATHERED = 512,   /* elements of each array gathered at once; on the stack, which may be small */
};

/* The arguments of one call of a step. */
typedef struct {
    const abn_operation *op;
    abn_operation *writable; /* op in the step apply; NULL in the step sums */
    const abn_tile *tile;
    const abn_span *span;
    const abn_constants *constants;
    void *partial;
    int resumming, thread;
    ptrdiff_t capacity; /* positions that may be gathered; 0: none */
} step;

/* A range of valid runs of a tile. Positions are offsets from the tile's first position. */
typedef struct {
    ptrdiff_t first, end; /* positions [first, end); the first and the last one are valid */
    ptrdiff_t count;      /* valid positions in the range */
    int runs;
    ptrdiff_t number; /* valid positions of the batch before the range */
} valid_range;

/* ---- ranges of valid positions ------------------------------------------------------------------------------- */

static ptrdiff_t valid_before(const abn_operation *op, ptrdiff_t position) {
    const uint64_t *words = op->mask.words;
    ptrdiff_t word = position / COUNT_STEP * (COUNT_STEP / 64),
              count = op->unmasked.valid_before[position / COUNT_STEP];
    for (; word < position / 64; word++) count += abn_count_bits(words[word]);
    if (position % 64) count += abn_count_bits(words[word] << (64 - position % 64));
    return count;
}

static ptrdiff_t first_position(const step *s) { return s->span->image * s->op->source.spatial + s->span->from; }

/* Appends the next run of the tile to the range if there is room for it. Returns nonzero if another may follow. */
static int append_run(const step *s, valid_range *r) {
    const ptrdiff_t start = first_position(s), end = start + s->span->count;
    const ptrdiff_t first = abn_mask_find(&s->op->mask, 1, start + r->end, end);
    if (first == end) return 0;
    const ptrdiff_t last = abn_mask_find(&s->op->mask, 0, first, end), length = last - first;
    const ptrdiff_t long_run = s->op->positions_per_row > 1 ? s->op->positions_per_row : LONG_RUN;
    if (r->runs > 0 && (length >= long_run || r->count + length > s->capacity)) return 0;
    if (r->runs == 0) r->first = first - start;
    r->end = last - start;
    r->count += length;
    r->runs++;
    return length < long_run;
}

/* Moves on to the next range of the tile. Start with a range without positions. Returns 0 past the last one. */
static int next_range(const step *s, valid_range *r) {
    r->number += r->count;
    r->count = 0;
    r->runs = 0;
    while (append_run(s, r));
    return r->runs > 0;
}

/* ---- computing a range ---------------------------------------------------------------------------------- */

/* The row and the column of a tile where the position at an offset begins. */
static ptrdiff_t row_at(const abn_operation *op, ptrdiff_t offset) {
    return op->layout == ABN_ROWS ? 0 : offset / op->positions_per_row;
}

static ptrdiff_t column_at(const step *s, ptrdiff_t offset) {
    return s->op->layout == ABN_ROWS ? offset : offset % s->op->positions_per_row * s->span->channels;
}

static void call(const step *s, abn_tile tile, abn_span span, const abn_constants *constants, void *partial) {
    abn_tile_shape(s->op, &span, &tile);
    if (s->writable)
        s->op->unmasked.apply(s->writable, &tile, &span, constants, s->thread);
    else
        s->op->unmasked.sums(s->op, &tile, &span, constants, partial, s->resumming);
}

/* Computes the first span.count positions of the tile: first whole joined rows, then the remainder. */
static void compute(const step *s, abn_tile tile, abn_span span, const abn_constants *constants, void *partial) {
    const ptrdiff_t joined = s->op->positions_per_row, left = span.count > joined ? span.count % joined : 0;
    span.count -= left;
    call(s, tile, span, constants, partial);
    if (left == 0) return;
    tile = abn_tile_moved(s->op, &tile, span.count / joined, 0);
    span.from += span.count;
    span.count = left;
    call(s, tile, span, constants, partial);
}

static abn_span span_of(const step *s, const valid_range *r) {
    return (abn_span){s->span->channel, s->span->channels, 0, 1, r->number, r->count};
}

static void compute_in_place(const step *s, const valid_range *r) {
    const abn_tile tile = abn_tile_moved(s->op, s->tile, row_at(s->op, r->first), column_at(s, r->first));
    compute(s, tile, span_of(s, r), s->constants, s->partial);
}

/* ---- gathering ------------------------------------------------------------------------------------------------ */

/* The valid elements of a range in one row (ABN_ROWS) or in all rows, as offsets from its first element. Offsets fit
 * into 16 bits: a tile has fewer than 2^16 elements in a row. */
typedef struct {
    uint16_t offsets[GATHERED];
    ptrdiff_t count, extent;
} gathered_line;

static void list_elements(const step *s, const valid_range *r, gathered_line *line) {
    const uint64_t *words = s->op->mask.words;
    const ptrdiff_t first = first_position(s) + r->first, end = first + r->end - r->first;
    const ptrdiff_t width = s->op->layout == ABN_ROWS ? 1 : s->span->channels;
    ptrdiff_t count = 0;
    for (ptrdiff_t word = first / 64; word * 64 < end; word++) {
        uint64_t bits = words[word];
        if (word == first / 64) bits &= ~(uint64_t)0 << first % 64;
        if (end - word * 64 < 64) bits &= ~(~(uint64_t)0 << (end - word * 64));
        for (; bits; bits &= bits - 1) {
            const ptrdiff_t offset = (word * 64 + abn_lowest_bit(bits) - first) * width;
            for (ptrdiff_t c = 0; c < width; c++) line->offsets[count++] = (uint16_t)(offset + c);
        }
    }
    line->count = count;
    line->extent = (r->end - r->first) * width;
}

#define MOVE_ELEMENTS(type, to_index, from_index) \
    for (ptrdiff_t i = 0; i < line->count; i++) ((type *)to)[to_index] = ((const type *)from)[from_index]

static void gather(const gathered_line *line, size_t size, void *to, const void *from) {
    switch (size) {
        case 2: MOVE_ELEMENTS(uint16_t, i, line->offsets[i]); return;
        case 4: MOVE_ELEMENTS(uint32_t, i, line->offsets[i]); return;
        default: MOVE_ELEMENTS(uint64_t, i, line->offsets[i]); return;
    }
}

static void scatter(const gathered_line *line, size_t size, void *to, const void *from) {
    switch (size) {
        case 2: MOVE_ELEMENTS(uint16_t, line->offsets[i], i); return;
        case 4: MOVE_ELEMENTS(uint32_t, line->offsets[i], i); return;
        default: MOVE_ELEMENTS(uint64_t, line->offsets[i], i); return;
    }
}

/* Gathered elements of the arrays of a tile. */
typedef struct {
    _Alignas(64) double source[GATHERED], gradient[GATHERED], residual[GATHERED], destination[GATHERED],
        residual_gradient[GATHERED];
} gathered;

static void gather_input(const step *s, const gathered_line *line, abn_input *input, double *to) {
    if (!input->data) return;
    gather(line, abn_dtype_size(s->op->source.dtype), to, input->data);
    *input = (abn_input){to, s->op->positions_per_row * s->span->channels, 0};
}

static abn_tile gather_tile(const step *s, const gathered_line *line, abn_tile tile, gathered *to) {
    const abn_tile from = tile;
    const ptrdiff_t stride = s->op->positions_per_row * s->span->channels;
    gather_input(s, line, &tile.source, to->source);
    gather_input(s, line, &tile.gradient, to->gradient);
    gather_input(s, line, &tile.residual, to->residual);
    if (from.destination.data) {
        void *destination = from.destination.data == from.source.data     ? to->source
                            : from.destination.data == from.gradient.data ? to->gradient
                                                                          : to->destination;
        tile.destination = (abn_output){destination, stride};
    }
    if (from.residual_gradient.data) {
        if (s->op->add_to_residual)
            gather(line, abn_dtype_size(s->op->source.dtype), to->residual_gradient, from.residual_gradient.data);
        tile.residual_gradient = (abn_output){to->residual_gradient, stride};
    }
    return tile;
}

/* Writes the valid elements, and 0 between them unless `adds` (the operation accumulates into this output). */
static void scatter_output(const step *s, const gathered_line *line, int adds, void *to, const void *from) {
    const size_t size = abn_dtype_size(s->op->source.dtype);
    if (!to) return;
    if (!adds) memset(to, 0, (size_t)line->extent * size);
    scatter(line, size, to, from);
}

static void compute_gathered(const step *s, const valid_range *r) {
    const abn_operation *op = s->op;
    const int rows = op->layout == ABN_ROWS;
    gathered arrays;
    gathered_line line;
    list_elements(s, r, &line);
    for (ptrdiff_t row = 0; row < (rows ? s->tile->rows : 1); row++) {
        const abn_constants constants = abn_constants_moved(op, s->constants, row);
        const abn_tile tile = abn_tile_moved(op, s->tile, rows ? row : row_at(op, r->first), column_at(s, r->first));
        const abn_tile compact = gather_tile(s, &line, tile, &arrays);
        abn_span span = span_of(s, r);
        if (rows) {
            span.channel += row;
            span.channels = 1;
        }
        compute(s, compact, span, &constants, s->partial ? abn_partial_at(op, s->partial, row) : NULL);
        if (!s->writable) continue;
        if (op->rewrites_source) scatter_output(s, &line, 0, (void *)(uintptr_t)tile.source.data, compact.source.data);
        scatter_output(s, &line, 0, tile.destination.data, compact.destination.data);
        scatter_output(s, &line, op->add_to_residual, tile.residual_gradient.data, compact.residual_gradient.data);
    }
}

/* ---- invalid positions ----------------------------------------------------------------------------------------- */

static void zero_output(const step *s, abn_output to, ptrdiff_t first, ptrdiff_t end) {
    const abn_operation *op = s->op;
    const size_t size = abn_dtype_size(op->source.dtype);
    ptrdiff_t lines = end - first, length = s->span->channels;
    if (!to.data || lines == 0) return;
    if (op->layout == ABN_ROWS) {
        length = lines;
        lines = s->span->channels;
    } else if (op->positions_per_row > 1) { /* positions are contiguous */
        length *= lines;
        lines = 1;
    }
    char *row = abn_at(op, to.data, to.stride, row_at(op, first), column_at(s, first));
    for (ptrdiff_t line = 0; line < lines; line++, row += to.stride * (ptrdiff_t)size)
        memset(row, 0, (size_t)length * size);
}

/* Writes 0 to positions [first, end) of the tile. */
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

static void for_each_range(step s) {
    const abn_operation *op = s.op;
    valid_range r = {.number = valid_before(op, first_position(&s))};
    if (op->layout == ABN_ROWS)
        s.capacity = GATHERED;
    else if (op->positions_per_row > 1)
        s.capacity = GATHERED / (op->positions_per_row * s.span->channels) * op->positions_per_row;
    for (ptrdiff_t done = 0;; done = r.end) {
        const int found = next_range(&s, &r);
        zero(&s, done, found ? r.first : s.span->count);
        if (!found) break;
        if (r.runs > 1)
            compute_gathered(&s, &r);
        else
            compute_in_place(&s, &r);
    }
}

static void masked_sums(const abn_operation *op, const abn_tile *tile, const abn_span *span,
                        const abn_constants *constants, void *partial, int resumming) {
    for_each_range((step){
        .op = op, .tile = tile, .span = span, .constants = constants, .partial = partial, .resumming = resumming});
}

static void masked_apply(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                         int thread) {
    for_each_range(
        (step){.op = op, .writable = op, .tile = tile, .span = span, .constants = constants, .thread = thread});
}

abn_status abn_mask_open(abn_operation *op) {
    const ptrdiff_t positions = op->source.batch * op->source.spatial, words = (positions + 63) / 64;
    if (!op->mask.words) return ABN_OK;
    op->unmasked.valid_before = malloc((size_t)(positions / COUNT_STEP + 1) * sizeof *op->unmasked.valid_before);
    if (!op->unmasked.valid_before) return ABN_NO_MEMORY;
    for (ptrdiff_t word = 0, count = 0; word <= words; word++) {
        if (word % (COUNT_STEP / 64) == 0 && word / (COUNT_STEP / 64) <= positions / COUNT_STEP)
            op->unmasked.valid_before[word / (COUNT_STEP / 64)] = count;
        if (word < words) count += abn_count_bits(op->mask.words[word]);
    }
    op->unmasked.sums = op->sums;
    op->unmasked.apply = op->apply;
    if (op->sums) op->sums = masked_sums;
    if (op->apply) op->apply = masked_apply;
    if (op->positions_per_row > 1) op->wants_scratch = 0; /* gathered rows do not match scratch rows */
    if (op->per_channel == 0) {                           /* there are only zeros to write */
        op->begin = NULL;
        op->sums = NULL;
    }
    return ABN_OK;
}

void abn_mask_close(abn_operation *op) { free(op->unmasked.valid_before); }
