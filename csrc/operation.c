#include "operation.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "half.h"
#include "mask.h"

enum {
    ROW_LENGTH_WANTED = 256, /* columns that a channels-last row should have at least */
    SHORT_ROW = 512,         /* channels-first rows up to this are stacked, image upon image, as columns ... */
    STACK = 4,               /* ... if there are that many images */
};

size_t abn_dtype_size(abn_dtype dtype) {
    static const size_t sizes[ABN_DTYPES] = {4, 8, 2, 2};
    return sizes[dtype];
}

size_t abn_real_size(abn_dtype dtype) { return dtype == ABN_FLOAT64 ? sizeof(double) : sizeof(float); }

double abn_round_to_real(abn_dtype dtype, double value) { return dtype == ABN_FLOAT64 ? value : (float)value; }

double abn_load_element(abn_dtype dtype, const void *at) {
    switch (dtype) {
        case ABN_FLOAT64: return *(const double *)at;
        case ABN_FLOAT16: return abn_float16_to_float(*(const uint16_t *)at);
        case ABN_BFLOAT16: return abn_bfloat16_to_float(*(const uint16_t *)at);
        default: return *(const float *)at;
    }
}

void abn_store_element(abn_dtype dtype, void *at, double value) {
    switch (dtype) {
        case ABN_FLOAT64: *(double *)at = value; return;
        case ABN_FLOAT16: *(uint16_t *)at = abn_float_to_float16((float)value); return;
        case ABN_BFLOAT16: *(uint16_t *)at = abn_float_to_bfloat16((float)value); return;
        default: *(float *)at = (float)value; return;
    }
}

void *abn_address(const abn_batch *batch, ptrdiff_t image, ptrdiff_t channel, ptrdiff_t position) {
    const ptrdiff_t offset =
        image * batch->batch_stride + channel * batch->channel_stride + position * batch->spatial_stride;
    return (char *)batch->data + offset * (ptrdiff_t)abn_dtype_size(batch->dtype);
}

/* Channels-last: can all images' positions be numbered through at one stride? */
static int joinable(const abn_batch *b) {
    return b->data == NULL || b->batch <= 1 || b->spatial <= 1 || b->batch_stride == b->spatial * b->spatial_stride;
}

static void join_images(abn_batch *b) {
    if (b->spatial <= 1) b->spatial_stride = b->batch_stride;
    b->spatial *= b->batch;
    b->batch = 1;
}

/* Channels-last: no gap between positions? */
static int is_dense(const abn_batch *b) { return b->data == NULL || b->spatial_stride == b->channels; }

/* Channels-first: no gap between channels? */
static int is_stacked(const abn_batch *b) { return b->data == NULL || b->channel_stride == b->spatial; }

/* Do the positions of a channel lie side by side? */
static int has_rows(const abn_batch *b) { return b->data == NULL || b->spatial <= 1 || b->spatial_stride == 1; }

/* Do the channels of a position? */
static int has_columns(const abn_batch *b) { return b->data == NULL || b->channels <= 1 || b->channel_stride == 1; }

static int all_of(abn_operation *op, int (*property)(const abn_batch *)) {
    return property(&op->source) && property(&op->gradient) && property(&op->destination) && property(&op->residual) &&
           property(&op->residual_gradient);
}

static void choose_layout(abn_operation *op) {
    const ptrdiff_t channels = op->source.channels, spatial = op->source.spatial;
    op->spread = op->repeat = 1;
    op->layout = ABN_COLUMNS;
    if (all_of(op, has_rows) && !(spatial <= 1 && all_of(op, has_columns))) {
        /* The images of a tile share their columns, and a mask may differ from image to image. */
        if (spatial <= SHORT_ROW && op->source.batch >= STACK && !op->mask.words && all_of(op, is_stacked))
            op->spread = spatial;
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
    if (all_of(op, is_dense) && channels > 0 && channels <= ROW_LENGTH_WANTED / 2)
        op->repeat = ROW_LENGTH_WANTED / channels;
}

abn_status abn_operation_open(abn_operation *op, const abn_machine *machine, const abn_guard *guard) {
    choose_layout(op);
    op->set = machine->kernels->sets[op->source.dtype];
    op->kernels = &op->set->layout[op->layout];
    op->threads = machine->threads;
    op->per_channel = abn_valid_positions(&op->source, &op->mask);
    op->positions = op->mask.words && op->source.spatial > 1 ? op->mask.valid : op->source.spatial;
    const size_t length = (size_t)(op->source.channels + ABN_PADDING) * abn_real_size(op->source.dtype);
    char *memory = calloc(1, ABN_CONSTANTS * length + (size_t)op->source.channels);
    if (memory == NULL) return ABN_NO_MEMORY;
    for (int which = 0; which < ABN_CONSTANTS; which++) op->constants[which] = memory + (size_t)which * length;
    op->kinds = (unsigned char *)memory + ABN_CONSTANTS * length;
    for (ptrdiff_t c = 0; guard && guard->count > 0 && c < op->source.channels; c++)
        if (guard->slot[c] >= 0) op->kinds[c] = ABN_GUARDED;
    const abn_status status = abn_mask_open(op);
    if (status != ABN_OK) free(memory);
    return status;
}

void abn_operation_close(abn_operation *op) {
    abn_mask_close(op);
    free(op->constants[0]);
}

abn_status abn_walk(abn_operation *op) {
    if (op->source.channels == 0 || op->source.batch * op->source.spatial == 0) return ABN_OK;
    return op->layout == ABN_ROWS ? abn_walk_rows(op) : abn_walk_columns(op);
}

void abn_set_real(const abn_operation *op, void *reals, ptrdiff_t i, double value) {
    if (op->source.dtype == ABN_FLOAT64)
        ((double *)reals)[i] = value;
    else
        ((float *)reals)[i] = isnan(value) ? NAN : (float)value;
}

void abn_set_constant(abn_operation *op, int which, ptrdiff_t channel, double value) {
    abn_set_real(op, op->constants[which], channel, value);
}

double abn_get_constant(const abn_operation *op, int which, ptrdiff_t channel) {
    return op->source.dtype == ABN_FLOAT64 ? ((const double *)op->constants[which])[channel]
                                           : ((const float *)op->constants[which])[channel];
}

abn_constants abn_constants_from(const abn_operation *op, ptrdiff_t channel) {
    abn_constants constants = {{0}, 0, 0};
    for (int which = 0; which < ABN_CONSTANTS; which++)
        constants.of[which] = (const char *)op->constants[which] + (size_t)channel * abn_real_size(op->source.dtype);
    return constants;
}

abn_constants abn_constants_moved(const abn_operation *op, const abn_constants *constants, ptrdiff_t entries) {
    abn_constants moved = *constants;
    const size_t bytes = (size_t)entries * abn_real_size(op->source.dtype);
    for (int which = 0; which < ABN_CONSTANTS; which++) moved.of[which] = (const char *)constants->of[which] + bytes;
    return moved;
}

double abn_largest_of(abn_dtype dtype) {
    static const double largest[ABN_DTYPES] = {
        [ABN_FLOAT32] = FLT_MAX, [ABN_FLOAT64] = DBL_MAX, [ABN_FLOAT16] = 65504, [ABN_BFLOAT16] = 0x1.fep127};
    return largest[dtype];
}

int abn_constant_fits(abn_dtype dtype, double value) {
    const double size = fabs(value);
    return dtype == ABN_FLOAT64 || value == 0 || !isfinite(value) || (size >= FLT_MIN && size <= FLT_MAX);
}

int abn_centre_fits(abn_dtype dtype, double mean, double var, ptrdiff_t per_channel) {
    if (dtype == ABN_FLOAT64 || !isfinite(mean)) return 1;
    return !(fabs(mean) > FLT_MAX / 4 || sqrt(var * (double)per_channel) > FLT_MAX / 4);
}

static ptrdiff_t row_stride(const abn_operation *op, const abn_batch *batch) {
    if (op->layout == ABN_ROWS) return batch->channel_stride;
    return op->spread > 1 ? batch->batch_stride : batch->spatial_stride * op->repeat;
}

static abn_input input_of(const abn_operation *op, const abn_batch *batch, const abn_span *span) {
    if (!batch->data) return (abn_input){NULL, 0};
    return (abn_input){abn_address(batch, span->image, span->channel, span->from), row_stride(op, batch)};
}

static abn_output output_of(const abn_operation *op, const abn_batch *batch, const abn_span *span) {
    if (!batch->data) return (abn_output){NULL, 0};
    return (abn_output){abn_address(batch, span->image, span->channel, span->from), row_stride(op, batch)};
}

void abn_tile_shape(const abn_operation *op, const abn_span *span, abn_tile *tile) {
    tile->rows = span->channels;
    tile->length = span->count;
    if (op->layout == ABN_COLUMNS && op->spread > 1) {
        tile->rows = span->images;
        tile->length = span->channels * op->spread;
    } else if (op->layout == ABN_COLUMNS) {
        const ptrdiff_t joined = span->count < op->repeat ? span->count : op->repeat;
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

/* Images have been joined where channels are columns: the position counts through all of them. */
int64_t abn_index_of(const abn_operation *op, ptrdiff_t channel, int64_t position) {
    const int64_t channels = op->source.channels, positions = op->positions;
    if (op->layout == ABN_COLUMNS && op->spread == 1) return position * channels + channel;
    return (position / positions * channels + channel) * positions + position % positions;
}

enum { LINE = 64 };

abn_memo abn_memo_open(abn_operation *op, int threads, ptrdiff_t rows, ptrdiff_t length) {
    /* A row may be worked on in parts, in any order: the last vector of its last part ends in the padding. */
    const ptrdiff_t stride = (length + 2 * ABN_PADDING - 1) / ABN_PADDING * ABN_PADDING;
    abn_memo memo = {NULL, NULL, stride};
    op->memo_apart = rows * stride;
    if (!op->wants_memo) return memo;
    memo.memory = malloc((size_t)threads * 2 * (size_t)op->memo_apart * abn_real_size(op->source.dtype) + LINE);
    memo.first = (char *)(((uintptr_t)memo.memory + LINE - 1) / LINE * LINE);
    return memo;
}

void abn_memo_close(abn_memo *memo) { free(memo->memory); }

abn_output abn_memo_row(const abn_operation *op, const abn_memo *memo, int thread, ptrdiff_t row, ptrdiff_t column) {
    const ptrdiff_t at = thread * 2 * op->memo_apart + row * memo->stride + column;
    if (memo->memory == NULL) return (abn_output){NULL, 0};
    return (abn_output){memo->first + at * (ptrdiff_t)abn_real_size(op->source.dtype), memo->stride};
}
