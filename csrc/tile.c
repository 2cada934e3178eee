#include "tile.h"

#include <stdint.h>

#include "element.h"

static ptrdiff_t row_stride(const abn_operation *op, const abn_batch *batch) {
    if (op->layout == ABN_ROWS) return batch->channel_stride;
    return op->positions_per_channel > 1 ? batch->batch_stride : batch->spatial_stride * op->positions_per_row;
}

static abn_input input_of(const abn_operation *op, const abn_batch *batch, const abn_span *span) {
    if (!batch->data) return (abn_input){NULL, 0, 0};
    return (abn_input){abn_address(batch, span->image, span->channel, span->from), row_stride(op, batch), 0};
}

static abn_output output_of(const abn_operation *op, const abn_batch *batch, const abn_span *span) {
    if (!batch->data) return (abn_output){NULL, 0};
    return (abn_output){abn_address(batch, span->image, span->channel, span->from), row_stride(op, batch)};
}

void abn_tile_shape(const abn_operation *op, const abn_span *span, abn_tile *tile) {
    tile->rows = span->channels;
    tile->length = span->count;
    if (op->layout == ABN_COLUMNS && op->positions_per_channel > 1) {
        tile->rows = span->images;
        tile->length = span->channels * op->positions_per_channel;
    } else if (op->layout == ABN_COLUMNS) {
        const ptrdiff_t joined = span->count < op->positions_per_row ? span->count : op->positions_per_row;
        tile->rows = span->count / joined;
        tile->length = span->channels * joined;
    }
}

abn_tile abn_tile_of(const abn_operation *op, const abn_span *span) {
    abn_tile tile = {
        .source = input_of(op, &op->source, span),
        .gradient = input_of(op, &op->gradient, span),
        .residual = input_of(op, &op->residual, span),
        .destination = output_of(op, &op->destination, span),
        .residual_gradient = output_of(op, &op->residual_gradient, span),
    };
    abn_tile_shape(op, span, &tile);
    return tile;
}

static void set_ahead(const abn_batch *batch, const abn_span *next, abn_input *input) {
    if (!batch->data) return;
    const char *there = abn_address(batch, next->image, next->channel, next->from);
    input->ahead = there - (const char *)input->data;
}

void abn_tile_prefetch(const abn_operation *op, const abn_span *next, const abn_span *next_residual, abn_tile *tile) {
    set_ahead(&op->source, next, &tile->source);
    set_ahead(&op->gradient, next, &tile->gradient);
    set_ahead(&op->residual, next_residual, &tile->residual);
}

void *abn_at(const abn_operation *op, const void *data, ptrdiff_t stride, ptrdiff_t row, ptrdiff_t column) {
    return (char *)(uintptr_t)data + (row * stride + column) * (ptrdiff_t)abn_dtype_size(op->source.dtype);
}

double abn_element_from(const abn_operation *op, abn_input input, ptrdiff_t i) {
    return input.data ? abn_load_element(op->source.dtype, abn_at(op, input.data, 0, 0, i)) : 0;
}

void *abn_partial_at(const abn_operation *op, void *partial, ptrdiff_t entry) {
    const size_t bytes = op->layout == ABN_ROWS ? 2 * ABN_LANE_BYTES : abn_real_size(op->source.dtype);
    return (char *)partial + entry * (ptrdiff_t)bytes;
}

abn_input abn_input_moved(const abn_operation *op, abn_input from, ptrdiff_t row, ptrdiff_t column) {
    if (from.data) from.data = abn_at(op, from.data, from.stride, row, column);
    return from;
}

static abn_output output_moved(const abn_operation *op, abn_output to, ptrdiff_t row, ptrdiff_t column) {
    if (to.data) to.data = abn_at(op, to.data, to.stride, row, column);
    return to;
}

abn_tile abn_tile_moved(const abn_operation *op, const abn_tile *tile, ptrdiff_t row, ptrdiff_t column) {
    return (abn_tile){
        .source = abn_input_moved(op, tile->source, row, column),
        .gradient = abn_input_moved(op, tile->gradient, row, column),
        .residual = abn_input_moved(op, tile->residual, row, column),
        .destination = output_moved(op, tile->destination, row, column),
        .residual_gradient = output_moved(op, tile->residual_gradient, row, column),
        .scratch = output_moved(op, tile->scratch, row, column),
        .rows = tile->rows,
        .length = tile->length,
    };
}

abn_element abn_element_of(const abn_operation *op, const abn_span *span, ptrdiff_t row, ptrdiff_t column) {
    ptrdiff_t channel = span->channel, image = span->image, position = span->from;
    if (op->layout == ABN_ROWS) {
        channel += row;
        position += column;
    } else if (op->positions_per_channel > 1) {
        image += row;
        channel += column / op->positions_per_channel;
        position += column % op->positions_per_channel;
    } else {
        position += row * op->positions_per_row + column / span->channels;
        channel += column % span->channels;
    }
    return (abn_element){channel, (int64_t)image * op->positions + position};
}

/* Where each column is a channel, the index needs no image: `position` counts through the positions of all images. */
int64_t abn_index_of(const abn_operation *op, ptrdiff_t channel, int64_t position) {
    const int64_t channels = op->source.channels, positions = op->positions;
    if (op->layout == ABN_COLUMNS && op->positions_per_channel == 1) return position * channels + channel;
    return (position / positions * channels + channel) * positions + position % positions;
}

/* True if guard->xhat is channels-last. With S = 1 it may be so in the layout ABN_ROWS, too. */
static int guard_is_channels_last(const abn_operation *op) {
    if (op->layout == ABN_ROWS) return op->source.channels > 1 && op->source.channel_stride == 1;
    return op->positions_per_channel == 1;
}

void *abn_guarded_at(const abn_operation *op, const abn_guard *guard, abn_element element) {
    const ptrdiff_t slot = guard->slot[element.channel], position = (ptrdiff_t)element.position;
    return abn_at(op, guard->xhat, 1, 0,
                  guard_is_channels_last(op) ? position * guard->count + slot : slot * op->per_channel + position);
}

abn_input abn_guarded_input(const abn_operation *op, const abn_guard *guard, const abn_span *span) {
    const void *first = abn_guarded_at(op, guard, abn_element_of(op, span, 0, 0));
    if (op->layout == ABN_ROWS) return (abn_input){first, guard_is_channels_last(op) ? 1 : op->per_channel, 0};
    return (abn_input){
        first, op->positions_per_channel > 1 ? op->positions_per_channel : guard->count * op->positions_per_row, 0};
}
