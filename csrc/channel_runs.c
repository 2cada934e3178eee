#include "channel_runs.h"

#include <stdint.h>
#include <string.h>

#include "element.h"

/* The length of the channel run that begins at `channel`, a channel of the span. */
static ptrdiff_t run_length(const abn_operation *op, const abn_span *span, ptrdiff_t channel) {
    const unsigned char *flags = op->channel_flags + span->channel + channel;
    const ptrdiff_t left = span->channels - channel;
    ptrdiff_t count = 1;
    if (*flags & ABN_GUARDED && op->positions_per_channel > 1) return 1; /* saved xhat is (count, N, S) */
    if (memcmp(flags, flags + 1, (size_t)(left - 1)) == 0) return left;  /* all flags are equal */
    while (count < left && flags[count] == *flags) count++;
    return count;
}

/* `entries` rows (ABN_ROWS) or columns of a tile, from `offset` on. */
static abn_tile entries_of_tile(const abn_operation *op, const abn_tile *tile, ptrdiff_t offset, ptrdiff_t entries) {
    const int rows = op->layout == ABN_ROWS;
    abn_tile moved = abn_tile_moved(op, tile, rows ? offset : 0, rows ? 0 : offset);
    *(rows ? &moved.rows : &moved.length) = entries;
    return moved;
}

int abn_next_channel_run(const abn_operation *op, const abn_guard *guard, const abn_tile *tile, const abn_span *span,
                         const abn_constants *constants, abn_channel_run *run) {
    const int columns_are_channels = op->layout == ABN_COLUMNS && op->positions_per_channel == 1;
    const ptrdiff_t end = columns_are_channels ? tile->length : span->channels, channel = run->next % span->channels;
    if (run->next == end) return 0;
    ptrdiff_t channels = run_length(op, span, channel);
    if (run->next == 0 && channels == span->channels && !(op->channel_flags[span->channel] & ABN_GUARDED)) {
        run->tile = *tile; /* the most common case */
        run->span = *span;
        run->constants = *constants;
        run->flags = op->channel_flags[span->channel];
        run->next = end;
        return 1;
    }
    run->span = *span;
    run->span.channel += channel;
    run->span.channels = channels;
    if (columns_are_channels) run->span.from += run->next / span->channels;
    if (channels == span->channels) channels = end; /* all positions of a joined row at once */
    run->flags = op->channel_flags[run->span.channel];
    run->offset = run->next * op->positions_per_channel;
    run->tile = entries_of_tile(op, tile, run->offset, channels * op->positions_per_channel);
    run->constants = abn_constants_moved(op, constants, run->offset);
    run->xhat = run->flags & ABN_GUARDED ? abn_guarded_input(op, guard, &run->span) : (abn_input){NULL, 0, 0};
    run->next += channels;
    return 1;
}

int abn_next_segment(const abn_operation *op, const abn_channel_run *run, abn_segment *segment) {
    const int rows = op->layout == ABN_ROWS;
    if (segment->next == run->tile.length) {
        segment->row++;
        segment->next = 0;
    }
    if (segment->row >= run->tile.rows || run->tile.length == 0) return 0;
    const ptrdiff_t column = segment->next, left = run->tile.length - column;
    segment->tile = abn_tile_moved(op, &run->tile, segment->row, column);
    segment->tile.rows = 1;
    segment->tile.length = left < ABN_SEGMENT ? left : ABN_SEGMENT;
    segment->xhat = abn_input_moved(op, run->xhat, segment->row, column);
    segment->constants = abn_constants_moved(op, &run->constants, rows ? segment->row : column);
    segment->column = column;
    segment->partial_offset = run->offset + (rows ? segment->row : column);
    const abn_element first = abn_element_of(op, &run->span, segment->row, column);
    segment->index = abn_index_of(op, first.channel, first.position);
    segment->next = column + segment->tile.length;
    return 1;
}

/* The bytes from a segment to the next one: in the same row, in the next row, or in the next tile. */
static ptrdiff_t ahead_of_segment(const abn_operation *op, const abn_channel_run *run, const abn_segment *segment,
                                  abn_input input) {
    const ptrdiff_t size = (ptrdiff_t)abn_dtype_size(op->source.dtype);
    if (op->layout == ABN_COLUMNS) return input.ahead;
    if (segment->next < run->tile.length) return segment->tile.length * size;
    if (segment->row + 1 < run->tile.rows) return (input.stride - segment->column) * size;
    return input.ahead - (segment->row * input.stride + segment->column) * size;
}

void abn_prefetch_next_segment(const abn_operation *op, const abn_channel_run *run, abn_segment *segment) {
    segment->tile.source.ahead = ahead_of_segment(op, run, segment, run->tile.source);
    segment->tile.gradient.ahead = ahead_of_segment(op, run, segment, run->tile.gradient);
}

const void *abn_segment_param(const abn_operation *op, const abn_context *context, const abn_segment *segment,
                              abn_workspace *workspace) {
    const void *of_channel = segment->constants.of[ABN_PARAM];
    if (!context->channel_param)
        abn_set_real(op->source.dtype, workspace->param, 0, context->activation_param);
    else if (op->layout == ABN_COLUMNS)
        return of_channel;
    else
        op->set->expand(of_channel, (abn_columns){1, segment->tile.length, 1}, workspace->param);
    return workspace->param;
}
