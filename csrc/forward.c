/* x -> z: moments, constants, and one pass that writes z (and xhat where it is to be kept). */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "abn.h"
#include "activations.h"
#include "escapes.h"
#include "moments.h"
#include "parts.h"

/* The forward has no use for the backward's constants. Their memory holds those that give xhat instead of y.
 * FROM_XHAT_CENTRE: z from a stored xhat, which has no centre; nothing is ever written there. */
enum {
    XHAT_SCALE = ABN_WEIGHT,
    XHAT_SHIFT = ABN_BIAS,
    FROM_XHAT_CENTRE = ABN_DY_FACTOR,
};

enum { PIECE = 1024 }; /* elements looked through at a time for ones to escape */

typedef struct {
    abn_operation op; /* first: the steps cast back */
    abn_context *context;
    const abn_activation_kernels *kernels;
    const abn_activation_kernels *identity;
    double escape_below;                 /* elements whose stored z is below it are escaped, and what overflows */
    double escape_y_below, escape_above; /* only elements with such y can be among them */
    abn_escape_list *escaped;            /* one per thread; NULL: no element can be */
} forward_operation;

/* centre is mean in the kernels' type; what that rounding took is put into the shift. */
static void set_constants(forward_operation *f, ptrdiff_t channel, ptrdiff_t channels) {
    const abn_norm *norm = &f->context->norm;
    const abn_dtype dtype = f->op.source.dtype;
    const int from_xhat = f->context->keep == ABN_KEEP_XHAT;
    for (ptrdiff_t c = channel; c < channel + channels; c++) {
        const double centre = abn_round_to_real(dtype, norm->mean[c]);
        const double inv_std = norm->inv_std[c], lost = isfinite(centre) ? centre - norm->mean[c] : 0;
        const double scale = norm->weight[c] * inv_std, shift = norm->bias[c] + lost * inv_std * norm->weight[c];
        abn_set_constant(&f->op, ABN_CENTRE, c, centre);
        abn_set_constant(&f->op, ABN_SCALE, c, from_xhat ? norm->weight[c] : scale);
        abn_set_constant(&f->op, ABN_SHIFT, c, from_xhat ? norm->bias[c] : shift);
        abn_set_constant(&f->op, XHAT_SCALE, c, inv_std);
        abn_set_constant(&f->op, XHAT_SHIFT, c, lost * inv_std);
        if (!abn_constant_fits(dtype, scale) || !abn_constant_fits(dtype, inv_std) ||
            !abn_centre_fits(dtype, norm->mean[c], norm->var[c], f->op.per_channel))
            f->op.kinds[c] |= ABN_EXACT;
    }
}

static void set_inv_std(const abn_norm *norm, ptrdiff_t channel, ptrdiff_t channels) {
    for (ptrdiff_t c = channel; c < channel + channels; c++) norm->inv_std[c] = 1 / sqrt(norm->var[c] + norm->eps);
}

static int finish(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first, const double *second,
                  int again) {
    forward_operation *f = (forward_operation *)op;
    const abn_moments moments = {f->context->norm.mean, f->context->norm.var, f->context->norm.eps};
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
    constants.escape_below = f->escape_below;
    return constants;
}

static void write_xhat(const forward_operation *f, abn_tile tile, abn_constants constants, abn_input to) {
    constants.of[ABN_SCALE] = constants.of[XHAT_SCALE];
    constants.of[ABN_SHIFT] = constants.of[XHAT_SHIFT];
    tile.destination = (void *)(uintptr_t)to.data;
    tile.destination_stride = to.stride;
    f->identity->apply(&tile, &constants);
}

/* ---- elements that z does not tell --------------------------------------------------------------------- */

static double xhat_of(const forward_operation *f, ptrdiff_t channel, double x) {
    return (x - f->context->norm.mean[channel]) * f->context->norm.inv_std[channel];
}

static int is_lost(const forward_operation *f, double z) {
    return z < abn_round_to_real(f->op.source.dtype, f->escape_below) || isinf(z);
}

/* One piece of one row of a part: looks at z as it will be stored. */
static void escape_from_piece(const forward_operation *f, const abn_tile *piece, const abn_constants *constants,
                              const abn_part *part, ptrdiff_t row, ptrdiff_t column, abn_escape_list *list) {
    const abn_dtype dtype = f->op.source.dtype;
    double z[PIECE]; /* of any dtype */
    abn_tile to_stack = *piece;
    to_stack.destination = z;
    f->kernels->apply(&to_stack, constants);
    for (ptrdiff_t i = 0; i < piece->length; i++) {
        if (!is_lost(f, abn_load_element(dtype, abn_at(&f->op, z, 0, 0, i)))) continue;
        const abn_element at = abn_element_of(&f->op, &part->span, row, column + i);
        const double x = abn_load_element(dtype, abn_at(&f->op, piece->source.data, 0, 0, i));
        abn_escape_push(list, (abn_escape){at.channel, at.position, xhat_of(f, at.channel, x)});
    }
}

static int may_escape(const forward_operation *f, const abn_tile *piece, const abn_constants *constants) {
    return f->op.kernels->any_outside(piece, constants, f->escape_y_below, f->escape_above);
}

static void collect_escapes(const forward_operation *f, const abn_part *part, const abn_constants *constants,
                            abn_escape_list *list) {
    const abn_input source = part->tile.source;
    for (ptrdiff_t row = 0; row < part->tile.rows; row++) {
        for (ptrdiff_t column = 0; column < part->tile.length; column += PIECE) {
            const int rows = f->op.layout == ABN_ROWS;
            const abn_constants at = abn_constants_moved(&f->op, constants, rows ? row : column);
            const ptrdiff_t left = part->tile.length - column;
            abn_tile piece = part->tile;
            piece.source.data = abn_at(&f->op, source.data, source.stride, row, column);
            piece.rows = 1;
            piece.length = left < PIECE ? left : PIECE;
            if (may_escape(f, &piece, &at)) escape_from_piece(f, &piece, &at, part, row, column, list);
        }
    }
}

/* Where the kernels look: only there z can be lost. Rounding makes both limits a little wider. */
static void set_escapes(forward_operation *f, int training) {
    const abn_context *context = f->context;
    const abn_activation activation = context->activation;
    const abn_escape_rule rule = abn_escape_rule_of(activation, context->activation_param, f->op.source.dtype);
    const double most = 0.99 * 65504; /* of float16 */
    f->escape_below = rule.escape_below;
    f->escape_y_below = rule.flat_below + 0.5;
    f->escape_above = INFINITY;
    /* In training abn_guard_channels has seen to what overflows. The other types reach 3e38. */
    if (training || f->op.source.dtype != ABN_FLOAT16) return;
    f->escape_y_below = fmax(f->escape_y_below, abn_activation_inverse(activation, context->activation_param, -most));
    f->escape_above = most;
}

/* ---- the second pass ----------------------------------------------------------------------------------- */

/* One part in double, element by element; z.data, xhat.data and list may be NULL. */
static void exact_part(const forward_operation *f, const abn_part *part, abn_input z, abn_input xhat,
                       abn_escape_list *list) {
    const abn_operation *op = &f->op;
    const abn_dtype dtype = op->source.dtype;
    const abn_context *context = f->context;
    const abn_input source = part->tile.source;
    for (ptrdiff_t row = 0; row < part->tile.rows; row++) {
        for (ptrdiff_t column = 0; column < part->tile.length; column++) {
            const abn_element at = abn_element_of(op, &part->span, row, column);
            const double x = abn_load_element(dtype, abn_at(op, source.data, source.stride, row, column));
            const double normal = xhat_of(f, at.channel, x);
            const double y = context->norm.weight[at.channel] * normal + context->norm.bias[at.channel];
            void *to = z.data ? abn_at(op, z.data, z.stride, row, column) : NULL;
            if (to)
                abn_store_element(dtype, to, abn_activation_value(context->activation, context->activation_param, y));
            if (xhat.data) abn_store_element(dtype, abn_at(op, xhat.data, xhat.stride, row, column), normal);
            if (list && is_lost(f, abn_load_element(dtype, to)))
                abn_escape_push(list, (abn_escape){at.channel, at.position, normal});
        }
    }
}

/* The neighbour above or below of a float16 or bfloat16. */
static uint16_t next_half(uint16_t half, int up) {
    if ((half & 0x7fff) == 0) return up ? 0x0001 : 0x8001;
    return (uint16_t)((half < 0x8000) == up ? half + 1 : half - 1);
}

/* The backward of a guarded channel takes the side of zero that y is on from xhat. A half type's xhat may be rounded
 * across; its neighbour on the other side of the true xhat has the sign that z has. */
static void settle_signs(const forward_operation *f, const abn_part *part) {
    const abn_operation *op = &f->op;
    const abn_dtype dtype = op->source.dtype;
    if (abn_dtype_size(dtype) != sizeof(uint16_t) || f->context->activation == ABN_IDENTITY) return;
    for (ptrdiff_t row = 0; row < part->tile.rows; row++) {
        for (ptrdiff_t column = 0; column < part->tile.length; column++) {
            const ptrdiff_t channel = abn_element_of(op, &part->span, row, column).channel;
            const double weight = f->context->norm.weight[channel], bias = f->context->norm.bias[channel];
            const double z =
                abn_load_element(dtype, abn_at(op, part->tile.destination, part->tile.destination_stride, row, column));
            uint16_t *xhat = abn_at(op, part->xhat.data, part->xhat.stride, row, column);
            const double y = weight * abn_load_element(dtype, xhat) + bias;
            const double margin = fabs(bias) * FLT_EPSILON; /* the kernels' y is a float */
            if (z == 0 || weight == 0 || !isfinite(y) || (z < 0 ? -y : y) > margin) continue;
            *xhat = next_half(*xhat, (z > 0) == (weight > 0));
        }
    }
}

/* z over x. Where z will not tell xhat, that goes to its side buffer before x is gone. */
static void apply_inplace(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                          int thread) {
    forward_operation *f = (forward_operation *)op;
    abn_escape_list *list = f->escaped ? &f->escaped[thread] : NULL;
    for (abn_part part = {0}; abn_next_part(op, &f->context->guard, tile, span, constants, &part);) {
        const abn_constants of_part = with_activation(f, part.constants);
        const abn_input z = {part.tile.destination, part.tile.destination_stride};
        const int guarded = part.kind & ABN_GUARDED;
        if (part.kind & ABN_EXACT) {
            exact_part(f, &part, z, part.xhat, guarded ? NULL : list);
        } else {
            if (guarded)
                write_xhat(f, part.tile, of_part, part.xhat);
            else if (list)
                collect_escapes(f, &part, &of_part, list);
            f->kernels->apply(&part.tile, &of_part);
        }
        if (guarded) settle_signs(f, &part);
    }
}

/* z into a buffer of its own, from x. */
static void apply_beside(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                         int thread) {
    const forward_operation *f = (const forward_operation *)op;
    (void)thread;
    for (abn_part part = {0}; abn_next_part(op, &f->context->guard, tile, span, constants, &part);) {
        const abn_constants of_part = with_activation(f, part.constants);
        if (part.kind & ABN_EXACT)
            exact_part(f, &part, (abn_input){part.tile.destination, part.tile.destination_stride}, (abn_input){0},
                       NULL);
        else
            f->kernels->apply(&part.tile, &of_part);
    }
}

/* xhat over x, then z from xhat as it was stored, which is what abn_recompute will find. */
static void apply_xhat(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                       int thread) {
    const forward_operation *f = (const forward_operation *)op;
    abn_constants from_xhat = with_activation(f, *constants);
    (void)thread;
    for (abn_part part = {0}; abn_next_part(op, &f->context->guard, tile, span, constants, &part);) {
        if (part.kind & ABN_EXACT)
            exact_part(f, &part, (abn_input){0}, part.tile.source, NULL);
        else
            write_xhat(f, part.tile, part.constants, part.tile.source);
    }
    from_xhat.of[ABN_CENTRE] = constants->of[FROM_XHAT_CENTRE];
    f->kernels->apply(tile, &from_xhat);
}

enum {
    AFFINE = 1 << ABN_CENTRE | 1 << ABN_SCALE | 1 << ABN_SHIFT,
    OF_XHAT = 1 << XHAT_SCALE | 1 << XHAT_SHIFT,
};

/* The walk, and with it the list of what cannot be had back from z. */
static abn_status walk_with_escapes(forward_operation *f, int threads) {
    abn_context *context = f->context;
    if (f->escape_y_below == -INFINITY && f->escape_above == INFINITY) return abn_walk(&f->op);
    f->escaped = calloc((size_t)threads, sizeof *f->escaped);
    if (f->escaped == NULL) return ABN_NO_MEMORY;
    const abn_status status = abn_walk(&f->op);
    const abn_status gathered = abn_escapes_gather(f->escaped, threads, context->kept.channels, &context->escapes);
    free(f->escaped);
    return status == ABN_OK ? gathered : status;
}

abn_status abn_forward(const abn_machine *machine, const abn_batch *x, const abn_batch *z, abn_context *context,
                       int training) {
    static void (*const apply[])(abn_operation *, const abn_tile *, const abn_span *, const abn_constants *, int) = {
        [ABN_KEEP_Z] = apply_inplace, [ABN_KEEP_X] = apply_beside, [ABN_KEEP_XHAT] = apply_xhat};
    forward_operation f = {
        .op = {.source = *x,
               .destination = *z,
               .arrays = context->keep == ABN_KEEP_Z ? 1 : 2,
               .apply = apply[context->keep],
               .begin = begin_given,
               .sums_use = 1 << ABN_SUMS_CENTRE,
               .apply_use = AFFINE},
        .context = context,
        .escape_y_below = -INFINITY,
        .escape_above = INFINITY,
    };
    abn_status status = abn_operation_open(&f.op, machine, &context->guard);
    if (status != ABN_OK) return status;
    context->kept = *x;
    context->escapes = (abn_escapes){0, NULL, NULL, NULL};
    f.kernels = &f.op.kernels->of[context->activation];
    f.identity = &f.op.kernels->of[ABN_IDENTITY];
    if (context->keep == ABN_KEEP_Z) set_escapes(&f, training);
    if (context->guard.count > 0) f.op.apply_use |= OF_XHAT;
    if (context->keep == ABN_KEEP_XHAT) f.op.apply_use |= OF_XHAT | 1 << FROM_XHAT_CENTRE;
    if (training) {
        f.op.begin = abn_moments_begin;
        f.op.sums = abn_moments_sums;
        f.op.finish = finish;
    }
    status = walk_with_escapes(&f, machine->threads);
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
    abn_status status = abn_operation_open(&f.op, machine, NULL);
    if (status != ABN_OK) return status;
    f.kernels = &f.op.kernels->of[context->activation];
    status = abn_walk(&f.op);
    abn_operation_close(&f.op);
    return status;
}
