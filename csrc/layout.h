/* Chooses whether the rows (ABN_ROWS) or the columns (ABN_COLUMNS) of a tile are channels. */
#ifndef ABN_LAYOUT_H
#define ABN_LAYOUT_H

#include "operation.h"

/* Sets op->layout, positions_per_channel and positions_per_row from the strides of all batches. Channels-last batches
 * without gaps between images become one image: their batch and spatial sizes change. */
void abn_choose_layout(abn_operation *op);

#endif
