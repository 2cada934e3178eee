/* statistics, and the benchmarks' yardstick stream. */
#include "batch.h"
#include "calls.h"
#include "signatures.h"

#include <string.h>

PyObject *call_statistics(PyObject *module, PyObject *const *args, Py_ssize_t npos, PyObject *kwnames) {
    binding_state *state = state_of(module);
    PyObject *got[NAMES] = {NULL}, *mean = NULL, *var = NULL, *result = NULL;
    PyThreadState *unlocked;
    abn_machine machine;
    abn_status status = ABN_OK;
    double *values = NULL;
    size_t bytes;
    int channel_axis;
    batch x;

    if (bind_args(state, &statistics_signature, args, npos, kwnames, got) < 0) return NULL;
    if (channel_axis_arg(got[NAME_CHANNEL_AXIS], &channel_axis) < 0) goto done;
    if (batch_open(state, got[NAME_X], NAME_X, channel_axis, NULL, 0, &x) < 0) goto done;
    if (machine_args(state, got, batch_elements(&x), &machine) < 0) goto done;
    bytes = 2 * (size_t)x.core.channels * sizeof(double);
    if (!(values = PyMem_Malloc(bytes))) {
        PyErr_NoMemory();
        goto done;
    }
    memset(values, 0, bytes);
    if (batch_elements(&x) > 0) {
        unlocked = unlock_interpreter(batch_elements(&x));
        status = abn_statistics(&machine, &x.core, values, values + x.core.channels);
        lock_interpreter(unlocked);
    }
    if (status_check(status) < 0) goto done;
    if (!(mean = vector_new(NPY_DOUBLE, x.core.channels, values))) goto done;
    if (!(var = vector_new(NPY_DOUBLE, x.core.channels, values + x.core.channels))) goto done;
    result = Py_BuildValue("(OOn)", mean, var, (Py_ssize_t)batch_per_channel(&x));
done:
    Py_XDECREF(mean);
    Py_XDECREF(var);
    PyMem_Free(values);
    return result;
}

PyObject *call_stream(PyObject *module, PyObject *const *args, Py_ssize_t npos, PyObject *kwnames) {
    binding_state *state = state_of(module);
    PyObject *got[NAMES] = {NULL};
    PyArrayObject *a = NULL, *b = NULL;
    PyThreadState *unlocked;
    abn_machine machine;
    double c = 1.0, d = 0.0;
    npy_intp elements;

    if (bind_args(state, &stream_signature, args, npos, kwnames, got) < 0) return NULL;
    if (stream_open(state, got[NAME_A], NAME_A, -1, !given(got[NAME_B]), &a) < 0) return NULL;
    elements = PyArray_SIZE(a);
    if (given(got[NAME_B]) && stream_open(state, got[NAME_B], NAME_B, elements, 1, &b) < 0) return NULL;
    if (refuse_overlap(state, b, "b", a, "a") < 0) return NULL;
    if (double_arg(got[NAME_C], NAME_C, &c) < 0 || double_arg(got[NAME_D], NAME_D, &d) < 0) return NULL;
    if (machine_args(state, got, elements, &machine) < 0) return NULL;
    if (elements > 0) {
        unlocked = unlock_interpreter(elements);
        abn_stream(&machine, PyArray_DATA(a), b ? PyArray_DATA(b) : NULL, elements, (float)c, (float)d);
        lock_interpreter(unlocked);
    }
    Py_RETURN_NONE;
}
