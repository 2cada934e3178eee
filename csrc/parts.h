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

typedef struct {
    ptrdiff_t channel;
    int64_t position; /* image * S + s */
} abn_element;

/* The element in a tile's row and column. */
abn_element abn_element_of(const abn_operation *op, const abn_span *span, ptrdiff_t row, ptrdiff_t column);

/* Its address in a row of an input, or of a destination. */
void *abn_at(const abn_operation *op, const void *data, ptrdiff_t stride, ptrdiff_t row, ptrdiff_t column);

/* Where the xhat of a guarded channel's element lies. */
void *abn_guarded_at(const abn_operation *op, const abn_guard *guard, abn_element element);

#endif
