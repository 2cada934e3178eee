/* The kernels of one instruction set and one storage type: rows of elements in, numbers out.
 *
 * A tile is `rows` rows of `length` elements. In ABN_ROWS kernels each row belongs to one channel, and constants and
 * sums go by row; in ABN_COLUMNS kernels each column does, and they go by column. A batch's memory order does not
 * settle which of the two it takes: operation.c chooses. Kernels take any alignment that the storage type allows,
 * allocate nothing and cannot fail. `destination` may be one of the inputs. */
#ifndef ABN_KERNELS_H
#define ABN_KERNELS_H

#include "../abn.h"
#include "../activations.h"
#include "activation_kernels.h"

enum { ABN_ROWS, ABN_COLUMNS, ABN_LAYOUTS };

typedef struct {
    const void *data;
    ptrdiff_t stride; /* elements from row to row */
} abn_input;

typedef struct {
    void *data;
    ptrdiff_t stride;
} abn_output;

/* data == NULL: the operation has no such array. */
typedef struct {
    abn_input source;   /* x, or the kept buffer */
    abn_input gradient; /* dz */
    abn_input residual;
    abn_output destination; /* z or dx */
    abn_output residual_gradient;
    abn_output
        memo; /* of `real`: what the sums leave for the second pass, w and, abn_operation.memo_apart on, slopes */
    ptrdiff_t rows, length;
} abn_tile;

/* Constants per channel: arrays of float, or of double for float64 storage.
 *   from x:  w = (x - centre) * scale + shift
 *   from z:  w = activation^-1(z) * scale + shift
 *   kept x:  y = w * weight + bias
 *   result:  dx = (dy + w * w_factor + offset) * dx_factor */
enum {
    ABN_CENTRE,
    ABN_SCALE,
    ABN_SHIFT,
    ABN_WEIGHT,
    ABN_BIAS,
    ABN_W_FACTOR,
    ABN_OFFSET,
    ABN_DX_FACTOR,
    ABN_RESIDUAL_LIMIT, /* z does not tell w beside a greater residual */
    ABN_PARAM,          /* of the activation, where channels have one each */
    ABN_CONSTANTS
};
typedef struct {
    const void *of[ABN_CONSTANTS];
    double param; /* of the activation, where there is one for all channels */
    int training; /* 0: the result is without w, which may be infinite or NaN there */
} abn_constants;

/* Running sums of a tile's channels, kept as partial sums that a kernel can update at the speed of loads:
 * ABN_ROWS: per row two vectors of ABN_LANE_BYTES; ABN_COLUMNS: two arrays of `length` numbers, the second
 * beginning ABN_COLUMNS_STRIDE numbers after the first. */
#define ABN_LANE_BYTES 64
#define ABN_ROWS_MAX 64      /* rows of an ABN_ROWS tile */
#define ABN_COLUMNS_MAX 1024 /* length of an ABN_COLUMNS tile */
#define ABN_PADDING 16       /* numbers that may be read past the end of an array of constants or sums */
#define ABN_COLUMNS_STRIDE (ABN_COLUMNS_MAX + ABN_PADDING)
#define ABN_PARTIAL_BYTES (2 * ABN_COLUMNS_STRIDE * sizeof(double)) /* enough for either layout */

/* Which columns are a channel's: `spread` side by side (spread > 1), or every `channels`-th of `repeat` rounds. */
typedef struct {
    ptrdiff_t channels, spread, repeat;
} abn_columns;

enum { ABN_FROM_Z, ABN_FROM_X }; /* what the backward's source holds */

typedef struct {
    /* destination = z = activation(w), w from x */
    void (*apply)(const abn_tile *tile, const abn_constants *constants);
    /* destination = activation(w + residual), row after row up to where a |residual| is above its limit, or shortly before
     * that: returns how many elements are done. */
    ptrdiff_t (*apply_residual)(const abn_tile *tile, const abn_constants *constants);
    /* sums += dy, dy * w. Here and below NULL from z where the activation has no inverse. */
    void (*gradient_sums[2])(const abn_tile *tile, const abn_constants *constants, void *partial);
    /* destination = dx */
    void (*gradient_apply[2])(const abn_tile *tile, const abn_constants *constants);
} abn_tile_kernels;

/* A piece is part of one row. Between these steps it is in arrays of `real` (float, or double for float64 storage),
 * aligned to a cache line and with room for ABN_PADDING numbers past the end of a piece. What an activation does there
 * is in activation_kernels.h. `constants` are those of the piece's row or first column, `partial` likewise. */
#define ABN_PIECE 1024
#define ABN_PIECE_WORDS (ABN_PIECE / 64) /* of uint64_t, for a bit per element: bit i % 64 of word i / 64 */

typedef struct {
    /* w = (x - centre) * scale + shift */
    void (*normalize)(const void *x, ptrdiff_t n, const abn_constants *constants, void *w);
    /* y = w * weight + bias */
    void (*scale)(const void *w, ptrdiff_t n, const abn_constants *constants, void *y);
    void (*add)(const void *residual, ptrdiff_t n, void *y); /* y += residual */
    /* y = w + residual (NULL: none) of x. One bit each: sides, is y below the minimum? lost, does the rule name it, or is
     * |residual| above its limit? Returns whether any is lost. */
    int (*scan)(const void *x, const void *residual, ptrdiff_t n, const abn_constants *constants,
                const abn_escape_rule *rule, void *y, uint64_t *sides, uint64_t *lost);
    /* w = (y - residual) * scale + shift in place of y; residual may be NULL */
    void (*recover)(const void *residual, ptrdiff_t n, const abn_constants *constants, void *y);
    void (*widen)(const void *from, ptrdiff_t n, void *to);
    void (*narrow)(const void *from, ptrdiff_t n, void *to);
    /* partial sums += dy, dy * w with dy = dz * slope */
    void (*sums)(const void *w, const void *slope, const void *dz, ptrdiff_t n, void *partial);
    /* dx, of dy and w, as above; dr = dy or dr += dy if it is not NULL */
    void (*gradient)(const void *w, const void *slope, const void *dz, ptrdiff_t n, const abn_constants *constants,
                     void *dx, void *dr, int add);
} abn_piece_kernels;

typedef struct {
    /* sums += d, d^2 with d = x - centre */
    void (*moments)(const abn_tile *tile, const abn_constants *constants, void *partial);
    /* first[c] += the first partial sums of channel c, second[c] likewise; partial sums are cleared. */
    void (*fold)(void *partial, abn_columns columns, double *first, double *second);
    /* Of the cheap activations; the entries of the others are empty. */
    abn_tile_kernels of[ABN_ACTIVATIONS];
    abn_piece_kernels piece;
} abn_layout_kernels;

typedef struct {
    abn_layout_kernels layout[ABN_LAYOUTS];
    /* One constant per channel -> one per column (padded). */
    void (*expand)(const void *constants, abn_columns columns, void *expanded);
    /* a = a*c + d (b == NULL) or b = b*c + a*d */
    void (*stream)(void *a, void *b, ptrdiff_t count, double c, double d);
    const abn_activation_kernels *activations;
} abn_kernel_set;

struct abn_kernels {
    const char *name;
    unsigned needs; /* features, cpu.h */
    const abn_kernel_set *sets[ABN_DTYPES];
};

#endif
