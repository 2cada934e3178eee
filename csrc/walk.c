#include "walk.h"

#include <stdlib.h>

#include "element.h"
#include "layout.h"
#include "mask.h"
#include "valid.h"
#include "walk_layouts.h"

abn_status abn_walk_open(abn_operation *op, const abn_machine *machine, const abn_guard *guard) {
    abn_choose_layout(op);
    op->set = machine->kernels->sets[op->source.dtype];
    op->kernels = &op->set->layout[op->layout];
    op->threads = machine->threads;
    op->per_channel = abn_valid_positions(&op->source, &op->mask);
    op->positions = op->mask.words && op->source.spatial > 1 ? op->mask.valid : op->source.spatial;
    const size_t length = (size_t)(op->source.channels + ABN_PADDING) * abn_real_size(op->source.dtype);
    char *memory = calloc(1, ABN_CONSTANTS * length + (size_t)op->source.channels);
    if (memory == NULL) return ABN_NO_MEMORY;
    for (int which = 0; which < ABN_CONSTANTS; which++) op->constants[which] = memory + (size_t)which * length;
    op->channel_flags = (unsigned char *)memory + ABN_CONSTANTS * length;
    for (ptrdiff_t c = 0; guard && guard->count > 0 && c < op->source.channels; c++)
        if (guard->slot[c] >= 0) op->channel_flags[c] = ABN_GUARDED;
    const abn_status status = abn_mask_open(op);
    if (status != ABN_OK) free(memory);
    return status;
}

abn_status abn_walk(abn_operation *op) {
    if (op->source.channels == 0 || op->source.batch * op->source.spatial == 0) return ABN_OK;
    return op->layout == ABN_ROWS ? abn_walk_rows(op) : abn_walk_columns(op);
}

void abn_walk_close(abn_operation *op) {
    abn_mask_close(op);
    free(op->constants[0]);
}
