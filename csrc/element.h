/* Single elements: size, address, load, store and rounding of each storage type. For code that handles few elements;
 * kernels convert whole vectors (kernels/storage.h). "Real" is the type that kernels compute in: float, or double for
 * float64 storage. */
#ifndef ABN_ELEMENT_H
#define ABN_ELEMENT_H

#include <math.h>

#include "abn.h"
#include "half.h"

/* Rounds to nearest even; overflows to infinity; NaN stays NaN. */
void abn_store_element(abn_dtype dtype, void *element, double value);

void *abn_address(const abn_batch *batch, ptrdiff_t image, ptrdiff_t channel, ptrdiff_t position);

/* The largest finite number of the storage type. */
double abn_largest_of(abn_dtype dtype);

/* The functions below are called several times per channel, which shows in small batches. */

static inline double abn_load_element(abn_dtype dtype, const void *element) {
    switch (dtype) {
        case ABN_FLOAT64: return *(const double *)element;
        case ABN_FLOAT16: return abn_float16_to_float(*(const uint16_t *)element);
        case ABN_BFLOAT16: return abn_bfloat16_to_float(*(const uint16_t *)element);
        case ABN_FLOAT32:
        default: return *(const float *)element;
    }
}

/* Bytes of a real. */
static inline size_t abn_real_size(abn_dtype dtype) { return dtype == ABN_FLOAT64 ? sizeof(double) : sizeof(float); }

/* value rounded to real. */
static inline double abn_round_to_real(abn_dtype dtype, double value) {
    return dtype == ABN_FLOAT64 ? value : (float)value;
}

/* reals[i] = value. In float, NaN is stored as NAN, whose low 16 bits are 0: kernels/storage.h narrows it to a NaN. */
static inline void abn_set_real(abn_dtype dtype, void *reals, ptrdiff_t i, double value) {
    if (dtype == ABN_FLOAT64)
        ((double *)reals)[i] = value;
    else
        ((float *)reals)[i] = isnan(value) ? NAN : (float)value;
}

static inline double abn_get_real(abn_dtype dtype, const void *reals, ptrdiff_t i) {
    return dtype == ABN_FLOAT64 ? ((const double *)reals)[i] : (double)((const float *)reals)[i];
}

#endif
