/* x -> z: moments, constants, and one pass that writes z, and xhat where it is saved.
 *
 * Cheap activations (ABN_CHEAP) have kernels for whole tiles. Other activations, and tiles with elements that may
 * escape, are computed segment by segment, in arrays in first-level cache. ABN_EXACT channels: forward_exact.c. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "abn.h"
#include "activations.h"
#include "bits.h"
#include "branch_mask.h"
#include "escapes.h"
#include "float_range.h"
#include "forward_exact.h"
#include "guard.h"
#include "moments.h"
#include "walk.h"

/* ---- constants ------------------------------------------------------------------------------------------ */

/* Adding 0.0 turns a shift of -0.0 into 0.0, so that y is never -0.0: backward treats z = -0.0 as y < 0. */
static void set_shift(abn_forward_operation *f, ptrdiff_t channel, double shift) {
    abn_set_constant(&f->op, ABN_SHIFT, channel, shift + 0.0);
}

/* The constants with which kernels compute y and xhat from x:
 *
 *     y    = (x - centre) * scale      + shift         scale      = weight * inv_std
 *     xhat = (x - centre) * xhat_scale + xhat_shift    xhat_scale = inv_std
 *
 * centre is the mean rounded to real; the shifts compensate for the rounding error. With ABN_KEEP_XHAT y is computed
 * from the stored xhat instead: scale = weight, shift = bias. */
static void set_constants(abn_forward_operation *f, ptrdiff_t channel, ptrdiff_t channels) {
    const abn_norm *norm = &f->context->norm;
    const abn_dtype dtype = f->op.source.dtype;
    const int y_from_xhat = f->context->keep == ABN_KEEP_XHAT;
    for (ptrdiff_t c = channel; c < channel + channels; c++) {
        const double centre = abn_round_to_real(dtype, norm->mean[c]);
        const double inv_std = norm->inv_std[c], rounding_error = isfinite(centre) ? centre - norm->mean[c] : 0;
        const double scale = norm->weight[c] * inv_std;
        const double shift = norm->bias[c] + rounding_error * inv_std * norm->weight[c];
        abn_set_constant(&f->op, ABN_CENTRE, c, centre);
        abn_set_constant(&f->op, ABN_SCALE, c, y_from_xhat ? norm->weight[c] : scale);
        set_shift(f, c, y_from_xhat ? norm->bias[c] : shift);
        abn_set_constant(&f->op, ABN_XHAT_SCALE, c, inv_std);
        abn_set_constant(&f->op, ABN_XHAT_SHIFT, c, rounding_error * inv_std);
        if (!abn_constant_fits(dtype, scale) || !abn_constant_fits(dtype, inv_std) ||
            !abn_centre_fits(dtype, norm->mean[c], norm->var[c], f->op.per_channel))
            f->op.channel_flags[c] |= ABN_EXACT;
    }
}

/* The constants that do not depend on the statistics. The limit of the residual is infinite, so that it escapes no
 * element, in channels whose xhat backward does not recover from y or z. */
static void set_fixed_constants(abn_forward_operation *f) {
    const abn_context *context = f->context;
    if (context->residual.data) f->op.apply_constants |= 1 << ABN_RESIDUAL_LIMIT;
    if (context->channel_param) f->op.apply_constants |= 1 << ABN_PARAM;
    for (ptrdiff_t c = 0; c < f->op.source.channels; c++) {
        const int recovers = abn_recovers_xhat(context) && !(f->op.channel_flags[c] & ABN_GUARDED);
        const double limit =
            recovers ? abn_residual_limit(f->op.source.dtype, context->norm.weight[c], context->norm.bias[c])
                     : INFINITY;
        if (context->residual.data) abn_set_constant(&f->op, ABN_RESIDUAL_LIMIT, c, limit);
        if (context->channel_param) abn_set_constant(&f->op, ABN_PARAM, c, context->channel_param[c]);
    }
}

static void set_inv_std(const abn_norm *norm, ptrdiff_t channel, ptrdiff_t channels) {
    for (ptrdiff_t c = channel; c < channel + channels; c++) norm->inv_std[c] = 1 / sqrt(norm->var[c] + norm->eps);
}

static int finish_statistics(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels, const double *first,
                             const double *second, int resumming) {
    abn_forward_operation *f = (abn_forward_operation *)op;
    const abn_moments moments = {f->context->norm.mean, f->context->norm.var, f->context->norm.eps};
    if (abn_moments_finish(op, moments, channel, channels, first, second, resumming)) return 1;
    set_inv_std(&f->context->norm, channel, channels);
    set_constants(f, channel, channels);
    return 0;
}

static void begin_with_given_statistics(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    abn_forward_operation *f = (abn_forward_operation *)op;
    set_inv_std(&f->context->norm, channel, channels);
    set_constants(f, channel, channels);
}

/* Constants with which kernels compute xhat instead of y. */
static abn_constants constants_of_xhat(abn_constants constants) {
    constants.of[ABN_SCALE] = constants.of[ABN_XHAT_SCALE];
    constants.of[ABN_SHIFT] = constants.of[ABN_XHAT_SHIFT];
    return constants;
}

/* With ABN_KEEP_XHAT y is computed from the stored, rounded xhat, so that abn_recompute returns the same z. */
static abn_constants constants_of_y(const abn_forward_operation *f, abn_constants constants) {
    if (f->context->keep == ABN_KEEP_XHAT) constants.of[ABN_CENTRE] = constants.of[ABN_ZERO];
    return constants;
}

/* ---- segment by segment ----------------------------------------------------------------------------------- */

/* Adds the elements whose bits are set in `escaped` to the list. Reads x: call before it is overwritten. */
static void push_escapes(const abn_forward_operation *f, const abn_channel_run *run, const abn_segment *segment,
                         const uint64_t *escaped, abn_escape_list *list) {
    for (ptrdiff_t word = 0; word * 64 < segment->tile.length; word++) {
        for (uint64_t bits = escaped[word]; bits; bits &= bits - 1) {
            const ptrdiff_t i = word * 64 + abn_lowest_bit(bits);
            const ptrdiff_t channel = abn_element_of(&f->op, &run->span, segment->row, segment->column + i).channel;
            const double x = abn_element_from(&f->op, segment->tile.source, i);
            abn_escape_push(list, (abn_escape){segment->index + i, abn_xhat_of(f, channel, x)});
        }
    }
}

/* True if elements of this run may have to be escaped: backward recovers xhat from y or z, and a rule applies. */
static int has_escape_rule(const abn_forward_operation *f, const abn_channel_run *run) {
    return f->escape_lists && abn_recovers_xhat(f->context) && !(run->flags & ABN_GUARDED);
}

/* True if rounding the saved xhat of this run may change the sign of y. */
static int needs_settled_signs(const abn_forward_operation *f, const abn_channel_run *run) {
    return run->flags & ABN_GUARDED && abn_needs_settled_sign(f);
}

static void settle_signs(const abn_forward_operation *f, const abn_channel_run *run, const abn_segment *segment,
                         const abn_workspace *workspace) {
    for (ptrdiff_t i = 0; i < segment->tile.length; i++) {
        const ptrdiff_t channel = abn_element_of(&f->op, &run->span, segment->row, segment->column + i).channel;
        abn_settle_sign_at(f, segment, channel, i, ((const float *)workspace->y)[i]);
    }
}

/* True if xhat of this run is stored: over x with ABN_KEEP_XHAT, in the guard for guarded channels. */
static int stores_xhat(const abn_forward_operation *f, const abn_channel_run *run) {
    return f->context->keep == ABN_KEEP_XHAT || run->flags & ABN_GUARDED;
}

/* True if a stored xhat of this run may overflow the storage type, so that each element must be checked. */
static int may_overflow(const abn_forward_operation *f, const abn_channel_run *run) {
    return stores_xhat(f, run) && (run->flags & ABN_EXACT || f->largest_xhat < INFINITY);
}

/* Stores xhat of a segment. Elements whose xhat overflows the storage type are escaped. */
static void store_xhat_of_segment(const abn_forward_operation *f, const abn_channel_run *run,
                                  const abn_segment *segment, abn_escape_list *list, abn_workspace *workspace) {
    const abn_segment_kernels *kernels = &f->op.kernels->segment;
    const ptrdiff_t n = segment->tile.length;
    const void *x = segment->tile.source.data, *to = run->flags & ABN_GUARDED ? segment->xhat.data : x;
    if (run->flags & ABN_EXACT) {
        abn_forward_exact_xhat(f, run, segment, to, list);
        return;
    }
    const abn_constants constants = constants_of_xhat(segment->constants);
    const abn_escape_rule overflows = {.below = -f->largest_xhat, .above = f->largest_xhat};
    abn_tile tile = segment->tile;
    tile.residual.data = NULL;
    if (kernels->scan(&tile, &constants, &overflows, workspace->y, workspace->branch_mask, workspace->escaped))
        push_escapes(f, run, segment, workspace->escaped, list);
    kernels->narrow(workspace->y, n, (void *)(uintptr_t)to);
}

/* Replaces y of one element of a segment, before the residual is added, by that of its escaped xhat. */
static void replace_y(const abn_forward_operation *f, const abn_channel_run *run, const abn_segment *segment,
                      abn_escape escaped, abn_workspace *workspace) {
    const ptrdiff_t i = (ptrdiff_t)(escaped.index - segment->index);
    const ptrdiff_t channel = abn_element_of(&f->op, &run->span, segment->row, segment->column + i).channel;
    const abn_norm *norm = &f->context->norm;
    abn_set_real(f->op.source.dtype, workspace->y, i, norm->weight[channel] * escaped.xhat + norm->bias[channel]);
}

/* With ABN_KEEP_XHAT: replaces y of the elements whose stored xhat overflowed. In forward these are the entries of the
 * list from `first` on, in recompute the escapes of the context. */
static void replace_overflowed(const abn_forward_operation *f, const abn_channel_run *run, const abn_segment *segment,
                               const abn_escape_list *list, ptrdiff_t first, abn_workspace *workspace) {
    const abn_escapes *escapes = &f->context->escapes;
    const int64_t end = segment->index + segment->tile.length;
    for (ptrdiff_t e = first; list && e < list->count; e++) replace_y(f, run, segment, list->entries[e], workspace);
    for (ptrdiff_t e = abn_escapes_from(escapes, segment->index); e < escapes->count && escapes->index[e] < end; e++)
        replace_y(f, run, segment, (abn_escape){escapes->index[e], escapes->xhat[e]}, workspace);
}

/* Computes y of a segment into the workspace and records escaped elements and the branch mask. Entries of the list from
 * `first` on are elements of this segment whose xhat overflowed. */
static void compute_y(const abn_forward_operation *f, const abn_channel_run *run, const abn_segment *segment,
                      abn_escape_list *list, ptrdiff_t first, abn_workspace *workspace) {
    const abn_segment_kernels *kernels = &f->op.kernels->segment;
    const abn_constants constants = constants_of_y(f, segment->constants);
    const void *x = segment->tile.source.data, *residual = segment->tile.residual.data;
    const ptrdiff_t n = segment->tile.length;
    uint64_t *bits = workspace->branch_mask;
    if (has_escape_rule(f, run)) {
        if (kernels->scan(&segment->tile, &constants, &f->rule, workspace->y, bits, workspace->escaped))
            push_escapes(f, run, segment, workspace->escaped, list);
        if (f->context->branch_mask) abn_branch_mask_put(f->context->branch_mask, segment->index, bits, n);
        return;
    }
    kernels->normalize(x, n, &constants, workspace->y);
    if (f->context->keep == ABN_KEEP_XHAT) replace_overflowed(f, run, segment, list, first, workspace);
    if (residual) kernels->add(residual, n, workspace->y);
}

static int writes_y(const abn_forward_operation *f) { return f->context->keep == ABN_KEEP_Y && !f->recomputing; }

/* Stores y over x, and replaces it by the stored, rounded y. */
static void store_y(const abn_forward_operation *f, const abn_tile *tile, abn_workspace *workspace) {
    const abn_segment_kernels *kernels = &f->op.kernels->segment;
    kernels->narrow(workspace->y, tile->length, (void *)(uintptr_t)tile->source.data);
    if (abn_dtype_size(f->op.source.dtype) != abn_real_size(f->op.source.dtype))
        kernels->widen(tile->source.data, tile->length, workspace->y);
}

/* Computes z of a channel run, except for its first `done` elements, and stores xhat if that may overflow. */
static void apply_to_segments(const abn_forward_operation *f, const abn_channel_run *run, ptrdiff_t done,
                              abn_escape_list *list) {
    const abn_operation *op = &f->op;
    const int is_real = abn_dtype_size(op->source.dtype) == abn_real_size(op->source.dtype);
    const ptrdiff_t length = run->tile.length;
    abn_workspace workspace;
    for (abn_segment segment = {.row = done / length, .next = done % length}; abn_next_segment(op, run, &segment);) {
        const abn_tile *tile = &segment.tile;
        const ptrdiff_t n = tile->length, first = list ? list->count : 0;
        if (may_overflow(f, run) && !f->recomputing) store_xhat_of_segment(f, run, &segment, list, &workspace);
        compute_y(f, run, &segment, list, first, &workspace);
        if (needs_settled_signs(f, run)) settle_signs(f, run, &segment, &workspace);
        if (writes_y(f)) store_y(f, tile, &workspace);
        /* Without conversion or padding, z is written directly, else by way of the workspace. */
        void *z = is_real && n % ABN_PADDING == 0 ? tile->destination.data : workspace.y;
        op->set->activations->of[f->context->activation].value(workspace.y, z, n,
                                                               abn_segment_param(op, f->context, &segment, &workspace));
        if (z == workspace.y) op->kernels->segment.narrow(workspace.y, n, tile->destination.data);
    }
}

/* ---- apply ------------------------------------------------------------------------------------------------ */

static void store_xhat_of_run(const abn_forward_operation *f, const abn_channel_run *run) {
    const abn_input to = run->flags & ABN_GUARDED ? run->xhat : run->tile.source;
    const abn_constants constants = constants_of_xhat(run->constants);
    abn_tile tile = run->tile;
    tile.destination = (abn_output){(void *)(uintptr_t)to.data, to.stride};
    f->identity->apply(&tile, &constants);
}

/* Computes z with a kernel for whole tiles, if there is one. It stops at a |residual| above its limit, since it cannot
 * escape elements. Returns how many leading elements it computed; the others are left to apply_to_segments. */
static ptrdiff_t apply_to_whole_tile(const abn_forward_operation *f, const abn_channel_run *run) {
    const abn_constants constants = constants_of_y(f, run->constants);
    const abn_tile *tile = &run->tile;
    if (!f->tile_kernels || may_overflow(f, run) || needs_settled_signs(f, run)) return 0;
    if (writes_y(f)) return f->tile_kernels->keep_y(tile, &constants);
    if (f->op.residual.data) return f->tile_kernels->apply_residual(tile, &constants);
    f->tile_kernels->apply(tile, &constants);
    return tile->rows * tile->length;
}

/* ABN_EXACT channels are computed in double, except y and z of ABN_KEEP_XHAT: those come from the stored xhat. */
static void apply(abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_constants *constants,
                  int thread) {
    abn_forward_operation *f = (abn_forward_operation *)op;
    abn_escape_list *list = f->escape_lists ? &f->escape_lists[thread] : NULL;
    for (abn_channel_run run = {0}; abn_next_channel_run(op, &f->context->guard, tile, span, constants, &run);) {
        run.constants.param = f->context->activation_param;
        if (run.flags & ABN_EXACT && f->context->keep != ABN_KEEP_XHAT) {
            abn_forward_exact_apply(f, &run, list);
            continue;
        }
        if (stores_xhat(f, &run) && !may_overflow(f, &run) && !f->recomputing) store_xhat_of_run(f, &run);
        const ptrdiff_t done = apply_to_whole_tile(f, &run);
        if (done < run.tile.rows * run.tile.length) apply_to_segments(f, &run, done, list);
    }
}

/* The constants that the kernels read to compute y and xhat. */
enum {
    Y_CONSTANTS = 1 << ABN_CENTRE | 1 << ABN_SCALE | 1 << ABN_SHIFT,
    XHAT_CONSTANTS = 1 << ABN_XHAT_SCALE | 1 << ABN_XHAT_SHIFT | 1 << ABN_ZERO,
};

/* Chooses kernels and sets the constants that do not depend on the statistics. Call after abn_walk_open. */
static void choose_kernels(abn_forward_operation *f) {
    const abn_tile_kernels *of = f->op.kernels->of;
    const abn_tile_kernels *whole = &of[f->context->activation];
    /* Kernels for whole tiles compare the residual with its limit, but not y with the escape rule. */
    const int scans_y = abn_recovers_xhat(f->context) && !f->recomputing && abn_can_escape(f->rule);
    /* Elements of a recompute whose stored xhat overflowed are replaced segment by segment. */
    const int replaces_y = f->context->keep == ABN_KEEP_XHAT && f->context->escapes.count > 0;
    const int has_kernels = writes_y(f) ? whole->keep_y != NULL : whole->apply != NULL;
    f->identity = &of[ABN_IDENTITY];
    f->tile_kernels = scans_y || replaces_y || !has_kernels ? NULL : whole;
    set_fixed_constants(f);
}

/* The batch's own statistics bound xhat by the square root of the number of elements, which does not overflow. */
static double largest_xhat(const abn_context *context) {
    return context->statistics_given ? abn_largest_of(context->kept.dtype) : INFINITY;
}

/* Runs the walk, and gathers the escaped elements of all threads into the context. */
static abn_status walk_with_escapes(abn_forward_operation *f, int threads) {
    abn_context *context = f->context;
    const abn_batch *kept = &context->kept;
    const int has_xhat = context->keep == ABN_KEEP_XHAT || context->guard.count;
    const int recovers = abn_recovers_xhat(context);
    const int escapes = recovers && (context->residual.data || abn_can_escape(f->rule));
    if (!escapes && !(has_xhat && f->largest_xhat < INFINITY)) return abn_walk(&f->op);
    f->escape_lists = calloc((size_t)threads, sizeof *f->escape_lists);
    if (f->escape_lists == NULL) return ABN_NO_MEMORY;
    const abn_status status = abn_walk(&f->op);
    const int64_t elements = (int64_t)kept->batch * kept->channels * kept->spatial;
    const abn_status gathered = abn_escapes_gather(f->escape_lists, threads, elements, &context->escapes);
    free(f->escape_lists);
    return status == ABN_OK ? gathered : status;
}

abn_status abn_forward(const abn_machine *machine, const abn_batch *x, const abn_batch *z, abn_context *context,
                       int training) {
    context->kept = *x;
    context->statistics_given = !training;
    context->escapes = (abn_escapes){0, NULL, NULL};
    abn_forward_operation f = {
        .op = {.source = *x,
               .destination = *z,
               .residual = context->residual,
               .rewrites_source = context->keep == ABN_KEEP_XHAT || context->keep == ABN_KEEP_Y,
               .mask = context->mask,
               .arrays = (context->keep == ABN_KEEP_Z ? 1 : 2) + (context->residual.data != NULL),
               .apply = apply,
               .begin = begin_with_given_statistics,
               .sums_constants = 1 << ABN_SUMS_CENTRE,
               .apply_constants = Y_CONSTANTS},
        .context = context,
        .rule = abn_escape_rule_for(context, training),
        .largest_xhat = largest_xhat(context),
    };
    if (training) {
        f.op.begin = abn_moments_begin;
        f.op.sums = abn_moments_sums;
        f.op.finish = finish_statistics;
    }
    abn_status status = abn_walk_open(&f.op, machine, &context->guard);
    if (status != ABN_OK) return status;
    choose_kernels(&f);
    if (context->guard.count > 0 || context->keep == ABN_KEEP_XHAT) f.op.apply_constants |= XHAT_CONSTANTS;
    status = walk_with_escapes(&f, machine->threads);
    abn_walk_close(&f.op);
    return status;
}

/* y = (x - 0) * 1 + shift with the kept y as x; a shift of -0.0 keeps a y of -0.0. */
static void set_constants_of_y(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    for (ptrdiff_t c = channel; c < channel + channels; c++) {
        abn_set_constant(op, ABN_CENTRE, c, 0);
        abn_set_constant(op, ABN_SCALE, c, 1);
        abn_set_constant(op, ABN_SHIFT, c, -0.0);
    }
}

static void begin_recompute(abn_operation *op, ptrdiff_t channel, ptrdiff_t channels) {
    abn_forward_operation *f = (abn_forward_operation *)op;
    set_constants(f, channel, channels);
    if (f->context->keep == ABN_KEEP_Y) set_constants_of_y(op, channel, channels);
}

/* Computes every element in the same kernel as abn_forward did, in the same place of a segment: from two NaN, one of
 * them negative, the compiled copies of an expression may return different ones. The guard is passed for that alone: it
 * divides tiles into the same channel runs. Several threads may recompute from one context: it is read only. */
abn_status abn_recompute(const abn_machine *machine, const abn_context *context, const abn_batch *z) {
    abn_context copy = *context; /* not changed below, but the operation's pointer to it is not const */
    if (context->keep == ABN_KEEP_Y) copy.residual.data = NULL; /* y includes it */
    abn_forward_operation f = {
        .op = {.source = context->kept,
               .destination = *z,
               .residual = copy.residual,
               .mask = context->mask,
               .arrays = 2 + (copy.residual.data != NULL),
               .apply = apply,
               .begin = begin_recompute,
               .apply_constants = Y_CONSTANTS | XHAT_CONSTANTS},
        .context = &copy,
        .largest_xhat = largest_xhat(context),
        .recomputing = 1,
    };
    abn_status status = abn_walk_open(&f.op, machine, &context->guard);
    if (status != ABN_OK) return status;
    choose_kernels(&f);
    status = abn_walk(&f.op);
    abn_walk_close(&f.op);
    return status;
}
