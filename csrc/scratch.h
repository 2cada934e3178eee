/* Scratch: two reals per element that the step sums stores and the step apply reads, while a strip is in cache. */
#ifndef ABN_SCRATCH_H
#define ABN_SCRATCH_H

#include "operation.h"

typedef struct {
    void *memory;     /* NULL: no scratch */
    char *first;      /* aligned to a cache line */
    ptrdiff_t stride; /* reals from row to row */
} abn_scratch;

/* Allocates `rows` rows of `length` elements per thread, with padding for whole vectors. Sets op->scratch_offset.
 * memory is NULL if op does not want scratch, or if there is not enough memory: operations then recompute. */
abn_scratch abn_scratch_open(abn_operation *op, int threads, ptrdiff_t rows, ptrdiff_t length);
void abn_scratch_close(abn_scratch *scratch);

/* The first number of the element at (row, column) of a thread's scratch. Its second number is op->scratch_offset reals
 * later. data == NULL: no scratch. */
abn_output abn_scratch_row(const abn_operation *op, const abn_scratch *scratch, int thread, ptrdiff_t row,
                           ptrdiff_t column);

#endif
