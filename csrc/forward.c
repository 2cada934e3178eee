/* x -> z: moments, constants, and one pass that writes z (and xhat where it is to be kept).
 *
 * In that pass tiles of the activations of straight pieces go through one kernel; what is curved or may have to be
 * escaped goes piece by piece through arrays in the nearest cache. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "abn.h"
#include "activations.h"
#include "escapes.h"
#include "guard.h"
#include "moments.h"
#include "parts.h"
#include "sides.h"

/* The forward has no use for the backward's constants. Their memory holds those that give xhat instead of y.
 * FROM_XHAT_CENTRE: z from a stored xhat, which has no centre; nothing is ever written there. */
enum {
    XHAT_SCALE = ABN_WEIGHT,
    XHAT_SHIFT = ABN_BIAS,
    FROM_XHAT_CENTRE = ABN_DY_FACTOR,
};

typedef struct {
    abn_operation op; /* first: the steps cast back */
    abn_context *context;
    const abn_activation_kernels *identity, *straight; /* of whole tiles; straight is NULL: piece by piece */
    abn_escape_rule rule;
    abn_escape_list *escaped; /* one per thread; NULL: no element can be */
} forward_operation;

/* ---- constants ------------------------------------------------------------------------------------------ */

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

/* Those that come with the arguments. */
static void set_given_constants(forward_operation *f) {
    const abn_context *context = f->context;
    if (context->residual.data) f->op.apply_use |= 1 << ABN_RESIDUAL_LIMIT;
    if (context->channel_param) f->op.apply_use |= 1 << ABN_PARAM;
    for (ptrdiff_t c = 0; c < f->op.source.channels; c++) {
        const int told = context->keep == ABN_KEEP_Z && !(f->op.kinds[c] & ABN_GUARDED);
        const double limit =
            told ? abn_residual_limit(f->op.source.dtype, context->norm.weight[c], context->norm.bias[c]) : INFINITY;
        if (context->residual.data) abn_set_constant(&f->op, ABN_RESIDUAL_LIMIT, c, limit);
        if (context->channel_param) abn_set_constant(&f->op, ABN_PARAM, c, context->channel_param[c]);
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

static double xhat_of(const forward_operation *f, ptrdiff_t channel, double x) {
    return (x - f->context->norm.mean[channel]) * f->context->norm.inv_std[channel];
}

/* ---- piece by piece ------------------------------------------------------------------------------------- */

static int lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
    return __builtin_ctzll(bits);
#else
    int i = 0;
    while (!(bits >> i & 1)) i++;
    return i;
#endif
}

/* x is still there. */
static void escape(const forward_operation *f, const abn_part *part, const abn_piece *piece, const uint64_t *lost,
                   abn_escape_list *list) {
    for (ptrdiff_t word = 0; word * 64 < piece->tile.length; word++) {
        for (uint64_t bits = lost[word]; bits; bits &= bits - 1) {
            const ptrdiff_t i = word * 64 + lowest_bit(bits);
            const ptrdiff_t channel = abn_element_of(&f->op, &part->span, piece->row, piece->column + i).channel;
            const double x = abn_element_from(&f->op, piece->tile.source, i);
            abn_escape_push(list, (abn_escape){piece->index + i, xhat_of(f, channel, x)});
        }
    }
}

/* x -> bench->y. list: where to note what z will not tell of it; NULL where z need not tell. */
static void enter(const forward_operation *f, const abn_part *part, const abn_piece *piece, abn_escape_list *list,
                  abn_bench *bench) {
    const abn_piece_kernels *kernels = &f->op.kernels->piece;
    const void *x = piece->tile.source.data, *residual = piece->tile.residual.data;
    const ptrdiff_t n = piece->tile.length;
    if (!list) {
        kernels->normalize(x, n, &piece->constants, bench->y);
        if (residual) kernels->add(residual, n, bench->y);
        return;
    }
    if (kernels->look(x, residual, n, &piece->constants, &f->rule, bench->y, bench->sides, bench->lost))
        escape(f, part, piece, bench->lost, list);
    if (f->context->sides) abn_sides_put(f->context->sides, piece->index, bench->sides, n);
}

/* The neighbour above or below of a float16 or bfloat16. */
static uint16_t next_half(uint16_t half, int up) {
    if ((half & 0x7fff) == 0) return up ? 0x0001 : 0x8001;
    return (uint16_t)((half < 0x8000) == up ? half + 1 : half - 1);
}

/* Has the activation two slopes at zero, and the storage type so few digits that xhat may be rounded across? */
static int has_signs(const forward_operation *f) {
    const abn_activation activation = f->context->activation;
    const int has_kink = activation == ABN_LEAKY_RELU || activation == ABN_PRELU || activation == ABN_RELU ||
                         activation == ABN_ELU || activation == ABN_SELU;
    return has_kink && abn_dtype_size(f->op.source.dtype) == sizeof(uint16_t);
}

/* The backward of a guarded channel takes the side of zero that y is on from xhat. If that was rounded across, its
 * neighbour on the other side of the true xhat has the sign that y had. */
static void settle_sign(const forward_operation *f, const abn_piece *piece, ptrdiff_t channel, ptrdiff_t i, double y) {
    const abn_operation *op = &f->op;
    const abn_norm *norm = &f->context->norm;
    const double weight = norm->weight[channel];
    const double bias = norm->bias[channel] + abn_element_from(op, piece->tile.residual, i);
    uint16_t *xhat = abn_at(op, piece->xhat.data, 0, 0, i);
    const double rounded = weight * abn_load_element(op->source.dtype, xhat) + bias;
    const double margin = fabs(bias) * FLT_EPSILON; /* the kernels' y is a float */
    if (y == 0 || weight == 0 || !isfinite(rounded) || (y < 0 ? -rounded : rounded) > margin) return;
    *xhat = next_half(*xhat, (y > 0) == (weight > 0));
}

static void settle_signs(const forward_operation *f, const abn_part *part, const abn_piece *piece,
                         const abn_bench *bench) {
    for (ptrdiff_t i = 0; i < piece->tile.length; i++) {
        const ptrdiff_t channel = abn_element_of(&f->op, &part->span, piece->row, piece->column + i).channel;
        settle_sign(f, piece, channel, i, ((const float *)bench->y)[i]);
    }
}

/* After the first `done` elements. list: NULL where z need not tell. */
static void apply_to_pieces(const forward_operation *f, const abn_part *part, const abn_constants *constants,
                            ptrdiff_t done, abn_escape_list *list) {
    const abn_operation *op = &f->op;
    const int settle = part->kind & ABN_GUARDED && has_signs(f);
    const int is_real = abn_dtype_size(op->source.dtype) == abn_real_size(op->source.dtype);
    const ptrdiff_t length = part->tile.length;
    abn_part moved = *part;
    abn_bench bench;
    moved.constants = *constants;
    for (abn_piece piece = {.row = done / length, .next = done % length}; abn_next_piece(op, &moved, &piece);) {
        const ptrdiff_t n = piece.tile.length;
        enter(f, part, &piece, list, &bench);
        if (settle) settle_signs(f, part, &piece, &bench);
        /* whole vectors of the kernels' own type need no way round */
        void *z = is_real && n % ABN_PADDING == 0 ? piece.tile.destination.data : bench.y;
        op->set->stages->of[f->context->activation].value(bench.y, z, n,
                                                          abn_piece_param(op, f->context, &piece, &bench));
        if (z == bench.y) op->kernels->piece.narrow(bench.y, n, piece.tile.destination.data);
    }
}

/* One element in double. */
static void exact_element(const forward_operation *f, const abn_piece *piece, abn_element at, ptrdiff_t i,
                          abn_escape_list *list) {
    const abn_operation *op = &f->op;
    const abn_context *context = f->context;
    const abn_dtype dtype = op->source.dtype;
    const double xhat = xhat_of(f, at.channel, abn_element_from(op, piece->tile.source, i));
    const double weight = context->norm.weight[at.channel], bias = context->norm.bias[at.channel];
    const double residual = abn_element_from(op, piece->tile.residual, i), y = weight * xhat + bias + residual;
    if (context->keep == ABN_KEEP_XHAT) {
        abn_store_element(dtype, abn_at(op, piece->tile.source.data, 0, 0, i), xhat);
        return;
    }
    void *to = abn_at(op, piece->tile.destination.data, 0, 0, i);
    abn_store_element(dtype, to, abn_activation_value(context->activation, abn_param_at(context, at.channel), y));
    if (piece->xhat.data) {
        abn_store_element(dtype, abn_at(op, piece->xhat.data, 0, 0, i), xhat);
        if (has_signs(f)) settle_sign(f, piece, at.channel, i, y);
    } else if (context->keep == ABN_KEEP_Z) {
        const uint64_t left = y < f->rule.minimum;
        if (list && (abn_is_escaped(f->rule, y) || isinf(abn_load_element(dtype, to)) ||
                     fabs(residual) > abn_residual_limit(dtype, weight, bias)))
            abn_escape_push(list, (abn_escape){piece->index + i, xhat});
        if (context->sides) abn_sides_put(context->sides, piece->index + i, &left, 1);
    }
}

/* z, or xhat over x (ABN_KEEP_XHAT). */
static void exact_part(const forward_operation *f, const abn_part *part, abn_escape_list *list) {
    for (abn_piece piece = {0}; abn_next_piece(&f->op, part, &piece);)
        for (ptrdiff_t i = 0; i < piece.tile.length; i++)
            exact_element(f, &piece, abn_element_of(&f->op, &part->span, piece.row, piece.column + i), i, list);
}

/* ---- the second pass ------------------------------------------------------------------------------------ */

static void write_xhat(const forward_operation *f, abn_tile tile, abn_constants constants, abn_input to) {
    constants.of[ABN_SCALE] = constants.of[XHAT_SCALE];
    constants.of[ABN_SHIFT] = constants.of[XHAT_SHIFT];
    tile.destination = (abn_output){(void *)(uintptr_t)to.data, to.stride};
    f->identity->apply(&tile, &constants);
}

/* Returns how many elements are done: there may be residuals beside which z has to be told. */
static ptrdiff_t apply_straight(const forward_operation *f, const abn_tile *tile, const abn_constants *constants) {
    if (f->op.residual.data) return f->straight->join(tile, constants);
    f->straight->apply(tile, constants);
    return tile->rows * tile->length;
}

static void apply(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                  int thread) {
    forward_operation *f = (forward_operation *)op;
    const abn_keep keep = f->context->keep;
    for (abn_part part = {0}; abn_next_part(op, &f->context->guard, tile, span, constants, &part);) {
        const int guarded = part.kind & ABN_GUARDED, exact = part.kind & ABN_EXACT;
        abn_escape_list *list = f->escaped && !guarded ? &f->escaped[thread] : NULL;
        abn_constants of_part = part.constants;
        of_part.param = f->context->activation_param;
        if (exact)
            exact_part(f, &part, list);
        else if (guarded)
            write_xhat(f, part.tile, of_part, part.xhat);
        else if (keep == ABN_KEEP_XHAT)
            write_xhat(f, part.tile, of_part, part.tile.source);
        /* z from xhat as it was stored, which is what abn_recompute will find */
        if (keep == ABN_KEEP_XHAT) of_part.of[ABN_CENTRE] = of_part.of[FROM_XHAT_CENTRE];
        if (exact && keep != ABN_KEEP_XHAT) continue;
        const ptrdiff_t all = part.tile.rows * part.tile.length;
        ptrdiff_t done = 0;
        if (f->straight && !(guarded && has_signs(f))) done = apply_straight(f, &part.tile, &of_part);
        if (done < all) apply_to_pieces(f, &part, &of_part, done, list);
    }
}

enum {
    AFFINE = 1 << ABN_CENTRE | 1 << ABN_SCALE | 1 << ABN_SHIFT,
    OF_XHAT = 1 << XHAT_SCALE | 1 << XHAT_SHIFT | 1 << FROM_XHAT_CENTRE,
};

/* Which kernels there are to use; after abn_operation_open. */
static void choose_kernels(forward_operation *f) {
    const abn_activation_kernels *of = f->op.kernels->of;
    const abn_activation_kernels *whole = &of[f->context->activation];
    const int may_escape = f->context->keep == ABN_KEEP_Z && abn_can_escape(f->rule);
    f->identity = &of[ABN_IDENTITY];
    f->straight = may_escape || !whole->apply ? NULL : whole;
    set_given_constants(f);
}

/* The walk, and with it the list of what cannot be had back from z. */
static abn_status walk_with_escapes(forward_operation *f, int threads) {
    abn_context *context = f->context;
    const abn_batch *kept = &context->kept;
    if (context->keep != ABN_KEEP_Z || (f->straight && !context->residual.data)) return abn_walk(&f->op);
    f->escaped = calloc((size_t)threads, sizeof *f->escaped);
    if (f->escaped == NULL) return ABN_NO_MEMORY;
    const abn_status status = abn_walk(&f->op);
    const int64_t elements = (int64_t)kept->batch * kept->channels * kept->spatial;
    const abn_status gathered = abn_escapes_gather(f->escaped, threads, elements, &context->escapes);
    free(f->escaped);
    return status == ABN_OK ? gathered : status;
}

abn_status abn_forward(const abn_machine *machine, const abn_batch *x, const abn_batch *z, abn_context *context,
                       int training) {
    context->kept = *x;
    context->escapes = (abn_escapes){0, NULL, NULL};
    forward_operation f = {
        .op = {.source = *x,
               .destination = *z,
               .residual = context->residual,
               .arrays = (context->keep == ABN_KEEP_Z ? 1 : 2) + (context->residual.data != NULL),
               .apply = apply,
               .begin = begin_given,
               .sums_use = 1 << ABN_SUMS_CENTRE,
               .apply_use = AFFINE},
        .context = context,
        .rule = abn_escape_rule_for(context, training),
    };
    abn_status status = abn_operation_open(&f.op, machine, &context->guard);
    if (status != ABN_OK) return status;
    choose_kernels(&f);
    if (context->guard.count > 0 || context->keep == ABN_KEEP_XHAT) f.op.apply_use |= OF_XHAT;
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
               .residual = context->residual,
               .arrays = 2 + (context->residual.data != NULL),
               .apply = apply,
               .begin = context->keep == ABN_KEEP_XHAT ? begin_from_xhat : begin_from_x,
               .apply_use = AFFINE},
        .context = &same,
    };
    abn_status status = abn_operation_open(&f.op, machine, NULL);
    if (status != ABN_OK) return status;
    choose_kernels(&f);
    status = abn_walk(&f.op);
    abn_operation_close(&f.op);
    return status;
}
