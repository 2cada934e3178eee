/* x -> z: moments, constants, and one pass that writes z (and xhat where it is to be kept).
 *
 * In that pass cheap activations (ABN_CHEAP) have kernels for whole tiles. The others, and tiles with elements that may
 * have to be escaped, go piece by piece through arrays in the nearest cache. */
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
    FROM_XHAT_CENTRE = ABN_DX_FACTOR,
};

typedef struct {
    abn_operation op; /* first: the steps cast back */
    abn_context *context;
    const abn_tile_kernels *identity, *tile_kernels; /* of whole tiles; tile_kernels is NULL: piece by piece */
    abn_escape_rule rule;
    abn_escape_list *escaped; /* one per thread; NULL: no element can be */
    double largest_xhat;      /* with given statistics: that the storage type holds; else INFINITY */
    int again;                /* abn_recompute: what is kept is only read */
} forward_operation;

/* ---- constants ------------------------------------------------------------------------------------------ */

/* No shift is -0.0, nor then a y that is 0: the backward takes -0.0 for a z of a y below 0. */
static void set_shift(forward_operation *f, ptrdiff_t channel, double shift) {
    abn_set_constant(&f->op, ABN_SHIFT, channel, shift + 0.0);
}

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
        set_shift(f, c, from_xhat ? norm->bias[c] : shift);
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

static abn_constants constants_of_xhat(abn_constants constants) {
    constants.of[ABN_SCALE] = constants.of[XHAT_SCALE];
    constants.of[ABN_SHIFT] = constants.of[XHAT_SHIFT];
    return constants;
}

/* From xhat as it was stored, where it is: abn_recompute will find that. */
static abn_constants constants_of_z(const forward_operation *f, abn_constants constants) {
    if (f->context->keep == ABN_KEEP_XHAT) constants.of[ABN_CENTRE] = constants.of[FROM_XHAT_CENTRE];
    return constants;
}

static double xhat_of(const forward_operation *f, ptrdiff_t channel, double x) {
    return (x - f->context->norm.mean[channel]) * f->context->norm.inv_std[channel];
}

/* ---- piece by piece ------------------------------------------------------------------------------------- */

/* x is still there. */
static void escape(const forward_operation *f, const abn_part *part, const abn_piece *piece, const uint64_t *lost,
                   abn_escape_list *list) {
    for (ptrdiff_t word = 0; word * 64 < piece->tile.length; word++) {
        for (uint64_t bits = lost[word]; bits; bits &= bits - 1) {
            const ptrdiff_t i = word * 64 + abn_lowest_bit(bits);
            const ptrdiff_t channel = abn_element_of(&f->op, &part->span, piece->row, piece->column + i).channel;
            const double x = abn_element_from(&f->op, piece->tile.source, i);
            abn_escape_push(list, (abn_escape){piece->index + i, xhat_of(f, channel, x)});
        }
    }
}

/* Is xhat to be had back from z? */
static int z_tells(const forward_operation *f, const abn_part *part) {
    return f->escaped && f->context->keep == ABN_KEEP_Z && !(part->kind & ABN_GUARDED);
}

/* Has the activation two slopes at zero, and the storage type so few digits that xhat may be rounded across? */
static int has_signs(const forward_operation *f) {
    return abn_activation_table[f->context->activation].traits & ABN_KINKED &&
           abn_dtype_size(f->op.source.dtype) == sizeof(uint16_t);
}

static void settle_sign(const forward_operation *f, const abn_piece *piece, ptrdiff_t channel, ptrdiff_t i, double y) {
    const abn_operation *op = &f->op;
    const abn_norm *norm = &f->context->norm;
    const double bias = norm->bias[channel] + abn_element_from(op, piece->tile.residual, i);
    abn_settle_sign(op->source.dtype, abn_at(op, piece->xhat.data, 0, 0, i), norm->weight[channel], bias, y);
}

static int settles(const forward_operation *f, const abn_part *part) {
    return part->kind & ABN_GUARDED && has_signs(f);
}

static void settle_signs(const forward_operation *f, const abn_part *part, const abn_piece *piece,
                         const abn_bench *bench) {
    for (ptrdiff_t i = 0; i < piece->tile.length; i++) {
        const ptrdiff_t channel = abn_element_of(&f->op, &part->span, piece->row, piece->column + i).channel;
        settle_sign(f, piece, channel, i, ((const float *)bench->y)[i]);
    }
}

static void store_xhat(const forward_operation *f, const abn_piece *piece, ptrdiff_t i, double xhat, const void *to,
                       abn_escape_list *list) {
    if (fabs(xhat) > f->largest_xhat) abn_escape_push(list, (abn_escape){piece->index + i, xhat});
    abn_store_element(f->op.source.dtype, abn_at(&f->op, to, 0, 0, i), xhat);
}

/* The piece's xhat, over x or beside it. What the storage type does not hold is escaped. */
static void keep_xhat(const forward_operation *f, const abn_part *part, const abn_piece *piece, abn_escape_list *list,
                      abn_bench *bench) {
    const abn_operation *op = &f->op;
    const abn_piece_kernels *kernels = &op->kernels->piece;
    const ptrdiff_t n = piece->tile.length;
    const void *x = piece->tile.source.data, *to = part->kind & ABN_GUARDED ? piece->xhat.data : x;
    if (part->kind & ABN_EXACT) {
        for (ptrdiff_t i = 0; i < n; i++) {
            const ptrdiff_t channel = abn_element_of(op, &part->span, piece->row, piece->column + i).channel;
            store_xhat(f, piece, i, xhat_of(f, channel, abn_element_from(op, piece->tile.source, i)), to, list);
        }
        return;
    }
    const abn_constants constants = constants_of_xhat(piece->constants);
    const abn_escape_rule overflows = {.below = -f->largest_xhat, .above = f->largest_xhat};
    if (kernels->scan(x, NULL, n, &constants, &overflows, bench->y, bench->sides, bench->lost))
        escape(f, part, piece, bench->lost, list);
    kernels->narrow(bench->y, n, (void *)(uintptr_t)to);
}

static void put_y(const forward_operation *f, const abn_part *part, const abn_piece *piece, abn_escape escaped,
                  abn_bench *bench) {
    const ptrdiff_t i = (ptrdiff_t)(escaped.index - piece->index);
    const ptrdiff_t channel = abn_element_of(&f->op, &part->span, piece->row, piece->column + i).channel;
    const abn_norm *norm = &f->context->norm;
    abn_set_real(&f->op, bench->y, i, norm->weight[channel] * escaped.xhat + norm->bias[channel]);
}

/* Elements that xhat as it was stored does not tell: of the list from `first` on, or of the context. */
static void put_escapes(const forward_operation *f, const abn_part *part, const abn_piece *piece,
                        const abn_escape_list *list, ptrdiff_t first, abn_bench *bench) {
    const abn_escapes *escapes = &f->context->escapes;
    const int64_t end = piece->index + piece->tile.length;
    for (ptrdiff_t e = first; list && e < list->count; e++) put_y(f, part, piece, list->entries[e], bench);
    for (ptrdiff_t e = abn_escapes_from(escapes, piece->index); e < escapes->count && escapes->index[e] < end; e++)
        put_y(f, part, piece, (abn_escape){escapes->index[e], escapes->xhat[e]}, bench);
}

/* y of the piece, and what z will not tell of it. The list's entries from `first` on are of the piece's xhat. */
static void find_y(const forward_operation *f, const abn_part *part, const abn_piece *piece, abn_escape_list *list,
                   ptrdiff_t first, abn_bench *bench) {
    const abn_piece_kernels *kernels = &f->op.kernels->piece;
    const abn_constants constants = constants_of_z(f, piece->constants);
    const void *x = piece->tile.source.data, *residual = piece->tile.residual.data;
    const ptrdiff_t n = piece->tile.length;
    if (z_tells(f, part)) {
        if (kernels->scan(x, residual, n, &constants, &f->rule, bench->y, bench->sides, bench->lost))
            escape(f, part, piece, bench->lost, list);
        if (f->context->sides) abn_sides_put(f->context->sides, piece->index, bench->sides, n);
        return;
    }
    kernels->normalize(x, n, &constants, bench->y);
    if (f->context->keep != ABN_KEEP_Z) put_escapes(f, part, piece, list, first, bench);
    if (residual) kernels->add(residual, n, bench->y);
}

/* After the first `done` elements. */
static void apply_to_pieces(const forward_operation *f, const abn_part *part, ptrdiff_t done, abn_escape_list *list,
                            int keeps_xhat) {
    const abn_operation *op = &f->op;
    const int is_real = abn_dtype_size(op->source.dtype) == abn_real_size(op->source.dtype);
    const ptrdiff_t length = part->tile.length;
    abn_bench bench;
    for (abn_piece piece = {.row = done / length, .next = done % length}; abn_next_piece(op, part, &piece);) {
        const abn_tile *tile = &piece.tile;
        const ptrdiff_t n = tile->length, first = list ? list->count : 0;
        if (keeps_xhat) keep_xhat(f, part, &piece, list, &bench);
        find_y(f, part, &piece, list, first, &bench);
        if (settles(f, part)) settle_signs(f, part, &piece, &bench);
        /* whole vectors of the kernels' own type need no way round */
        void *z = is_real && n % ABN_PADDING == 0 ? tile->destination.data : bench.y;
        op->set->activations->of[f->context->activation].value(bench.y, z, n,
                                                               abn_piece_param(op, f->context, &piece, &bench));
        if (z == bench.y) op->kernels->piece.narrow(bench.y, n, tile->destination.data);
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
    const double residual = abn_element_from(op, piece->tile.residual, i);
    const double y = weight * xhat + bias + residual + 0.0; /* not -0.0: set_shift */
    void *to = abn_at(op, piece->tile.destination.data, 0, 0, i);
    abn_store_element(dtype, to, abn_activation_value(context->activation, abn_param_at(context, at.channel), y));
    if (piece->xhat.data) {
        store_xhat(f, piece, i, xhat, piece->xhat.data, list);
        if (has_signs(f)) settle_sign(f, piece, at.channel, i, y);
    } else if (context->keep == ABN_KEEP_Z) {
        const uint64_t left = y < f->rule.minimum;
        if (list && (abn_is_escaped(f->rule, y) || isinf(abn_load_element(dtype, to)) ||
                     fabs(residual) > abn_residual_limit(dtype, weight, bias)))
            abn_escape_push(list, (abn_escape){piece->index + i, xhat});
        if (context->sides) abn_sides_put(context->sides, piece->index + i, &left, 1);
    }
}

static void exact_part(const forward_operation *f, const abn_part *part, abn_escape_list *list) {
    for (abn_piece piece = {0}; abn_next_piece(&f->op, part, &piece);)
        for (ptrdiff_t i = 0; i < piece.tile.length; i++)
            exact_element(f, &piece, abn_element_of(&f->op, &part->span, piece.row, piece.column + i), i, list);
}

/* ---- the second pass ------------------------------------------------------------------------------------ */

static void write_xhat(const forward_operation *f, const abn_part *part) {
    const abn_input to = part->kind & ABN_GUARDED ? part->xhat : part->tile.source;
    const abn_constants constants = constants_of_xhat(part->constants);
    abn_tile tile = part->tile;
    tile.destination = (abn_output){(void *)(uintptr_t)to.data, to.stride};
    f->identity->apply(&tile, &constants);
}

/* Returns how many elements are done: all, or those before a residual that z does not tell xhat beside. */
static ptrdiff_t apply_whole_tile(const forward_operation *f, const abn_tile *tile, const abn_constants *constants) {
    if (f->op.residual.data) return f->tile_kernels->apply_residual(tile, constants);
    f->tile_kernels->apply(tile, constants);
    return tile->rows * tile->length;
}

static void apply(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                  int thread) {
    forward_operation *f = (forward_operation *)op;
    abn_escape_list *list = f->escaped ? &f->escaped[thread] : NULL;
    const int of_xhat = f->context->keep == ABN_KEEP_XHAT;
    for (abn_part part = {0}; abn_next_part(op, &f->context->guard, tile, span, constants, &part);) {
        const int exact = part.kind & ABN_EXACT, keeps_xhat = of_xhat || part.kind & ABN_GUARDED;
        const int by_piece = keeps_xhat && (exact || f->largest_xhat < INFINITY), writes_xhat = keeps_xhat && !f->again;
        part.constants.param = f->context->activation_param;
        if (exact && !of_xhat) {
            exact_part(f, &part, list);
            continue;
        }
        if (writes_xhat && !by_piece) write_xhat(f, &part);
        const abn_constants of_z = constants_of_z(f, part.constants);
        const int whole = f->tile_kernels && !by_piece && !settles(f, &part);
        const ptrdiff_t done = whole ? apply_whole_tile(f, &part.tile, &of_z) : 0;
        if (done < part.tile.rows * part.tile.length) apply_to_pieces(f, &part, done, list, writes_xhat && by_piece);
    }
}

enum {
    AFFINE = 1 << ABN_CENTRE | 1 << ABN_SCALE | 1 << ABN_SHIFT,
    OF_XHAT = 1 << XHAT_SCALE | 1 << XHAT_SHIFT | 1 << FROM_XHAT_CENTRE,
};

/* Which kernels there are to use; after abn_operation_open. */
static void choose_kernels(forward_operation *f) {
    const abn_tile_kernels *of = f->op.kernels->of;
    const abn_tile_kernels *whole = &of[f->context->activation];
    const int may_escape = f->context->keep == ABN_KEEP_Z && abn_can_escape(f->rule);
    f->identity = &of[ABN_IDENTITY];
    /* abn_recompute puts escapes in place */
    f->tile_kernels = may_escape || f->context->escapes.count > 0 || !whole->apply ? NULL : whole;
    set_given_constants(f);
}

static double largest_xhat(const abn_context *context) {
    return context->statistics_given ? abn_largest_of(context->kept.dtype) : INFINITY;
}

/* The walk, and with it the list of what cannot be had back from z. */
static abn_status walk_with_escapes(forward_operation *f, int threads) {
    abn_context *context = f->context;
    const abn_batch *kept = &context->kept;
    const int z_is_kept = context->keep == ABN_KEEP_Z,
              keeps_xhat = context->keep == ABN_KEEP_XHAT || context->guard.count;
    const int by_z = z_is_kept && (!f->tile_kernels || context->residual.data);
    if (!by_z && !(keeps_xhat && f->largest_xhat < INFINITY)) return abn_walk(&f->op);
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
    context->statistics_given = !training;
    context->escapes = (abn_escapes){0, NULL, NULL};
    forward_operation f = {
        .op = {.source = *x,
               .destination = *z,
               .residual = context->residual,
               .rewrites_source = context->keep == ABN_KEEP_XHAT,
               .mask = context->mask,
               .arrays = (context->keep == ABN_KEEP_Z ? 1 : 2) + (context->residual.data != NULL),
               .apply = apply,
               .begin = begin_given,
               .sums_use = 1 << ABN_SUMS_CENTRE,
               .apply_use = AFFINE},
        .context = context,
        .rule = abn_escape_rule_for(context, training),
        .largest_xhat = largest_xhat(context),
    };
    if (training) {
        f.op.begin = abn_moments_begin;
        f.op.sums = abn_moments_sums;
        f.op.finish = finish;
    }
    abn_status status = abn_operation_open(&f.op, machine, &context->guard);
    if (status != ABN_OK) return status;
    choose_kernels(&f);
    if (context->guard.count > 0 || context->keep == ABN_KEEP_XHAT) f.op.apply_use |= OF_XHAT;
    status = walk_with_escapes(&f, machine->threads);
    abn_operation_close(&f.op);
    return status;
}

static void begin_again(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    set_constants((forward_operation *)op, channel, channels);
}

/* Every part goes through the kernels that abn_forward took for it: which of two NaN an addition passes on is the
 * compiler's choice, kernel by kernel. A context may serve many threads: what it holds is read only. */
abn_status abn_recompute(const abn_machine *machine, const abn_context *context, const abn_batch *z) {
    abn_context same = *context;
    forward_operation f = {
        .op = {.source = context->kept,
               .destination = *z,
               .residual = context->residual,
               .mask = context->mask,
               .arrays = 2 + (context->residual.data != NULL),
               .apply = apply,
               .begin = begin_again,
               .apply_use = AFFINE | OF_XHAT},
        .context = &same,
        .largest_xhat = largest_xhat(context),
        .again = 1,
    };
    abn_status status = abn_operation_open(&f.op, machine, NULL);
    if (status != ABN_OK) return status;
    choose_kernels(&f);
    status = abn_walk(&f.op);
    abn_operation_close(&f.op);
    return status;
}
