#include "parts.h"

#include <stdint.h>

abn_element abn_element_of(const abn_operation *op, const abn_span *span, ptrdiff_t row, ptrdiff_t column) {
    ptrdiff_t channel = span->channel, image = span->image, position = span->from;
    if (op->layout == ABN_ROWS) {
        channel += row;
        position += column;
    } else if (op->spread > 1) {
        image += row;
        channel += column / op->spread;
        position += column % op->spread;
    } else {
        position += row * op->repeat + column / span->channels;
        channel += column % span->channels;
    }
    return (abn_element){channel, (int64_t)image * op->positions + position};
}

void *abn_at(const abn_operation *op, const void *data, ptrdiff_t stride, ptrdiff_t row, ptrdiff_t column) {
    return (char *)(uintptr_t)data + (row * stride + column) * (ptrdiff_t)abn_dtype_size(op->source.dtype);
}

/* Do the guarded channels of one position lie side by side? In single positions they may though they are walked in
 * rows. */
static int side_by_side(const abn_operation *op) {
    if (op->layout == ABN_ROWS) return op->source.channels > 1 && op->source.channel_stride == 1;
    return op->spread == 1;
}

void *abn_guarded_at(const abn_operation *op, const abn_guard *guard, abn_element element) {
    const ptrdiff_t slot = guard->slot[element.channel], position = (ptrdiff_t)element.position;
    return abn_at(op, guard->xhat, 1, 0,
                  side_by_side(op) ? position * guard->count + slot : slot * op->per_channel + position);
}

static abn_input guarded_xhat(const abn_operation *op, const abn_guard *guard, const abn_span *span) {
    const void *first = abn_guarded_at(op, guard, abn_element_of(op, span, 0, 0));
    if (op->layout == ABN_ROWS) return (abn_input){first, side_by_side(op) ? 1 : op->per_channel};
    return (abn_input){first, op->spread > 1 ? op->spread : guard->count * op->repeat};
}

/* How many channels from `channel` on are of one kind? */
static ptrdiff_t run_length(const abn_operation *op, const abn_span *span, ptrdiff_t channel) {
    const unsigned char *kinds = op->kinds + span->channel;
    ptrdiff_t count = 1;
    if (kinds[channel] & ABN_GUARDED && op->spread > 1) return 1; /* xhat has a channel's images together */
    while (channel + count < span->channels && kinds[channel + count] == kinds[channel]) count++;
    return count;
}

static abn_input moved_input(const abn_operation *op, abn_input from, ptrdiff_t row, ptrdiff_t column) {
    if (from.data) from.data = abn_at(op, from.data, from.stride, row, column);
    return from;
}

static abn_output moved_output(const abn_operation *op, abn_output to, ptrdiff_t row, ptrdiff_t column) {
    if (to.data) to.data = abn_at(op, to.data, to.stride, row, column);
    return to;
}

abn_tile abn_tile_moved(const abn_operation *op, const abn_tile *tile, ptrdiff_t row, ptrdiff_t column) {
    return (abn_tile){
        .source = moved_input(op, tile->source, row, column),
        .gradient = moved_input(op, tile->gradient, row, column),
        .residual = moved_input(op, tile->residual, row, column),
        .destination = moved_output(op, tile->destination, row, column),
        .residual_gradient = moved_output(op, tile->residual_gradient, row, column),
        .memo = moved_output(op, tile->memo, row, column),
        .rows = tile->rows,
        .length = tile->length,
    };
}

static abn_tile part_of_tile(const abn_operation *op, const abn_tile *tile, ptrdiff_t offset, ptrdiff_t entries) {
    const int rows = op->layout == ABN_ROWS;
    abn_tile part = abn_tile_moved(op, tile, rows ? offset : 0, rows ? 0 : offset);
    *(rows ? &part.rows : &part.length) = entries;
    return part;
}

int abn_next_part(const abn_operation *op, const abn_guard *guard, const abn_tile *tile, const abn_span *span,
                  const abn_constants *constants, abn_part *part) {
    const int joins = op->layout == ABN_COLUMNS && op->spread == 1;
    const ptrdiff_t all = joins ? tile->length : span->channels, channel = part->next % span->channels;
    if (part->next == all) return 0;
    ptrdiff_t channels = run_length(op, span, channel);
    part->span = *span;
    part->span.channel += channel;
    part->span.channels = channels;
    if (joins) part->span.from += part->next / span->channels;
    if (channels == span->channels) channels = all; /* all positions of a joined row at once */
    part->kind = op->kinds[part->span.channel];
    part->offset = part->next * op->spread;
    part->tile = part_of_tile(op, tile, part->offset, channels * op->spread);
    part->constants = abn_constants_moved(op, constants, part->offset);
    part->xhat = part->kind & ABN_GUARDED ? guarded_xhat(op, guard, &part->span) : (abn_input){NULL, 0};
    part->next += channels;
    return 1;
}

int abn_next_piece(const abn_operation *op, const abn_part *part, abn_piece *piece) {
    const int rows = op->layout == ABN_ROWS;
    if (piece->next == part->tile.length) {
        piece->row++;
        piece->next = 0;
    }
    if (piece->row >= part->tile.rows || part->tile.length == 0) return 0;
    const ptrdiff_t column = piece->next, left = part->tile.length - column;
    piece->tile = abn_tile_moved(op, &part->tile, piece->row, column);
    piece->tile.rows = 1;
    piece->tile.length = left < ABN_PIECE ? left : ABN_PIECE;
    piece->xhat = moved_input(op, part->xhat, piece->row, column);
    piece->constants = abn_constants_moved(op, &part->constants, rows ? piece->row : column);
    piece->column = column;
    piece->partial_offset = part->offset + (rows ? piece->row : column);
    const abn_element first = abn_element_of(op, &part->span, piece->row, column);
    piece->index = abn_index_of(op, first.channel, first.position);
    piece->next = column + piece->tile.length;
    return 1;
}

void *abn_partial_at(const abn_operation *op, void *partial, ptrdiff_t entry) {
    const size_t bytes = op->layout == ABN_ROWS ? 2 * ABN_LANE_BYTES : abn_real_size(op->source.dtype);
    return (char *)partial + entry * (ptrdiff_t)bytes;
}

double abn_element_from(const abn_operation *op, abn_input input, ptrdiff_t i) {
    return input.data ? abn_load_element(op->source.dtype, abn_at(op, input.data, 0, 0, i)) : 0;
}

const void *abn_piece_param(const abn_operation *op, const abn_context *context, const abn_piece *piece,
                            abn_bench *bench) {
    const void *of_channel = piece->constants.of[ABN_PARAM];
    if (!context->channel_param)
        abn_set_real(op, bench->param, 0, context->activation_param);
    else if (op->layout == ABN_COLUMNS)
        return of_channel;
    else
        op->set->expand(of_channel, (abn_columns){1, piece->tile.length, 1}, bench->param);
    return bench->param;
}
