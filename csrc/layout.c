#include "layout.h"

enum {
    MAX_JOINED_ROW = 256, /* channels-last: positions are joined into rows of up to this many columns */
    SHORT_ROW = 64,       /* channels-first: up to this S, a tile has images as rows and channels as columns ... */
    MIN_IMAGES = 4,       /* ... if there are at least this many images */
};

/* Channels-last: True if one stride reaches the positions of all images. */
static int joinable(const abn_batch *b) {
    return b->data == NULL || b->batch <= 1 || b->spatial <= 1 || b->batch_stride == b->spatial * b->spatial_stride;
}

static void join_images(abn_batch *b) {
    if (b->spatial <= 1) b->spatial_stride = b->batch_stride;
    b->spatial *= b->batch;
    b->batch = 1;
}

/* Channels-last: True if there are no gaps between positions. */
static int positions_are_contiguous(const abn_batch *b) { return b->data == NULL || b->spatial_stride == b->channels; }

/* Channels-first: True if there are no gaps between channels. */
static int channels_are_contiguous(const abn_batch *b) { return b->data == NULL || b->channel_stride == b->spatial; }

/* True if the positions of a channel are adjacent in memory. */
static int has_rows(const abn_batch *b) { return b->data == NULL || b->spatial <= 1 || b->spatial_stride == 1; }

/* True if the channels of a position are adjacent in memory. */
static int has_columns(const abn_batch *b) { return b->data == NULL || b->channels <= 1 || b->channel_stride == 1; }

static int all_of(abn_operation *op, int (*property)(const abn_batch *)) {
    return property(&op->source) && property(&op->gradient) && property(&op->destination) && property(&op->residual) &&
           property(&op->residual_gradient);
}

void abn_choose_layout(abn_operation *op) {
    const ptrdiff_t channels = op->source.channels, spatial = op->source.spatial;
    op->positions_per_channel = op->positions_per_row = 1;
    op->layout = ABN_COLUMNS;
    if (all_of(op, has_rows) && !(spatial <= 1 && all_of(op, has_columns))) {
        /* Not with a mask: a tile has the same columns in all its rows, but valid positions differ between images. */
        if (spatial <= SHORT_ROW && op->source.batch >= MIN_IMAGES && !op->mask.words &&
            all_of(op, channels_are_contiguous))
            op->positions_per_channel = spatial;
        else
            op->layout = ABN_ROWS;
        return;
    }
    if (!all_of(op, joinable)) return;
    join_images(&op->source);
    join_images(&op->gradient);
    join_images(&op->destination);
    join_images(&op->residual);
    join_images(&op->residual_gradient);
    if (all_of(op, positions_are_contiguous) && channels > 0 && channels <= MAX_JOINED_ROW / 2)
        op->positions_per_row = MAX_JOINED_ROW / channels;
}
