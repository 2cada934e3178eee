/* The walk: calls the steps of an operation, tile by tile. It divides the batch by shape alone, so that results do not
 * depend on the number of threads. */
#ifndef ABN_WALK_H
#define ABN_WALK_H

#include "operation.h"

/* Prepares op for abn_walk: layout, kernels, memory for constants and flags, mask. guard: NULL, or the channels to flag
 * ABN_GUARDED. On failure there is nothing to close. */
abn_status abn_walk_open(abn_operation *op, const abn_machine *machine, const abn_guard *guard);
abn_status abn_walk(abn_operation *op);
void abn_walk_close(abn_operation *op);

#endif
