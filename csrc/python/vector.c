/* Arrays of one dimension: vectors of one element per channel, and the arguments of stream. */
#include "batch.h"

#include <string.h>

static const char *type_text(int type) { return type == NPY_DOUBLE ? "float64" : "float32"; }

/* An array of one dimension and this type number: NPY_FLOAT or NPY_DOUBLE. */
static int one_dimensional_open(binding_state *state, PyObject *got, const char *name, int type, const char *writer,
                                PyArrayObject **array) {
    if (check_kind(state, got, name, array) < 0) return -1;
    if (PyArray_TYPE(*array) != type) {
        PyErr_Format(PyExc_TypeError, "%s must be %s, got %S; pass %s.astype(numpy.%s)", name, type_text(type),
                     (PyObject *)PyArray_DESCR(*array), name, type_text(type));
        return -1;
    }
    if (PyArray_NDIM(*array) != 1) {
        PyErr_Format(PyExc_ValueError, "%s must have one dimension, got %d; pass %s.ravel()", name,
                     PyArray_NDIM(*array), name);
        return -1;
    }
    return check_memory(state, *array, name, writer);
}

/* A vector of `channels` elements; if `or_one`, one of a single element for all channels is accepted too. */
static int channels_open(binding_state *state, PyObject *got, name_id name, npy_intp channels, int or_one, int type,
                         const char *writer, vector *v) {
    PyArrayObject *array;
    npy_intp length;
    *v = (vector){.name = name_texts[name]};
    if (!is_provided(got)) return 0;
    if (one_dimensional_open(state, got, v->name, type, writer, &array) < 0) return -1;
    length = PyArray_DIM(array, 0);
    if (length != channels && !(or_one && length == 1)) {
        PyErr_Format(PyExc_ValueError, "%s must have shape (%zd,), one element per channel,%s got (%zd,)", v->name,
                     (Py_ssize_t)channels, or_one ? " or (1,)," : "", (Py_ssize_t)length);
        return -1;
    }
    v->array = array;
    v->data = PyArray_BYTES(array);
    v->stride = length == 1 ? 0 : PyArray_STRIDE(array, 0);
    v->is_double = type == NPY_DOUBLE;
    if (length > 1 && v->stride < PyArray_ITEMSIZE(array)) {
        PyErr_Format(PyExc_ValueError, "%s must step forward in memory, got a stride of %zd bytes; pass %s.copy()",
                     v->name, (Py_ssize_t)v->stride, v->name);
        return -1;
    }
    v->bytes = footprint_of(v->data, PyArray_ITEMSIZE(array), &(step){length, v->stride}, 1);
    return 0;
}

int vector_open(binding_state *state, PyObject *got, name_id name, npy_intp channels, int type, const char *writer,
                vector *v) {
    return channels_open(state, got, name, channels, 0, type, writer, v);
}

int slope_open(binding_state *state, PyObject *got, npy_intp channels, int type, vector *v) {
    return channels_open(state, got, NAME_SLOPE, channels, 1, type, NULL, v);
}

int stream_open(binding_state *state, PyObject *got, name_id name, npy_intp count, const char *writer,
                PyArrayObject **array) {
    const char *text = name_texts[name];
    if (one_dimensional_open(state, got, text, NPY_FLOAT, writer, array) < 0) return -1;
    if (!PyArray_IS_C_CONTIGUOUS(*array)) {
        PyErr_Format(PyExc_ValueError, "%s must be contiguous, got a stride of %zd bytes", text,
                     (Py_ssize_t)PyArray_STRIDE(*array, 0));
        return -1;
    }
    if (count >= 0 && PyArray_SIZE(*array) != count) {
        PyErr_Format(PyExc_ValueError, "%s must have the %zd elements of a, got %zd", text, (Py_ssize_t)count,
                     (Py_ssize_t)PyArray_SIZE(*array));
        return -1;
    }
    return 0;
}

void vector_read(const vector *v, npy_intp channels, double *values) {
    const char *at = v->data;
    if (v->is_double)
        for (npy_intp c = 0; c < channels; c++, at += v->stride) values[c] = *(const double *)at;
    else
        for (npy_intp c = 0; c < channels; c++, at += v->stride) values[c] = *(const float *)at;
}

void vector_blend(const vector *v, npy_intp channels, double momentum, const double *values, double factor) {
    char *at = PyArray_BYTES(v->array);
    for (npy_intp c = 0; c < channels; c++, at += v->stride) {
        const double old = v->is_double ? *(double *)at : *(float *)at;
        const double blend = (1.0 - momentum) * old + momentum * factor * values[c];
        if (v->is_double)
            *(double *)at = blend;
        else
            *(float *)at = (float)blend;
    }
}

PyObject *vector_new(int type, npy_intp channels) { return PyArray_SimpleNew(1, &channels, type); }

void vector_fill(PyObject *array, npy_intp channels, const double *values) {
    void *data = PyArray_DATA((PyArrayObject *)array);
    if (PyArray_TYPE((PyArrayObject *)array) == NPY_DOUBLE)
        memcpy(data, values, (size_t)channels * sizeof(double));
    else
        for (npy_intp c = 0; c < channels; c++) ((float *)data)[c] = (float)values[c];
}
