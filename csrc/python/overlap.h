/* The bytes that an array occupies, and whether two arrays share any of them. */
#ifndef ABN_PYTHON_OVERLAP_H
#define ABN_PYTHON_OVERLAP_H

#include "binding.h"

enum { FOOTPRINT_STEPS = 4 };

typedef struct {
    npy_intp count, stride; /* stride in bytes, positive */
} step;

/* Runs of `run` bytes at low + i*steps[0].stride + j*steps[1].stride + ... for i < steps[0].count, j < steps[1].count,
 * ..., widest strides first. All zeros: no bytes. */
typedef struct {
    uintptr_t low, high; /* high is past the last byte */
    npy_intp run;
    int depth;
    step steps[FOOTPRINT_STEPS];
} footprint;

/* `steps` may be in any order; steps of count 1 are dropped. */
footprint footprint_of(const void *data, npy_intp item, const step *steps, int depth);

/* Of any array. Exact up to FOOTPRINT_STEPS steps; with more, the gaps between the narrowest steps are included. */
footprint footprint_of_array(const PyArrayObject *array);

/* Of `nbytes` bytes without gaps. */
footprint footprint_of_range(const void *data, npy_intp nbytes);

/* True if two footprints whose ranges overlap share a byte. Exact, unless the comparison takes too long: then true. */
int footprints_share(const footprint *a, const footprint *b);

static inline int footprints_meet(const footprint *a, const footprint *b) {
    return a->low < b->high && b->low < a->high && footprints_share(a, b);
}

/* Returns 0, or -1 with ValueError if the array to be written shares memory with the other one. */
int refuse_overlap(const footprint *written, const char *written_name, const footprint *other, const char *other_name);

#endif
