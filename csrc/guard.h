/* Walking over spans some of whose channels keep their xhat in the guard's side buffer. */
#ifndef ABN_GUARD_H
#define ABN_GUARD_H

#include "operation.h"

/* The longest run of channels from span->channel on that are all guarded, or all not. */
abn_span abn_guard_run(const abn_operation *op, const abn_guard *guard, const abn_span *span, int *guarded);

/* The run's part of `tile`, which belongs to `span`. */
abn_tile abn_guard_part(const abn_operation *op, const abn_tile *tile, const abn_span *span, const abn_span *run);

/* Where a guarded run's xhat lies. */
abn_input abn_guard_xhat(const abn_operation *op, const abn_guard *guard, const abn_span *run);

#endif
