/* The functions statistics and stream. stream measures memory bandwidth for the benchmarks. */
#include "addressed.h"
#include "calls.h"
#include "context.h"
#include "signatures.h"

/* The mask as bits, in words that the caller frees; words is NULL if memory runs out. */
static abn_mask mask_bits(const mask *m, const batch *x) {
    uint64_t *words = PyMem_Calloc((size_t)mask_words(x) + 1, sizeof *words);
    if (words) mask_pack(m, words);
    return (abn_mask){words, m->valid};
}

PyObject *call_statistics(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    binding_state *state = state_of(module);
    PyObject *got[NAMES] = {NULL}, *mean = NULL, *var = NULL, *result = NULL;
    PyThreadState *unlocked;
    abn_machine machine;
    abn_status status = ABN_OK;
    int channel_axis;
    batch x;
    mask valid;
    addressed arrays;
    abn_mask bits = {NULL, 0};

    if (bind_args(state, &statistics_signature, args, positionals, kwnames, got) < 0) return NULL;
    if (channel_axis_arg(got[NAME_CHANNEL_AXIS], &channel_axis) < 0 || machine_args(state, got, &machine) < 0)
        return NULL;
    if (addressed_open(state, got, &arrays) < 0) goto done;
    if (batch_open(state, got[NAME_X], NAME_X, channel_axis, NULL, NULL, &x) < 0) goto done;
    if (mask_open(state, got[NAME_MASK], &x, &valid) < 0) goto done;
    machine_settle(state, batch_elements(&x), &machine);
    if (valid.array && !(bits = mask_bits(&valid, &x)).words) {
        PyErr_NoMemory();
        goto done;
    }
    if (!(mean = vector_new(NPY_DOUBLE, x.core.channels))) goto done;
    if (!(var = vector_new(NPY_DOUBLE, x.core.channels))) goto done;
    PyArray_FILLWBYTE((PyArrayObject *)mean, 0);
    PyArray_FILLWBYTE((PyArrayObject *)var, 0);
    if (batch_elements(&x) > 0) {
        unlocked = unlock_interpreter(batch_elements(&x));
        status = abn_statistics(&machine, &x.core, &bits, PyArray_DATA((PyArrayObject *)mean),
                                PyArray_DATA((PyArrayObject *)var));
        lock_interpreter(unlocked);
    }
    if (status_check(status) == 0) result = Py_BuildValue("(OOn)", mean, var, (Py_ssize_t)valid.valid);
done:
    addressed_close(&arrays);
    PyMem_Free((void *)bits.words);
    Py_XDECREF(mean);
    Py_XDECREF(var);
    return result;
}

static footprint stream_footprint(PyArrayObject *array) {
    return footprint_of_range(PyArray_DATA(array), PyArray_NBYTES(array));
}

PyObject *call_stream(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    binding_state *state = state_of(module);
    PyObject *got[NAMES] = {NULL};
    PyArrayObject *a = NULL, *b = NULL;
    PyThreadState *unlocked;
    abn_machine machine;
    double c = 1.0, d = 0.0;
    footprint a_bytes, b_bytes;
    npy_intp elements;
    int prefetch = 0;

    if (bind_args(state, &stream_signature, args, positionals, kwnames, got) < 0) return NULL;
    if (double_arg(got[NAME_C], NAME_C, &c) < 0 || double_arg(got[NAME_D], NAME_D, &d) < 0) return NULL;
    if (int_arg(got[NAME_PREFETCH], NAME_PREFETCH, 0, 1 << 20, &prefetch) < 0) return NULL;
    if (machine_args(state, got, &machine) < 0) return NULL;
    if (stream_open(state, got[NAME_A], NAME_A, -1, is_provided(got[NAME_B]) ? NULL : "stream", &a) < 0) return NULL;
    elements = PyArray_SIZE(a);
    if (is_provided(got[NAME_B]) && stream_open(state, got[NAME_B], NAME_B, elements, "stream", &b) < 0) return NULL;
    a_bytes = stream_footprint(a);
    b_bytes = b ? stream_footprint(b) : (footprint){0};
    if (refuse_overlap(&b_bytes, "b", &a_bytes, "a") < 0) return NULL;
    if (registry_refuse(state, b ? &b_bytes : &a_bytes, b ? "b" : "a", "stream") < 0) return NULL;
    machine_settle(state, elements, &machine);
    if (elements > 0) {
        unlocked = unlock_interpreter(elements);
        abn_stream(&machine, PyArray_DATA(a), b ? PyArray_DATA(b) : NULL, elements, (float)c, (float)d, prefetch);
        lock_interpreter(unlocked);
    }
    Py_RETURN_NONE;
}
