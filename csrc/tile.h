/* Tiles: from a span of an operation to rows in memory, and from a row and a column back to the element. */
#ifndef ABN_TILE_H
#define ABN_TILE_H

#include "operation.h"

abn_tile abn_tile_of(const abn_operation *op, const abn_span *span);

/* Lets a kernel that reads the tile of one span prefetch the tile of another, element by element: `next` for source and
 * gradient, `next_residual` for the residual. Both have the tile's shape, or a larger one. */
void abn_tile_prefetch(const abn_operation *op, const abn_span *next, const abn_span *next_residual, abn_tile *tile);

/* Sets tile->rows and tile->length for a tile of this span. */
void abn_tile_shape(const abn_operation *op, const abn_span *span, abn_tile *tile);

/* The tile with its pointers moved to this row and column. rows and length are copied: the caller adjusts them. */
abn_tile abn_tile_moved(const abn_operation *op, const abn_tile *tile, ptrdiff_t row, ptrdiff_t column);
abn_input abn_input_moved(const abn_operation *op, abn_input from, ptrdiff_t row, ptrdiff_t column);

/* The address of an element in a row of an input or output. */
void *abn_at(const abn_operation *op, const void *data, ptrdiff_t stride, ptrdiff_t row, ptrdiff_t column);

/* The i-th element of a row that begins at input.data; 0 if that is NULL. */
double abn_element_from(const abn_operation *op, abn_input input, ptrdiff_t i);

/* The partial sums of a tile's row (ABN_ROWS) or column (ABN_COLUMNS). */
void *abn_partial_at(const abn_operation *op, void *partial, ptrdiff_t entry);

typedef struct {
    ptrdiff_t channel;
    int64_t position; /* image * S + s; with a mask: the number of the valid position */
} abn_element;

/* The element in a row and column of the tile of this span. */
abn_element abn_element_of(const abn_operation *op, const abn_span *span, ptrdiff_t row, ptrdiff_t column);

/* The index of an element in per-element side data: abn.h. */
int64_t abn_index_of(const abn_operation *op, ptrdiff_t channel, int64_t position);

/* The address of an element of a guarded channel in guard->xhat. */
void *abn_guarded_at(const abn_operation *op, const abn_guard *guard, abn_element element);

/* guard->xhat of the guarded channels of a span. */
abn_input abn_guarded_input(const abn_operation *op, const abn_guard *guard, const abn_span *span);

#endif
