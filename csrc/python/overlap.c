/* Own code and not numpy.shares_memory: that runs Python between the checks of a call and its writes. */
#include "overlap.h"

/* Comparisons until two footprints count as sharing memory: a millisecond or so. */
enum { PATIENCE = 100000 };

footprint footprint_of(const void *data, npy_intp item, const step *steps, int depth) {
    footprint f = {.low = (uintptr_t)data, .run = item};
    for (int i = 0; i < depth; i++) {
        int place = f.depth;
        if (steps[i].count == 0) return (footprint){.low = (uintptr_t)data};
        if (steps[i].count == 1) continue;
        for (; place > 0 && f.steps[place - 1].stride < steps[i].stride; place--) f.steps[place] = f.steps[place - 1];
        f.steps[place] = steps[i];
        f.depth++;
    }
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

static npy_intp extent(const footprint *f) {
    npy_intp bytes = f->run;
    for (int i = 0; i < f->depth; i++) bytes += (f->steps[i].count - 1) * f->steps[i].stride;
    return bytes;
}

/* One step of the widest stride, the first. */
static footprint inside(const footprint *f) {
    footprint part = {.low = f->low, .run = f->run, .depth = f->depth - 1};
    for (int i = 0; i < part.depth; i++) part.steps[i] = f->steps[i + 1];
    return part;
}

static npy_intp floor_divide(npy_intp a, npy_intp b) { return a / b - (a % b < 0); }

/* Compares the steps of the wider stride one by one with the other footprint, as far as they come near it. Where both
 * have the same stride only the distance of two steps matters, and at most two distances bring them near. */
static int meet(const footprint *a, const footprint *b, int *patience) {
    const footprint *wide = a, *other = b;
    const npy_intp distance = (npy_intp)(b->low - a->low);
    if (distance >= extent(a) || -distance >= extent(b)) return 0;
    if (a->depth == 0 && b->depth == 0) return 1;
    if (a->depth == 0 || (b->depth > 0 && b->steps[0].stride > a->steps[0].stride)) {
        wide = b;
        other = a;
    }
    footprint part = inside(wide), rest = *other;
    const npy_intp stride = wide->steps[0].stride;
    npy_intp first = 0, last = wide->steps[0].count - 1;
    if (other->depth > 0 && other->steps[0].stride == stride) {
        rest = inside(other);
        first = 1 - other->steps[0].count;
    }
    const npy_intp from = (npy_intp)(rest.low - wide->low);
    const npy_intp behind = floor_divide(from - extent(&part), stride) + 1;
    const npy_intp before = floor_divide(from + extent(&rest) - 1, stride);
    if (first < behind) first = behind;
    if (last > before) last = before;
    for (npy_intp i = first; i <= last; i++) {
        if (--*patience < 0) return 1;
        part.low = wide->low + (uintptr_t)(i * stride);
        if (meet(&part, &rest, patience)) return 1;
    }
    return 0;
}

int footprints_meet(const footprint *a, const footprint *b) {
    int patience = PATIENCE;
    return a->run > 0 && b->run > 0 && meet(a, b, &patience);
}

int refuse_overlap(const footprint *written, const char *written_name, const footprint *other, const char *other_name) {
    if (!footprints_meet(written, other)) return 0;
    PyErr_Format(PyExc_ValueError, "%s is written and shares memory with %s; pass a copy of one of them", written_name,
                 other_name);
    return -1;
}
