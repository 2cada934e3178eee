/* The kernels of one instruction set and one storage type: tables of functions over tiles and segments of elements.
 *
 * A tile is `rows` rows of `length` elements. ABN_ROWS: each row belongs to one channel, and constants and sums are per
 * row. ABN_COLUMNS: each column belongs to one channel, and they are per column. layout.c chooses. Kernels accept any
 * alignment that the storage type allows, allocate nothing and cannot fail. `destination` may be the same memory as an
 * input, but may not overlap one partially. "Real": the arithmetic type, float, or double for float64 storage. */
#ifndef ABN_KERNELS_H
#define ABN_KERNELS_H

#include "../abn.h"
#include "../activations.h"
#include "activation_kernels.h"

enum { ABN_ROWS, ABN_COLUMNS, ABN_LAYOUTS };

typedef struct {
    const void *data;
    ptrdiff_t stride; /* elements from row to row */
    ptrdiff_t ahead;  /* bytes from an element to the one to prefetch when it is read; may leave the array */
} abn_input;

typedef struct {
    void *data;
    ptrdiff_t stride;
} abn_output;

/* data == NULL: the operation has no such array. */
typedef struct {
    abn_input source;   /* forward: x; backward: the saved x, xhat or z */
    abn_input gradient; /* dz */
    abn_input residual;
    abn_output destination; /* z or dx */
    abn_output residual_gradient;
    abn_output scratch; /* reals that the sums pass leaves to the apply pass: w; scratch_offset reals later, slopes */
    ptrdiff_t rows, length;
} abn_tile;

/* Constants per channel: arrays of reals. w is what backward sums as dy * w; abn_scheme in abn.h defines it.
 *   from x:  w = (x - centre) * scale + shift
 *   from z:  w = activation^-1(z) * scale + shift
 *   from y:  w = (y - residual) * scale + shift
 *   kept x:  y = w * weight + bias
 *   result:  dx = (dy + w * w_factor + offset) * dx_factor */
enum {
    ABN_CENTRE,
    ABN_SCALE,
    ABN_SHIFT,
    ABN_PARAM, /* of the activation, if each channel has its own */
    /* Forward only: the limit of |residual|, constants of x -> xhat, the centre of the moments, and zeros. */
    ABN_RESIDUAL_LIMIT, /* if |residual| is larger, w cannot be recovered from z */
    ABN_XHAT_SCALE,
    ABN_XHAT_SHIFT,
    ABN_SUMS_CENTRE,
    ABN_ZERO,
    ABN_FORWARD_CONSTANTS,
    /* Backward only. They reuse the indices of the forward constants. */
    ABN_WEIGHT = ABN_RESIDUAL_LIMIT,
    ABN_BIAS,
    ABN_W_FACTOR,
    ABN_OFFSET,
    ABN_DX_FACTOR,
    ABN_CONSTANTS
};
_Static_assert((int)ABN_FORWARD_CONSTANTS <= (int)ABN_CONSTANTS, "ABN_CONSTANTS: room for both directions");

typedef struct {
    const void *of[ABN_CONSTANTS];
    double param; /* of the activation, if all channels share it */
    int training; /* 0: dx is computed without w, which may be infinite or NaN */
    /* ABN_FROM_Y: the residual is clamped to [low, high]. */
    double residual_low, residual_high;
    int add_to_residual; /* residual_gradient += dy rather than = dy */
} abn_constants;

/* Partial sums of the channels of a tile, two per channel. An update costs one load and one store.
 * ABN_ROWS: two vectors of ABN_LANE_BYTES per row. ABN_COLUMNS: two arrays of `length` reals, the second one
 * ABN_COLUMNS_STRIDE reals after the first. */
#define ABN_LANE_BYTES 64
#define ABN_ROWS_MAX 64      /* rows of an ABN_ROWS tile */
#define ABN_COLUMNS_MAX 4096 /* length of an ABN_COLUMNS tile */
#define ABN_PADDING 16       /* numbers that may be read past the end of an array of constants or sums */
#define ABN_COLUMNS_STRIDE (ABN_COLUMNS_MAX + ABN_PADDING)
#define ABN_PARTIAL_BYTES (2 * ABN_COLUMNS_STRIDE * sizeof(double)) /* enough for either layout */

/* The columns of channel c. If positions_per_channel > 1: that many adjacent ones, from c * positions_per_channel on.
 * Otherwise: c, c + channels, c + 2 * channels, ..., positions_per_row of them. */
typedef struct {
    ptrdiff_t channels, positions_per_channel, positions_per_row;
} abn_columns;

enum { ABN_FROM_Z, ABN_FROM_X, ABN_FROM_Y, ABN_SOURCES }; /* what the source of a backward kernel holds */

typedef struct {
    /* destination = z = activation(w), w from x */
    void (*apply)(const abn_tile *tile, const abn_constants *constants);
    /* destination = activation(w + residual), row by row. Stops at or shortly before a |residual| above the limit.
     * Returns how many elements were computed. */
    ptrdiff_t (*apply_residual)(const abn_tile *tile, const abn_constants *constants);
    /* sums += dy, dy * w. Here and below, index ABN_FROM_Z, ABN_FROM_X or ABN_FROM_Y. [ABN_FROM_Z] is NULL without an
     * inverse, [ABN_FROM_Y] and keep_y with one. */
    void (*gradient_sums[ABN_SOURCES])(const abn_tile *tile, const abn_constants *constants, void *partial);
    /* destination = dx; from y or z also residual_gradient, if there is a residual */
    void (*gradient_apply[ABN_SOURCES])(const abn_tile *tile, const abn_constants *constants);
    /* source = y = w + residual, destination = activation(y). residual.data may be NULL. Returns as apply_residual. */
    ptrdiff_t (*keep_y)(const abn_tile *tile, const abn_constants *constants);
} abn_tile_kernels;

/* A segment is a run of elements of one row. These kernels pass it on in arrays of reals, aligned to a cache line, with
 * ABN_PADDING reals of room past the end. Activations: activation_kernels.h. `constants` and `partial` are those of the
 * segment's row (ABN_ROWS) or first column. Those that take the segment as a tile of one row prefetch its inputs
 * (abn_input.ahead). */
#define ABN_SEGMENT 1024
#define ABN_SEGMENT_WORDS (ABN_SEGMENT / 64) /* of uint64_t, for a bit per element: bit i % 64 of word i / 64 */

typedef struct {
    /* w = (x - centre) * scale + shift */
    void (*normalize)(const void *x, ptrdiff_t n, const abn_constants *constants, void *w);
    /* y = w * weight + bias */
    void (*scale)(const void *w, ptrdiff_t n, const abn_constants *constants, void *y);
    void (*add)(const void *residual, ptrdiff_t n, void *y); /* y += residual */
    /* y = w + residual, w from x = source; there may be no residual. Sets an element's bit in branch_mask if y is below
     * the minimum, in escaped if z does not determine y (rule; |residual| above the limit). Returns true if any is
     * escaped. */
    int (*scan)(const abn_tile *segment, const abn_constants *constants, const abn_escape_rule *rule, void *y,
                uint64_t *branch_mask, uint64_t *escaped);
    /* w = (y - residual) * scale + shift in place of y; residual may be NULL */
    void (*recover)(const void *residual, ptrdiff_t n, const abn_constants *constants, void *y);
    void (*widen)(const void *from, ptrdiff_t n, void *to);  /* storage -> reals */
    void (*narrow)(const void *from, ptrdiff_t n, void *to); /* reals -> storage */
    /* partial sums += dy, dy * w with dy = dz * slope, dz = gradient */
    void (*sums)(const void *w, const void *slope, const abn_tile *segment, void *partial);
    /* destination = dx from dy = dz * slope and w, formula above, and residual_gradient, if there is one. */
    void (*gradient)(const void *w, const void *slope, const abn_tile *segment, const abn_constants *constants);
} abn_segment_kernels;

typedef struct {
    /* sums += d, d^2 with d = x - centre */
    void (*moments)(const abn_tile *tile, const abn_constants *constants, void *partial);
    /* Adds channel c's first partial sums to first[c] and its second ones to second[c]; clears the partial sums. */
    void (*fold)(void *partial, abn_columns columns, double *first, double *second);
    /* Kernels of the cheap activations (activations.h); NULL for the other activations. */
    abn_tile_kernels of[ABN_ACTIVATIONS];
    abn_segment_kernels segment;
} abn_layout_kernels;

typedef struct {
    abn_layout_kernels layout[ABN_LAYOUTS];
    /* Repeats the constant of each channel for each of its columns (padded). */
    void (*expand)(const void *constants, abn_columns columns, void *expanded);
    /* a = a*c + d (b == NULL) or b = b*c + a*d; prefetch: elements ahead, or 0 */
    void (*stream)(void *a, void *b, ptrdiff_t count, double c, double d, ptrdiff_t prefetch);
    const abn_activation_kernels *activations;
} abn_kernel_set;

struct abn_kernels {
    const char *name;
    unsigned needs; /* features, cpu.h */
    const abn_kernel_set *sets[ABN_DTYPES];
};

#endif
