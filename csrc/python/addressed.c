#include "addressed.h"

/* bfloat16 is raw_bfloat16, a dtype of uint16, since ml_dtypes may not be installed. */
PyArray_Descr *addressed_dtype(const binding_state *state, PyObject *got) {
    static const struct {
        const char *name;
        int type;
    } types[] = {{"float32", NPY_FLOAT}, {"float64", NPY_DOUBLE}, {"float16", NPY_HALF}, {"bool", NPY_BOOL}};
    if (PyUnicode_Check(got)) {
        for (size_t i = 0; i < sizeof types / sizeof *types; i++)
            if (PyUnicode_CompareWithASCIIString(got, types[i].name) == 0) return PyArray_DescrFromType(types[i].type);
        if (PyUnicode_CompareWithASCIIString(got, "bfloat16") == 0)
            return (PyArray_Descr *)Py_NewRef((PyObject *)state->raw_bfloat16);
    }
    PyErr_Format(PyExc_TypeError, "dtype must be 'float32', 'float64', 'float16', 'bfloat16' or 'bool', got %R", got);
    return NULL;
}

/* Reads a tuple of ndim integers. */
static int read_lengths(PyObject *got, int ndim, const char *what, npy_intp scale, npy_intp *lengths) {
    if (!PyTuple_Check(got) || PyTuple_GET_SIZE(got) != ndim) {
        PyErr_Format(PyExc_TypeError, "%s must be a tuple of %d integers, got %R", what, ndim, got);
        return -1;
    }
    for (int i = 0; i < ndim; i++) {
        lengths[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(got, i)) * scale;
        if (PyErr_Occurred()) return -1;
        if (lengths[i] < 0) {
            PyErr_Format(PyExc_ValueError, "%s must not be negative, got %R", what, got);
            return -1;
        }
    }
    return 0;
}

static PyObject *array_of(const binding_state *state, PyObject *tuple) {
    npy_intp shape[ABN_MAX_DIMS + 1], strides[ABN_MAX_DIMS + 1];
    PyObject *lengths;
    PyArray_Descr *dtype;
    Py_ssize_t ndim;
    void *address;
    if (PyTuple_GET_SIZE(tuple) != 4) {
        PyErr_Format(PyExc_TypeError, "memory must be given as (address, shape, strides, dtype), got %R", tuple);
        return NULL;
    }
    if (!PyLong_Check(PyTuple_GET_ITEM(tuple, 0))) {
        PyErr_Format(PyExc_TypeError, "address must be an integer, got %R", PyTuple_GET_ITEM(tuple, 0));
        return NULL;
    }
    address = PyLong_AsVoidPtr(PyTuple_GET_ITEM(tuple, 0));
    if (!address && PyErr_Occurred()) return NULL;
    lengths = PyTuple_GET_ITEM(tuple, 1);
    ndim = PyTuple_Check(lengths) ? PyTuple_GET_SIZE(lengths) : 0;
    if (ndim > ABN_MAX_DIMS) ndim = ABN_MAX_DIMS + 1; /* refused later, where the argument is known */
    if (!(dtype = addressed_dtype(state, PyTuple_GET_ITEM(tuple, 3)))) return NULL;
    if (read_lengths(lengths, (int)ndim, "shape", 1, shape) < 0 ||
        read_lengths(PyTuple_GET_ITEM(tuple, 2), (int)ndim, "strides", PyDataType_ELSIZE(dtype), strides) < 0) {
        Py_DECREF(dtype);
        return NULL;
    }
    if (!address && PyArray_MultiplyList(shape, (int)ndim) > 0) {
        PyErr_Format(PyExc_ValueError, "address must not be 0, got %R", tuple);
        Py_DECREF(dtype);
        return NULL;
    }
    return PyArray_NewFromDescr(&PyArray_Type, dtype, (int)ndim, shape, strides, address ? address : (void *)strides,
                                NPY_ARRAY_WRITEABLE, NULL);
}

int addressed_open(binding_state *state, PyObject **got, addressed *arrays) {
    *arrays = (addressed){{NULL}, {NULL}};
    for (int i = 0; i < NAMES; i++) {
        if (!got[i] || !PyTuple_CheckExact(got[i])) continue;
        arrays->given[i] = got[i];
        if (!(arrays->made[i] = array_of(state, got[i]))) return -1;
        got[i] = arrays->made[i];
    }
    return 0;
}

void addressed_close(addressed *arrays) {
    for (int i = 0; i < NAMES; i++) Py_CLEAR(arrays->made[i]);
}

PyObject *addressed_given(const addressed *arrays, PyArrayObject *array) {
    for (int i = 0; i < NAMES; i++)
        if (arrays->made[i] == (PyObject *)array) return arrays->given[i];
    return (PyObject *)array;
}
