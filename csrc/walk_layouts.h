/* The two walks: by rows (channels-first, walk_rows.c) and by columns (walk_columns.c). */
#ifndef ABN_WALK_LAYOUTS_H
#define ABN_WALK_LAYOUTS_H

#include "operation.h"

abn_status abn_walk_rows(abn_operation *op);
abn_status abn_walk_columns(abn_operation *op);

#endif
