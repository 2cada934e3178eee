/* Own code and not numpy.shares_memory: that runs Python between the checks of a call and its writes. */
#include "overlap.h"

/* Comparisons until two footprints count as sharing memory: a millisecond or so. */
enum { PATIENCE = 100000 };

footprint footprint_of(const void *data, npy_intp item, const step *steps, int depth) {
    footprint f = {.low = (uintptr_t)data, .run = item};
    npy_intp reach = item;
    if (item == 0) return (footprint){0};
    for (int i = 0; i < depth; i++) {
        int place = f.depth;
        if (steps[i].count == 0) return (footprint){0};
        if (steps[i].count == 1) continue;
        for (; place > 0 && f.steps[place - 1].stride < steps[i].stride; place--) f.steps[place] = f.steps[place - 1];
        f.steps[place] = steps[i];
        f.depth++;
        reach += (steps[i].count - 1) * steps[i].stride;
    }
    f.high = f.low + (uintptr_t)reach;
    /* Join what lies side by side: a contiguous array is a single run. */
    while (f.depth > 0 && f.steps[f.depth - 1].stride == f.run) f.run *= f.steps[--f.depth].count;
    for (int i = f.depth - 2; i >= 0; i--) {
        if (f.steps[i].stride != f.steps[i + 1].count * f.steps[i + 1].stride) continue;
        f.steps[i] = (step){f.steps[i].count * f.steps[i + 1].count, f.steps[i + 1].stride};
        for (int j = i + 1; j + 1 < f.depth; j++) f.steps[j] = f.steps[j + 1];
        f.depth--;
    }
    return f;
}

/* One step of the widest stride, the first. */
static footprint inside(const footprint *f) {
    const npy_intp others = (f->steps[0].count - 1) * f->steps[0].stride;
    footprint part = {.low = f->low, .high = f->high - (uintptr_t)others, .run = f->run, .depth = f->depth - 1};
    for (int i = 0; i < part.depth; i++) part.steps[i] = f->steps[i + 1];
    return part;
}

static npy_intp floor_divide(npy_intp a, npy_intp b) { return a / b - (a % b < 0); }

/* Compares the steps of the wider stride one by one with the other footprint, as far as they come near it. Where both
 * have the same stride only the distance of two steps matters, and at most two distances bring them near. */
static int meet(const footprint *a, const footprint *b, int *patience) {
    const footprint *wide = a, *other = b;
    if (a->low >= b->high || b->low >= a->high) return 0;
    if (a->depth == 0 && b->depth == 0) return 1;
    if (a->depth == 0 || (b->depth > 0 && b->steps[0].stride > a->steps[0].stride)) {
        wide = b;
        other = a;
    }
    const footprint part = inside(wide);
    footprint rest = *other;
    const npy_intp stride = wide->steps[0].stride;
    npy_intp first = 0, last = wide->steps[0].count - 1;
    if (other->depth > 0 && other->steps[0].stride == stride) {
        rest = inside(other);
        first = 1 - other->steps[0].count;
    }
    const npy_intp behind = floor_divide((npy_intp)(rest.low - part.high), stride) + 1;
    const npy_intp before = floor_divide((npy_intp)(rest.high - part.low) - 1, stride);
    if (first < behind) first = behind;
    if (last > before) last = before;
    for (npy_intp i = first; i <= last; i++) {
        if (--*patience < 0) return 1;
        footprint moved = part;
        moved.low += (uintptr_t)(i * stride);
        moved.high += (uintptr_t)(i * stride);
        if (meet(&moved, &rest, patience)) return 1;
    }
    return 0;
}

int footprints_share(const footprint *a, const footprint *b) {
    int patience = PATIENCE;
    return meet(a, b, &patience);
}

int refuse_overlap(const footprint *written, const char *written_name, const footprint *other, const char *other_name) {
    if (!footprints_meet(written, other)) return 0;
    PyErr_Format(PyExc_ValueError, "%s is written and shares memory with %s; pass a copy of one of them", written_name,
                 other_name);
    return -1;
}
