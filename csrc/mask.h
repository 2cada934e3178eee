/* Masked batches: restricts the steps of an operation to valid positions. */
#ifndef ABN_MASK_H
#define ABN_MASK_H

#include "operation.h"

/* Replaces op->sums and op->apply by steps that call them for valid positions only. op->layout must be set. Does
 * nothing without a mask. */
abn_status abn_mask_open(abn_operation *op);
void abn_mask_close(abn_operation *op);

#endif
