/* The activations on arrays of `real` (float, or double for float64 storage) in L1 cache: the segments of kernels.h.
 * One table per instruction set and type of real.
 *
 * Arrays begin at a cache line and have room for ABN_PADDING numbers past their end, since whole vectors are computed;
 * results past the end are ignored. n <= ABN_SEGMENT. `param` is one number, or for prelu one per element. */
#ifndef ABN_ACTIVATION_KERNELS_H
#define ABN_ACTIVATION_KERNELS_H

#include "../abn.h"

typedef struct {
    void (*value)(const void *y, void *z, ptrdiff_t n, const void *param);     /* y -> z; z may be y */
    void (*slope)(const void *y, void *slope, ptrdiff_t n, const void *param); /* activation'(y); slope may be y */
    /* Invertible only: z -> y in place, and the slope at y. left: bit i % 64 of word i / 64 is set if y is left of
     * the minimum. */
    void (*invert)(void *z, void *slope, ptrdiff_t n, const void *param, const uint64_t *left);
} abn_activation_functions;

typedef struct {
    abn_activation_functions of[ABN_ACTIVATIONS];
    void (*below_zero)(const void *y, void *result, ptrdiff_t n); /* min(y, 0); result may be y */
} abn_activation_kernels;

#endif
