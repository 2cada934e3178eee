/* The forward of ABN_EXACT channels (float_range.h): element by element, in double. */
#ifndef ABN_FORWARD_EXACT_H
#define ABN_FORWARD_EXACT_H

#include "forward_operation.h"

/* Writes z of a channel run, and everything that is saved with it. Escaped elements are added to `list` unless it is
 * NULL. */
void abn_forward_exact_apply(const abn_forward_operation *f, const abn_channel_run *run, abn_escape_list *list);

/* Writes xhat of a segment to `to`. Elements that overflow the storage type are added to `list`. */
void abn_forward_exact_xhat(const abn_forward_operation *f, const abn_channel_run *run, const abn_segment *segment,
                            const void *to, abn_escape_list *list);

#endif
