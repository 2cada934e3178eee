/* The kernels of one combination of ABN_DTYPE_<NAME>, ABN_ACTIVATION, ABN_KEEPS, ABN_RESIDUAL, ABN_GUARD, ABN_WIDTH,
 * and ABN_PLANES or ABN_COLUMNS. Compiled when first used. */
#include "forward.h"
#include "backward.h"
