/* backward, and its two halves backward_reduce and backward_apply. */
#include "calls.h"
#include "context.h"
#include "signatures.h"

#include <string.h>

typedef struct {
    binding_state *state;
    PyObject *got[NAMES];
    context *ctx;
    int overwrite;
    abn_machine machine;
    batch dz, dx;
    PyArrayObject *fresh; /* owned: dx if it does not overwrite dz */
    double *sums;         /* owned: sum_dy, then sum_dy_xhat */
    double count;
} backward_call;

/* Binds and checks; after it, backward_close is due whatever it returned. All that may run Python code is done before the
 * context is claimed, see forward_or_normalize. */
static int backward_open(backward_call *call, const signature *sig, PyObject *const *args, Py_ssize_t positionals,
                         PyObject *kwnames) {
    size_t sums;
    if (bind_args(call->state, sig, args, positionals, kwnames, call->got) < 0) return -1;
    if (bool_arg(call->got[NAME_OVERWRITE], NAME_OVERWRITE, &call->overwrite) < 0) return -1;
    if (double_arg(call->got[NAME_COUNT], NAME_COUNT, &call->count) < 0) return -1;
    if (machine_args(call->state, call->got, &call->machine) < 0) return -1;
    if (!(call->ctx = context_claim(call->state, call->got[NAME_CTX]))) return -1;
    if (context_batch(call->ctx, call->got[NAME_DZ], NAME_DZ, call->overwrite, &call->dz) < 0) return -1;
    machine_settle(call->state, batch_elements(&call->dz), &call->machine);
    sums = 2 * (size_t)call->dz.core.channels * sizeof(double);
    if (!(call->sums = PyMem_Malloc(sums))) {
        PyErr_NoMemory();
        return -1;
    }
    memset(call->sums, 0, sums);
    return 0;
}

static void backward_close(backward_call *call) {
    PyMem_Free(call->sums);
    Py_XDECREF(call->fresh);
    context_unclaim(call->ctx);
}

/* Where dx goes: over dz, or into a fresh array like x. */
static int dx_open(backward_call *call) {
    if (call->overwrite) {
        call->dx = call->dz;
        return 0;
    }
    call->fresh = batch_like(&call->ctx->kept, &call->dx);
    return call->fresh ? 0 : -1;
}

static PyObject *weight_gradient(const backward_call *call, int wanted) {
    return wanted ? vector_new(weight_type(call->dz.core.dtype), call->dz.core.channels) : Py_NewRef(Py_None);
}

PyObject *call_backward(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    backward_call call = {.state = state_of(module)};
    PyObject *result = NULL, *dweight = NULL, *dbias = NULL;
    PyThreadState *unlocked;
    abn_status status = ABN_OK;
    double *sum_dy, *sum_dy_xhat;
    npy_intp elements, channels;

    if (backward_open(&call, &backward_signature, args, positionals, kwnames) < 0) goto done;
    if (call.ctx->training && call.ctx->count != (double)batch_per_channel(&call.dz)) {
        PyErr_SetString(PyExc_ValueError, "ctx has statistics of more elements than this batch's: use backward_reduce, "
                                          "add up the sums of all batches, and backward_apply");
        goto done;
    }
    if (dx_open(&call) < 0) goto done;
    if (!(dweight = weight_gradient(&call, call.ctx->has_weight))) goto done;
    if (!(dbias = weight_gradient(&call, call.ctx->has_bias))) goto done;
    channels = call.dz.core.channels;
    sum_dy = call.sums;
    sum_dy_xhat = call.sums + channels;
    elements = batch_elements(&call.dz);
    if (elements > 0) {
        unlocked = unlock_interpreter(elements);
        status = abn_backward(&call.machine, &call.ctx->core, &call.dz.core, &call.dx.core, sum_dy, sum_dy_xhat,
                              call.ctx->training);
        lock_interpreter(unlocked);
    }
    if (status_check(status) < 0) goto done;
    if (call.ctx->has_weight) vector_fill(dweight, channels, sum_dy_xhat);
    if (call.ctx->has_bias) vector_fill(dbias, channels, sum_dy);
    if ((result = PyTuple_Pack(3, (PyObject *)call.dx.array, dweight, dbias))) context_free(call.ctx, "backward");
done:
    Py_XDECREF(dweight);
    Py_XDECREF(dbias);
    backward_close(&call);
    return result;
}

PyObject *call_backward_reduce(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    backward_call call = {.state = state_of(module)};
    PyObject *result = NULL, *sum_dy = NULL, *sum_dy_xhat = NULL;
    PyThreadState *unlocked;
    abn_status status = ABN_OK;
    npy_intp elements, channels;

    if (backward_open(&call, &backward_reduce_signature, args, positionals, kwnames) < 0) goto done;
    elements = batch_elements(&call.dz);
    channels = call.dz.core.channels;
    if (elements > 0) {
        unlocked = unlock_interpreter(elements);
        status = abn_backward_reduce(&call.machine, &call.ctx->core, &call.dz.core, call.sums, call.sums + channels);
        lock_interpreter(unlocked);
    }
    if (status_check(status) < 0) goto done;
    if (!(sum_dy = vector_new(NPY_DOUBLE, channels))) goto done;
    if (!(sum_dy_xhat = vector_new(NPY_DOUBLE, channels))) goto done;
    vector_fill(sum_dy, channels, call.sums);
    vector_fill(sum_dy_xhat, channels, call.sums + channels);
    result = PyTuple_Pack(2, sum_dy, sum_dy_xhat);
done:
    Py_XDECREF(sum_dy);
    Py_XDECREF(sum_dy_xhat);
    backward_close(&call);
    return result;
}

/* sum_dy, sum_dy_xhat and count, as they are for every part of a synchronised batch. */
static int sums_open(backward_call *call) {
    const npy_intp channels = call->dz.core.channels;
    vector sums[2];
    for (int i = 0; i < 2; i++) {
        const name_id name = i ? NAME_SUM_DY_XHAT : NAME_SUM_DY;
        if (call->got[name] == Py_None) {
            PyErr_Format(PyExc_TypeError, "%s must be a numpy.ndarray, got None", name_texts[name]);
            return -1;
        }
        if (vector_open(call->state, call->got[name], name, channels, NPY_DOUBLE, 0, &sums[i]) < 0) return -1;
        if (call->overwrite && refuse_overlap(&call->dz.bytes, "dz", &sums[i].bytes, sums[i].name) < 0) return -1;
        vector_read(&sums[i], channels, call->sums + i * channels);
    }
    if (!call->ctx->training) {
        call->count = 0.0; /* running statistics do not depend on x */
    } else if (call->count != call->ctx->count) {
        PyObject *wanted = PyFloat_FromDouble(call->ctx->count);
        if (wanted)
            PyErr_Format(PyExc_ValueError, "count must be %S, the elements per channel behind ctx's statistics, got %S",
                         wanted, call->got[NAME_COUNT]);
        Py_XDECREF(wanted);
        return -1;
    }
    return 0;
}

PyObject *call_backward_apply(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    backward_call call = {.state = state_of(module)};
    PyObject *result = NULL;
    PyThreadState *unlocked;
    abn_status status = ABN_OK;
    npy_intp elements;

    if (backward_open(&call, &backward_apply_signature, args, positionals, kwnames) < 0) goto done;
    if (sums_open(&call) < 0 || dx_open(&call) < 0) goto done;
    elements = batch_elements(&call.dz);
    if (elements > 0) {
        unlocked = unlock_interpreter(elements);
        status = abn_backward_apply(&call.machine, &call.ctx->core, &call.dz.core, &call.dx.core, call.sums,
                                    call.sums + call.dz.core.channels, call.count);
        lock_interpreter(unlocked);
    }
    if (status_check(status) < 0) goto done;
    result = Py_NewRef((PyObject *)call.dx.array);
    context_free(call.ctx, "backward_apply");
done:
    backward_close(&call);
    return result;
}
