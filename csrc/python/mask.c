/* mask=: a bool array of shape (N, *spatial), packed into bits. */
#include "batch.h"

static PyObject *shape_of_mask(const batch *x) {
    const int channel = x->channel_axis == 1 ? 1 : x->ndim - 1;
    npy_intp shape[ABN_MAX_DIMS];
    int ndim = 0;
    for (int i = 0; i < x->ndim; i++)
        if (i != channel) shape[ndim++] = x->shape[i];
    return PyArray_IntTupleFromIntp(ndim, shape);
}

static int shape_check(const batch *x, PyArrayObject *array) {
    PyObject *wanted = shape_of_mask(x), *got = PyArray_IntTupleFromIntp(PyArray_NDIM(array), PyArray_DIMS(array));
    int equal = -1;
    if (wanted && got) equal = PyObject_RichCompareBool(wanted, got, Py_EQ);
    if (equal == 0)
        PyErr_Format(PyExc_ValueError, "mask must have shape %S, the shape of x without its channels, got %S", wanted,
                     got);
    Py_XDECREF(wanted);
    Py_XDECREF(got);
    return equal == 1 ? 0 : -1;
}

/* All bytes from the first to the last element. */
static footprint bytes_of(PyArrayObject *array) {
    const char *low = PyArray_BYTES(array);
    npy_intp reach = 1;
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        const npy_intp step = PyArray_STRIDE(array, i), last = PyArray_DIM(array, i) - 1;
        if (last < 0) return (footprint){0};
        if (step < 0) low += last * step;
        reach += last * (step < 0 ? -step : step);
    }
    return footprint_of(low, reach, NULL, 0);
}

npy_intp mask_words(const batch *x) { return (batch_per_channel(x) + 63) / 64; }

npy_intp mask_pack(const mask *m, uint64_t *words) {
    const int ndim = PyArray_NDIM(m->array);
    const npy_intp *dims = PyArray_DIMS(m->array), *strides = PyArray_STRIDES(m->array), inner = dims[ndim - 1];
    npy_intp index[ABN_MAX_DIMS] = {0}, valid = 0, position = 0;
    const npy_intp all = PyArray_SIZE(m->array), step = strides[ndim - 1];
    const char *row = PyArray_BYTES(m->array);
    while (position < all) {
        for (npy_intp i = 0; i < inner; i++, position++) {
            const uint64_t bit = row[i * step] != 0;
            if (words) words[position / 64] |= bit << position % 64;
            valid += (npy_intp)bit;
        }
        for (int i = ndim - 2; i >= 0; i--) {
            row += strides[i];
            if (++index[i] < dims[i]) break;
            row -= dims[i] * strides[i];
            index[i] = 0;
        }
    }
    return valid;
}

int mask_open(binding_state *state, PyObject *got, const batch *x, mask *m) {
    *m = (mask){.valid = batch_per_channel(x)};
    if (!is_provided(got)) return 0;
    if (check_kind(state, got, "mask", &m->array) < 0) return -1;
    if (PyArray_TYPE(m->array) != NPY_BOOL) {
        PyErr_Format(PyExc_TypeError, "mask must be bool, got %S; pass mask.astype(bool)",
                     (PyObject *)PyArray_DESCR(m->array));
        return -1;
    }
    if (shape_check(x, m->array) < 0) return -1;
    m->bytes = bytes_of(m->array);
    m->valid = mask_pack(m, NULL);
    return 0;
}
