#include "operation.h"

#include "element.h"

abn_constants abn_constants_from(const abn_operation *op, ptrdiff_t channel) {
    abn_constants constants = {.training = 0};
    for (int which = 0; which < ABN_CONSTANTS; which++)
        constants.of[which] = (const char *)op->constants[which] + (size_t)channel * abn_real_size(op->source.dtype);
    return constants;
}

abn_constants abn_constants_moved(const abn_operation *op, const abn_constants *constants, ptrdiff_t entries) {
    abn_constants moved = *constants;
    const size_t bytes = (size_t)entries * abn_real_size(op->source.dtype);
    for (int which = 0; which < ABN_CONSTANTS; which++) moved.of[which] = (const char *)constants->of[which] + bytes;
    return moved;
}
