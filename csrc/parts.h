/* The parts of a tile: neighbouring channels that are worked on alike. */
#ifndef ABN_PARTS_H
#define ABN_PARTS_H

#include "operation.h"

typedef struct {
    abn_tile tile;
    abn_span span;
    abn_constants constants;
    ptrdiff_t offset; /* rows (ABN_ROWS) or columns of the whole tile that come before this part */
    ptrdiff_t next;   /* the first channel after this part, counted through a joined row */
    unsigned kind;    /* of all its channels: op->kinds */
    abn_input xhat;   /* ABN_GUARDED: where theirs lies; else NULL */
} abn_part;

/* The next part of `tile`, which belongs to `span`; a zeroed part comes before the first. 0: there is none. */
int abn_next_part(const abn_operation *op, const abn_guard *guard, const abn_tile *tile, const abn_span *span,
                  const abn_constants *constants, abn_part *part);

/* A part of one row of a part, short enough for the arrays of piece kernels. Its elements follow one another in the
 * order of what is kept per element. */
typedef struct {
    abn_tile tile; /* of one row */
    abn_input xhat;
    abn_constants constants;
    ptrdiff_t row, column;    /* of the part: where it begins */
    ptrdiff_t partial_offset; /* rows (ABN_ROWS) or columns of the whole tile before it */
    ptrdiff_t next;           /* the column after it */
    int64_t index;            /* of its first element */
} abn_piece;

/* What a piece is worked on in. `real` is float, or double for float64. */
typedef struct {
    _Alignas(64) double y[ABN_PIECE + ABN_PADDING]; /* room for either type */
    _Alignas(64) double slope[ABN_PIECE + ABN_PADDING];
    _Alignas(64) double param[ABN_PIECE + ABN_PADDING];
    uint64_t sides[ABN_PIECE_WORDS], lost[ABN_PIECE_WORDS];
} abn_bench;

/* The next piece of `part`; a zeroed piece comes before the first. 0: there is none. */
int abn_next_piece(const abn_operation *op, const abn_part *part, abn_piece *piece);

/* The activation's parameter for a piece: a number, or one per element; perhaps in bench->param. */
const void *abn_piece_param(const abn_operation *op, const abn_context *context, const abn_piece *piece,
                            abn_bench *bench);

typedef struct {
    ptrdiff_t channel;
    int64_t position; /* image * S + s; with a mask: the number of the valid position */
} abn_element;

/* The element in a tile's row and column. */
abn_element abn_element_of(const abn_operation *op, const abn_span *span, ptrdiff_t row, ptrdiff_t column);

/* The tile from this row and column on; its rows and length stay. */
abn_tile abn_tile_moved(const abn_operation *op, const abn_tile *tile, ptrdiff_t row, ptrdiff_t column);

/* The partial sums of a row (ABN_ROWS) or column of a tile. */
void *abn_partial_at(const abn_operation *op, void *partial, ptrdiff_t entry);

/* Its address in a row of an input, or of a destination. */
void *abn_at(const abn_operation *op, const void *data, ptrdiff_t stride, ptrdiff_t row, ptrdiff_t column);

/* Where the xhat of a guarded channel's element lies. */
void *abn_guarded_at(const abn_operation *op, const abn_guard *guard, abn_element element);

/* The i-th element of a row that begins at an input's data; 0 where there is no such array. */
double abn_element_from(const abn_operation *op, abn_input input, ptrdiff_t i);

#endif
