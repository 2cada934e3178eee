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
    return (abn_element){channel, (int64_t)image * op->source.spatial + position};
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

static abn_tile part_of_tile(const abn_operation *op, const abn_tile *tile, ptrdiff_t offset, ptrdiff_t entries) {
    abn_tile part = *tile;
    const int rows = op->layout == ABN_ROWS;
    const ptrdiff_t row = rows ? offset : 0, column = rows ? 0 : offset;
    part.source.data = abn_at(op, tile->source.data, tile->source.stride, row, column);
    if (tile->gradient.data) part.gradient.data = abn_at(op, tile->gradient.data, tile->gradient.stride, row, column);
    if (tile->destination) part.destination = abn_at(op, tile->destination, tile->destination_stride, row, column);
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
