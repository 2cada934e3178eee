/* x -> z: moments, constants, and one pass that writes z (and xhat where it is to be kept). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "abn.h"
#include "activations.h"
#include "escapes.h"
#include "guard.h"
#include "moments.h"

/* The forward has no use for the backward's constants; their memory holds those that give xhat instead of y. */
enum { XHAT_SCALE = ABN_WEIGHT, XHAT_SHIFT = ABN_BIAS };

enum { PIECE = 1024 }; /* elements looked through at a time for ones to escape */

typedef struct {
    abn_operation op; /* first: the steps cast back */
    abn_context *context;
    const abn_activation_kernels *kernels;
    const abn_activation_kernels *identity;
    abn_escape_rule escape;
    abn_escape_list *escaped; /* one per thread */
} forward_operation;

/* centre is mean in the kernels' type; what that rounding took is put into the shift. */
static void set_constants(forward_operation *f, ptrdiff_t channel, ptrdiff_t channels) {
    const abn_norm *norm = &f->context->norm;
    for (ptrdiff_t c = channel; c < channel + channels; c++) {
        const double centre = abn_round_to_real(f->op.source.dtype, norm->mean[c]);
        const double inv_std = norm->inv_std[c], lost = isfinite(centre) ? centre - norm->mean[c] : 0;
        abn_set_constant(&f->op, ABN_CENTRE, c, centre);
        abn_set_constant(&f->op, ABN_SCALE, c, norm->weight[c] * inv_std);
        abn_set_constant(&f->op, ABN_SHIFT, c, norm->bias[c] + lost * inv_std * norm->weight[c]);
        abn_set_constant(&f->op, XHAT_SCALE, c, inv_std);
        abn_set_constant(&f->op, XHAT_SHIFT, c, lost * inv_std);
    }
}

static void set_inv_std(const abn_norm *norm, ptrdiff_t channel, ptrdiff_t channels) {
    for (ptrdiff_t c = channel; c < channel + channels; c++) norm->inv_std[c] = 1 / sqrt(norm->var[c] + norm->eps);
}

static int finish(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first, const double *second,
                  int again) {
    forward_operation *f = (forward_operation *)op;
    const abn_moments moments = {f->context->norm.mean, f->context->norm.var};
    if (abn_moments_finish(op, moments, channel, channels, first, second, again)) return 1;
    set_inv_std(&f->context->norm, channel, channels);
    set_constants(f, channel, channels);
    return 0;
}

static void begin_given(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    forward_operation *f = (forward_operation *)op;
    set_inv_std(&f->context->norm, channel, channels);
    set_constants(f, channel, channels);
}

static abn_constants with_activation(const forward_operation *f, abn_constants constants) {
    constants.param = f->context->activation_param;
    constants.escape_below = f->escape.escape_below;
    return constants;
}

static void write_xhat(const forward_operation *f, abn_tile tile, abn_constants constants, void *to, ptrdiff_t stride) {
    constants.of[ABN_SCALE] = constants.of[XHAT_SCALE];
    constants.of[ABN_SHIFT] = constants.of[XHAT_SHIFT];
    tile.destination = to;
    tile.destination_stride = stride;
    f->identity->apply(&tile, &constants);
}

/* The element in a tile's row and column. */
static abn_escape element_of(const forward_operation *f, const abn_span *span, ptrdiff_t row, ptrdiff_t column,
                             double x) {
    const abn_operation *op = &f->op;
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
    const double xhat = (x - f->context->norm.mean[channel]) * f->context->norm.inv_std[channel];
    return (abn_escape){channel, image * op->source.spatial + position, xhat};
}

/* One piece of one row of a tile: finds the elements that z will not tell, by looking at z as it will be stored. */
static void escape_from_piece(const forward_operation *f, const abn_tile *piece, const abn_constants *constants,
                              const abn_span *span, ptrdiff_t row, ptrdiff_t column, abn_escape_list *list) {
    const abn_dtype dtype = f->op.source.dtype;
    const size_t size = abn_dtype_size(dtype);
    const double below = abn_round_to_real(dtype, f->escape.escape_below);
    double z[PIECE]; /* of any dtype */
    abn_tile to_stack = *piece;
    to_stack.destination = z;
    f->kernels->apply(&to_stack, constants);
    for (ptrdiff_t i = 0; i < piece->length; i++) {
        if (!(abn_load_element(dtype, (const char *)z + (size_t)i * size) < below)) continue;
        const double x = abn_load_element(dtype, (const char *)piece->source.data + (size_t)i * size);
        abn_escape_push(list, element_of(f, span, row, column + i, x));
    }
}

static void collect_escapes(const forward_operation *f, const abn_tile *tile, const abn_constants *constants,
                            const abn_span *span, abn_escape_list *list) {
    const ptrdiff_t size = (ptrdiff_t)abn_dtype_size(f->op.source.dtype);
    for (ptrdiff_t row = 0; row < tile->rows; row++) {
        abn_constants at = *constants;
        if (f->op.layout == ABN_ROWS) at = abn_constants_moved(&f->op, constants, row);
        for (ptrdiff_t column = 0; column < tile->length; column += PIECE) {
            const ptrdiff_t left = tile->length - column;
            abn_tile piece = *tile;
            piece.source.data = (const char *)tile->source.data + (row * tile->source.stride + column) * size;
            piece.rows = 1;
            piece.length = left < PIECE ? left : PIECE;
            if (f->op.kernels->any_below(&piece, &at, f->escape.candidates_below))
                escape_from_piece(f, &piece, &at, span, row, column, list);
        }
    }
}

/* z over x. Where z will not tell xhat, that goes to its side buffer before x is gone. */
static void apply_inplace(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                          int thread) {
    forward_operation *f = (forward_operation *)op;
    abn_span left = *span;
    while (left.channels > 0) {
        int guarded;
        const abn_span run = abn_guard_run(op, &f->context->guard, &left, &guarded);
        const abn_tile part = abn_guard_part(op, tile, span, &run);
        const abn_constants of_part =
            with_activation(f, abn_constants_moved(op, constants, run.channel - span->channel));
        if (guarded) {
            const abn_input xhat = abn_guard_xhat(op, &f->context->guard, &run);
            write_xhat(f, part, of_part, (void *)(uintptr_t)xhat.data, xhat.stride);
        } else if (f->escape.escapes) {
            collect_escapes(f, &part, &of_part, &run, &f->escaped[thread]);
        }
        f->kernels->apply(&part, &of_part);
        left.channel += run.channels;
        left.channels -= run.channels;
    }
}

static void apply_beside(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                         int thread) {
    const forward_operation *f = (const forward_operation *)op;
    const abn_constants with_param = with_activation(f, *constants);
    (void)span, (void)thread;
    f->kernels->apply(tile, &with_param);
    if (f->context->keep == ABN_KEEP_XHAT)
        write_xhat(f, *tile, *constants, (void *)(uintptr_t)tile->source.data, tile->source.stride);
}

enum { AFFINE = 1 << ABN_CENTRE | 1 << ABN_SCALE | 1 << ABN_SHIFT };

abn_status abn_forward(const abn_machine *machine, const abn_batch *x, const abn_batch *z, abn_context *context,
                       int training) {
    const int inplace = context->keep == ABN_KEEP_Z;
    forward_operation f = {
        .op = {.source = *x,
               .destination = *z,
               .arrays = inplace ? 1 : 2,
               .apply = inplace ? apply_inplace : apply_beside,
               .sums_use = 1 << ABN_SUMS_CENTRE,
               .apply_use = AFFINE},
        .context = context,
    };
    abn_status status = abn_operation_open(&f.op, machine, context->guard.count > 0);
    if (status != ABN_OK) return status;
    context->kept = *x;
    context->escapes = (abn_escapes){0, NULL, NULL, NULL};
    f.kernels = &f.op.kernels->of[context->activation];
    f.identity = &f.op.kernels->of[ABN_IDENTITY];
    if (inplace) f.escape = abn_escape_rule_of(context->activation, context->activation_param, x->dtype);
    if (context->guard.count > 0 || context->keep == ABN_KEEP_XHAT) f.op.apply_use |= 1 << XHAT_SCALE | 1 << XHAT_SHIFT;
    if (training) {
        f.op.begin = abn_moments_begin;
        f.op.sums = abn_moments_sums;
        f.op.finish = finish;
    } else {
        f.op.begin = begin_given;
    }
    if (f.escape.escapes) f.escaped = calloc((size_t)machine->threads, sizeof *f.escaped);
    if (f.escape.escapes && f.escaped == NULL)
        status = ABN_NO_MEMORY;
    else {
        status = abn_walk(&f.op);
        if (f.escape.escapes) {
            const abn_status gathered = abn_escapes_gather(f.escaped, machine->threads, x->channels, &context->escapes);
            if (status == ABN_OK) status = gathered;
            free(f.escaped);
        }
    }
    abn_operation_close(&f.op);
    return status;
}

/* A context may serve many threads: what it holds is read only. */
static void begin_from_x(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    set_constants((forward_operation *)op, channel, channels);
}

static void begin_from_xhat(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    const abn_norm *norm = &((forward_operation *)op)->context->norm;
    for (ptrdiff_t c = channel; c < channel + channels; c++) {
        abn_set_constant(op, ABN_SCALE, c, norm->weight[c]);
        abn_set_constant(op, ABN_SHIFT, c, norm->bias[c]);
    }
}

abn_status abn_recompute(const abn_machine *machine, const abn_context *context, const abn_batch *z) {
    abn_context same = *context;
    same.keep = ABN_KEEP_X; /* whatever is kept is only read */
    forward_operation f = {
        .op = {.source = context->kept,
               .destination = *z,
               .arrays = 2,
               .apply = apply_beside,
               .begin = context->keep == ABN_KEEP_XHAT ? begin_from_xhat : begin_from_x,
               .apply_use = AFFINE},
        .context = &same,
    };
    abn_status status = abn_operation_open(&f.op, machine, 0);
    if (status != ABN_OK) return status;
    f.kernels = &f.op.kernels->of[context->activation];
    status = abn_walk(&f.op);
    abn_operation_close(&f.op);
    return status;
}
