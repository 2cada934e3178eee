/* numpy.shares_memory cannot be used here: it runs Python code between the checks of a call and its writes. */
#include "overlap.h"

/* After this many comparisons, about a millisecond, two footprints count as sharing memory. */
enum { MOST_COMPARISONS = 100000 };

/* Joins adjacent runs, so that a contiguous array is a single run. `steps`: widest first. Returns the new depth. */
static int join(step *steps, int depth, npy_intp *run) {
    while (depth > 0 && steps[depth - 1].stride == *run) *run *= steps[--depth].count;
    for (int i = depth - 2; i >= 0; i--) {
        if (steps[i].stride != steps[i + 1].count * steps[i + 1].stride) continue;
        steps[i] = (step){steps[i].count * steps[i + 1].count, steps[i + 1].stride};
        for (int j = i + 1; j + 1 < depth; j++) steps[j] = steps[j + 1];
        depth--;
    }
    return depth;
}

footprint footprint_of(const void *data, npy_intp item, const step *steps, int depth) {
    step sorted[NPY_MAXDIMS];
    footprint f = {.low = (uintptr_t)data, .run = item};
    npy_intp reach = item;
    int used = 0;
    if (item == 0) return (footprint){0};
    for (int i = 0; i < depth; i++) {
        int place = used;
        if (steps[i].count == 0) return (footprint){0};
        if (steps[i].count == 1) continue;
        for (; place > 0 && sorted[place - 1].stride < steps[i].stride; place--) sorted[place] = sorted[place - 1];
        sorted[place] = steps[i];
        used++;
        reach += (steps[i].count - 1) * steps[i].stride;
    }
    f.high = f.low + (uintptr_t)reach;
    used = join(sorted, used, &f.run);
    for (; used > FOOTPRINT_STEPS; used--) f.run += (sorted[used - 1].count - 1) * sorted[used - 1].stride;
    f.depth = used;
    for (int i = 0; i < used; i++) f.steps[i] = sorted[i];
    return f;
}

footprint footprint_of_array(const PyArrayObject *array) {
    step steps[NPY_MAXDIMS];
    const char *data = PyArray_BYTES(array);
    const int ndim = PyArray_NDIM(array);
    for (int i = 0; i < ndim; i++) {
        const npy_intp count = PyArray_DIM(array, i), stride = PyArray_STRIDE(array, i);
        steps[i] = (step){count > 1 && stride == 0 ? 1 : count, stride < 0 ? -stride : stride};
        if (count > 1 && stride < 0) data += (count - 1) * stride;
    }
    return footprint_of(data, PyArray_ITEMSIZE(array), steps, ndim);
}

footprint footprint_of_range(const void *data, npy_intp nbytes) { return footprint_of(data, nbytes, NULL, 0); }

/* The part of a footprint at the first step of its widest stride; the other parts are copies of it, a stride apart. */
static footprint first_part_of(const footprint *f) {
    const npy_intp others = (f->steps[0].count - 1) * f->steps[0].stride;
    footprint part = {.low = f->low, .high = f->high - (uintptr_t)others, .run = f->run, .depth = f->depth - 1};
    for (int i = 0; i < part.depth; i++) part.steps[i] = f->steps[i + 1];
    return part;
}

static npy_intp floor_divide(npy_intp a, npy_intp b) { return a / b - (a % b < 0); }

/* True if the footprints share a byte, or if *left comparisons are too few to decide.
 *
 * Compares the parts of the footprint with the wider stride, part + i * stride, with the rest: the other footprint.
 * Only the i whose ranges of addresses overlap are compared. If the other footprint has the same stride, the rest is
 * its first part, and i is the difference of two step indices: it may be negative, and at most two of them overlap. */
static int share(const footprint *a, const footprint *b, int *left) {
    const footprint *wide = a, *other = b;
    if (a->low >= b->high || b->low >= a->high) return 0;
    if (a->depth == 0 && b->depth == 0) return 1;
    if (a->depth == 0 || (b->depth > 0 && b->steps[0].stride > a->steps[0].stride)) {
        wide = b;
        other = a;
    }
    const footprint part = first_part_of(wide);
    footprint rest = *other;
    const npy_intp stride = wide->steps[0].stride;
    npy_intp first = 0, last = wide->steps[0].count - 1;
    if (other->depth > 0 && other->steps[0].stride == stride) {
        rest = first_part_of(other);
        first = 1 - other->steps[0].count;
    }
    const npy_intp first_overlap = floor_divide((npy_intp)(rest.low - part.high), stride) + 1;
    const npy_intp last_overlap = floor_divide((npy_intp)(rest.high - part.low) - 1, stride);
    if (first < first_overlap) first = first_overlap;
    if (last > last_overlap) last = last_overlap;
    for (npy_intp i = first; i <= last; i++) {
        if (--*left < 0) return 1;
        footprint moved = part;
        moved.low += (uintptr_t)(i * stride);
        moved.high += (uintptr_t)(i * stride);
        if (share(&moved, &rest, left)) return 1;
    }
    return 0;
}

int footprints_share(const footprint *a, const footprint *b) {
    int left = MOST_COMPARISONS;
    return share(a, b, &left);
}

int refuse_overlap(const footprint *written, const char *written_name, const footprint *other, const char *other_name) {
    if (!footprints_meet(written, other)) return 0;
    PyErr_Format(PyExc_ValueError, "%s is written and shares memory with %s; pass a copy of one of them", written_name,
                 other_name);
    return -1;
}
