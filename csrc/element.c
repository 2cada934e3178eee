#include "element.h"

#include <float.h>

#include "half.h"

size_t abn_dtype_size(abn_dtype dtype) {
    static const size_t sizes[ABN_DTYPES] = {4, 8, 2, 2};
    return sizes[dtype];
}

double abn_largest_of(abn_dtype dtype) {
    static const double largest[ABN_DTYPES] = {
        [ABN_FLOAT32] = FLT_MAX, [ABN_FLOAT64] = DBL_MAX, [ABN_FLOAT16] = 65504, [ABN_BFLOAT16] = 0x1.fep127};
    return largest[dtype];
}

void abn_store_element(abn_dtype dtype, void *element, double value) {
    switch (dtype) {
        case ABN_FLOAT64: *(double *)element = value; return;
        case ABN_FLOAT16: *(uint16_t *)element = abn_float_to_float16((float)value); return;
        case ABN_BFLOAT16: *(uint16_t *)element = abn_float_to_bfloat16((float)value); return;
        default: *(float *)element = (float)value; return;
    }
}

void *abn_address(const abn_batch *batch, ptrdiff_t image, ptrdiff_t channel, ptrdiff_t position) {
    const ptrdiff_t offset =
        image * batch->batch_stride + channel * batch->channel_stride + position * batch->spatial_stride;
    return (char *)batch->data + offset * (ptrdiff_t)abn_dtype_size(batch->dtype);
}
