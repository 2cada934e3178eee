/* Iterators: over the channel runs of a tile, and over the segments of a channel run (operation.h). */
#ifndef ABN_CHANNEL_RUNS_H
#define ABN_CHANNEL_RUNS_H

#include "operation.h"
#include "tile.h"

/* Neighbouring channels of a tile with equal flags. */
typedef struct {
    abn_tile tile;
    abn_span span;
    abn_constants constants;
    ptrdiff_t offset; /* rows (ABN_ROWS) or columns of the whole tile before this run */
    ptrdiff_t next;   /* where the next run begins: channel, or position * channels + channel in a joined row */
    unsigned flags;   /* op->channel_flags, the same for all its channels */
    abn_input xhat;   /* ABN_GUARDED: their saved xhat; else data == NULL */
} abn_channel_run;

/* Moves `run` on to the next run of `tile`, the tile of `span`. Start with a zeroed run. Returns 0 after the last. */
int abn_next_channel_run(const abn_operation *op, const abn_guard *guard, const abn_tile *tile, const abn_span *span,
                         const abn_constants *constants, abn_channel_run *run);

/* Up to ABN_SEGMENT elements of one row of a channel run. Their indices in per-element side data are consecutive. */
typedef struct {
    abn_tile tile; /* of one row */
    abn_input xhat;
    abn_constants constants;
    ptrdiff_t row, column;    /* where the segment begins in the run */
    ptrdiff_t partial_offset; /* rows (ABN_ROWS) or columns of the whole tile before the segment */
    ptrdiff_t next;           /* the column after the segment */
    int64_t index;            /* of its first element in per-element side data (abn.h) */
} abn_segment;

/* Working arrays for one segment. y, slope and param hold reals: float or double (element.h). */
typedef struct {
    _Alignas(64) double y[ABN_SEGMENT + ABN_PADDING];
    _Alignas(64) double slope[ABN_SEGMENT + ABN_PADDING];
    _Alignas(64) double param[ABN_SEGMENT + ABN_PADDING];
    uint64_t branch_mask[ABN_SEGMENT_WORDS], escaped[ABN_SEGMENT_WORDS];
} abn_workspace;

/* Moves `segment` on to the next segment of `run`. Start with a zeroed segment. Returns 0 past the last one. */
int abn_next_segment(const abn_operation *op, const abn_channel_run *run, abn_segment *segment);

/* Sums: sets what the kernels of a segment prefetch to the segment that is summed next. */
void abn_prefetch_next_segment(const abn_operation *op, const abn_channel_run *run, abn_segment *segment);

/* The activation's parameter for a segment: one number, or one per element. May be stored in workspace->param. */
const void *abn_segment_param(const abn_operation *op, const abn_context *context, const abn_segment *segment,
                              abn_workspace *workspace);

#endif
