#include "scratch.h"

#include <stdint.h>
#include <stdlib.h>

#include "element.h"

enum { LINE = 64 }; /* bytes of a cache line */

abn_scratch abn_scratch_open(abn_operation *op, int threads, ptrdiff_t rows, ptrdiff_t length) {
    /* A row may be computed run by run, each in whole vectors: the last vector may end anywhere in the padding. */
    const ptrdiff_t stride = (length + 2 * ABN_PADDING - 1) / ABN_PADDING * ABN_PADDING;
    abn_scratch scratch = {NULL, NULL, stride};
    op->scratch_offset = rows * stride;
    if (!op->wants_scratch) return scratch;
    scratch.memory = malloc((size_t)threads * 2 * (size_t)op->scratch_offset * abn_real_size(op->source.dtype) + LINE);
    scratch.first = (char *)(((uintptr_t)scratch.memory + LINE - 1) / LINE * LINE);
    return scratch;
}

void abn_scratch_close(abn_scratch *scratch) { free(scratch->memory); }

abn_output abn_scratch_row(const abn_operation *op, const abn_scratch *scratch, int thread, ptrdiff_t row,
                           ptrdiff_t column) {
    const ptrdiff_t offset = thread * 2 * op->scratch_offset + row * scratch->stride + column;
    if (scratch->memory == NULL) return (abn_output){NULL, 0};
    return (abn_output){scratch->first + offset * (ptrdiff_t)abn_real_size(op->source.dtype), scratch->stride};
}
