/* The functions backward, backward_reduce and backward_apply. */
#include "addressed.h"
#include "calls.h"
#include "context.h"
#include "signatures.h"

#include <math.h>
#include <string.h>

typedef struct {
    binding_state *state;
    PyObject *got[NAMES];
    addressed arrays;
    context *ctx;
    abn_context core; /* ctx->core with the arrays that the call reads */
    int overwrite, keep, residual_activation;
    double residual_param;
    abn_machine machine;
    batch given[KEPT_ARRAYS];                  /* kept= and residual= */
    batch dz, dx, dresidual;                   /* dresidual.array is NULL without a residual */
    PyArrayObject *fresh_dx, *fresh_dresidual; /* owned; NULL if the caller's array is written */
    abn_sums sums;                             /* sums.dy is the start of one block, which is owned */
    double count;
} backward_call;

static int sums_new(backward_call *call) {
    const size_t channels = (size_t)call->dz.core.channels, bytes = 3 * channels * sizeof(double);
    double *block = PyMem_Malloc(bytes);
    if (!block) {
        PyErr_NoMemory();
        return -1;
    }
    memset(block, 0, bytes);
    call->sums = (abn_sums){.dy = block, .dy_xhat = block + channels};
    if (call->ctx->core.channel_param) call->sums.param = block + 2 * channels;
    return 0;
}

/* residual_activation=: residual= holds another layer's y, and the residual is this activation of it. */
static int residual_activation_check(backward_call *call) {
    const abn_activation_info *info = &abn_activation_table[call->residual_activation];
    if (call->residual_activation == ABN_IDENTITY) return 0;
    if (!call->given[KEPT_RESIDUAL].array || call->core.keep != ABN_KEEP_Y) {
        PyErr_Format(
            PyExc_ValueError,
            "residual_activation goes with residual= and a ctx of strategy 'pre_activation', got '%s'; leave it "
            "out",
            info->name);
        return -1;
    }
    if (info->param == ABN_CHANNEL_PARAM || !isfinite(call->residual_param) ||
        (info->param == ABN_NONZERO_PARAM && call->residual_param == 0.0)) {
        PyErr_Format(PyExc_ValueError, "residual_activation '%s' is not possible with this residual_activation_param",
                     info->name);
        return -1;
    }
    call->core.residual_activation = (abn_activation)call->residual_activation;
    call->core.residual_param = call->residual_param;
    return 0;
}

/* Binds and checks the arguments. Call backward_close afterwards, also after an error. Everything that may run Python
 * code happens before the context is acquired: see forward_or_normalize. */
static int backward_open(backward_call *call, const signature *sig, PyObject *const *args, Py_ssize_t positionals,
                         PyObject *kwnames) {
    if (bind_args(call->state, sig, args, positionals, kwnames, call->got) < 0) return -1;
    call->residual_param = 0.01;
    if (bool_arg(call->got[NAME_OVERWRITE], NAME_OVERWRITE, &call->overwrite) < 0 ||
        bool_arg(call->got[NAME_KEEP], NAME_KEEP, &call->keep) < 0 ||
        choice_arg(call->got[NAME_RESIDUAL_ACTIVATION], NAME_RESIDUAL_ACTIVATION, call->state->activations,
                   ABN_ACTIVATIONS, &call->residual_activation) < 0 ||
        double_arg(call->got[NAME_RESIDUAL_ACTIVATION_PARAM], NAME_RESIDUAL_ACTIVATION_PARAM, &call->residual_param) <
            0)
        return -1;
    if (double_arg(call->got[NAME_COUNT], NAME_COUNT, &call->count) < 0) return -1;
    if (machine_args(call->state, call->got, &call->machine) < 0) return -1;
    if (addressed_open(call->state, call->got, &call->arrays) < 0) return -1;
    if (!(call->ctx = context_acquire(call->state, call->got[NAME_CTX]))) return -1;
    if (context_batch(call->ctx, call->got[NAME_DZ], NAME_DZ, call->overwrite ? sig->function : NULL, &call->dz) < 0)
        return -1;
    if (context_arrays(call->ctx, call->got, call->ctx->has_residual, &call->core, call->given) < 0) return -1;
    if (residual_activation_check(call) < 0) return -1;
    machine_settle(call->state, batch_elements(&call->dz), &call->machine);
    return sums_new(call);
}

static void backward_close(backward_call *call) {
    PyMem_Free(call->sums.dy);
    Py_XDECREF(call->fresh_dx);
    Py_XDECREF(call->fresh_dresidual);
    context_leave(call->ctx);
    addressed_close(&call->arrays);
}

static int is_same_memory(const batch *a, const batch *b) {
    const abn_batch *one = &a->core, *other = &b->core;
    return b->array && one->data == other->data && one->batch_stride == other->batch_stride &&
           one->channel_stride == other->channel_stride && one->spatial_stride == other->spatial_stride;
}

/* Refuses an output that shares memory with an array that is read; it may be the very memory of `reused`. */
static int written_check(const backward_call *call, const batch *written, const batch *reused) {
    const batch *read[] = {&call->dz, &call->given[KEPT_MAIN], &call->given[KEPT_RESIDUAL]};
    for (size_t i = 0; i < sizeof read / sizeof *read; i++) {
        if (read[i] == reused && is_same_memory(written, reused)) continue;
        if (refuse_overlap(&written->bytes, written->name, &read[i]->bytes, read[i]->name) < 0) return -1;
    }
    return 0;
}

/* out=: dx is written to it. It may be the given `kept` itself if no other backward will read that. */
static int out_open(backward_call *call, const char *writer) {
    PyObject *got = call->got[NAME_OUT];
    call->dx = call->dz;
    if (is_provided(got) && call->overwrite) {
        PyErr_SetString(PyExc_ValueError,
                        "overwrite=True writes dx over dz, and out names another array for it; give one "
                        "of them");
        return -1;
    }
    if (call->overwrite) return written_check(call, &call->dz, &call->dz);
    if (!is_provided(got)) {
        call->dx.array = NULL;
        return 0;
    }
    if (context_batch(call->ctx, got, NAME_OUT, writer, &call->dx) < 0) return -1;
    return written_check(call, &call->dx, call->keep ? NULL : &call->given[KEPT_MAIN]);
}

/* residual_grad=: the gradient of the residual is added to it. residual_out=: it is written to it; that may be dz. */
static int residual_grad_open(backward_call *call, const char *writer) {
    const int adds = is_provided(call->got[NAME_RESIDUAL_GRAD]), writes = is_provided(call->got[NAME_RESIDUAL_OUT]);
    const name_id name = adds ? NAME_RESIDUAL_GRAD : NAME_RESIDUAL_OUT;
    if (!adds && !writes) return 0;
    if (adds && writes) {
        PyErr_SetString(PyExc_ValueError, "residual_grad is added to, residual_out is written; give one of them");
        return -1;
    }
    if (!call->ctx->has_residual) {
        PyErr_Format(PyExc_ValueError,
                     "%s goes with a ctx of a forward that was given residual, and this one was not; leave it out",
                     name_texts[name]);
        return -1;
    }
    if (context_batch(call->ctx, call->got[name], name, writer, &call->dresidual) < 0) return -1;
    if (call->dx.array &&
        refuse_overlap(&call->dresidual.bytes, name_texts[name], &call->dx.bytes, call->overwrite ? "dz" : "out") < 0)
        return -1;
    return written_check(call, &call->dresidual, writes ? &call->dz : NULL);
}

/* Allocates dx and the gradient of the residual, unless they are written into arrays of the caller. */
static int gradients_open(backward_call *call) {
    const batch *x = &call->ctx->kept[KEPT_MAIN].batch;
    if (!call->dx.array && !(call->fresh_dx = batch_like(x, &call->dx))) return -1;
    if (call->ctx->has_residual && !call->dresidual.array && !(call->fresh_dresidual = batch_like(x, &call->dresidual)))
        return -1;
    return 0;
}

static abn_gradients gradients_of(const backward_call *call) {
    return (abn_gradients){.dx = call->dx.core,
                           .residual = call->dresidual.core,
                           .add_to_residual = is_provided(call->got[NAME_RESIDUAL_GRAD])};
}

static PyObject *vector_or_none(const backward_call *call, int wanted, npy_intp length) {
    return wanted ? vector_new(weight_type(call->dz.core.dtype), length) : Py_NewRef(Py_None);
}

/* Fills the gradient of the slope: per channel, or the sum for one slope of all channels. */
static void slope_fill(const backward_call *call, PyObject *array) {
    const npy_intp channels = call->dz.core.channels;
    double sum = 0.0;
    if (call->ctx->slopes == channels) {
        vector_fill(array, channels, call->sums.param);
        return;
    }
    for (npy_intp c = 0; c < channels; c++) sum += call->sums.param[c];
    vector_fill(array, 1, &sum);
}

PyObject *call_backward(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    backward_call call = {.state = state_of(module)};
    PyObject *result = NULL, *dweight = NULL, *dbias = NULL, *dslope = NULL, *dresidual;
    const context *ctx;
    PyThreadState *unlocked;
    abn_status status = ABN_OK;
    npy_intp elements, channels;

    if (backward_open(&call, &backward_signature, args, positionals, kwnames) < 0) goto done;
    ctx = call.ctx;
    if (ctx->training && ctx->count != (double)context_per_channel(ctx)) {
        PyErr_SetString(PyExc_ValueError, "ctx has statistics of more elements than this batch's: use backward_reduce, "
                                          "add up the sums of all batches, and backward_apply");
        goto done;
    }
    if (out_open(&call, "backward") < 0 || residual_grad_open(&call, "backward") < 0 || gradients_open(&call) < 0)
        goto done;
    channels = call.dz.core.channels;
    if (!(dweight = vector_or_none(&call, ctx->has_weight, channels))) goto done;
    if (!(dbias = vector_or_none(&call, ctx->has_bias, channels))) goto done;
    if (!(dslope = vector_or_none(&call, call.sums.param != NULL, ctx->slopes))) goto done;
    elements = batch_elements(&call.dz);
    if (elements > 0) {
        const abn_gradients to = gradients_of(&call);
        unlocked = unlock_interpreter(elements);
        status = abn_backward(&call.machine, &call.core, &call.dz.core, &to, &call.sums, ctx->training);
        lock_interpreter(unlocked);
    }
    if (status_check(status) < 0) goto done;
    if (ctx->has_weight) vector_fill(dweight, channels, call.sums.dy_xhat);
    if (ctx->has_bias) vector_fill(dbias, channels, call.sums.dy);
    if (call.sums.param) slope_fill(&call, dslope);
    dresidual = call.dresidual.array ? addressed_given(&call.arrays, call.dresidual.array) : Py_None;
    result = PyTuple_Pack(5, addressed_given(&call.arrays, call.dx.array), dweight, dbias, dslope, dresidual);
    if (result && !call.keep) context_free(call.ctx, "backward");
done:
    Py_XDECREF(dweight);
    Py_XDECREF(dbias);
    Py_XDECREF(dslope);
    backward_close(&call);
    return result;
}

PyObject *call_backward_reduce(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    backward_call call = {.state = state_of(module)};
    PyObject *result = NULL, *sum_dy = NULL, *sum_dy_xhat = NULL, *dslope = NULL;
    PyThreadState *unlocked;
    abn_status status = ABN_OK;
    npy_intp elements, channels;

    if (backward_open(&call, &backward_reduce_signature, args, positionals, kwnames) < 0) goto done;
    elements = batch_elements(&call.dz);
    channels = call.dz.core.channels;
    if (elements > 0) {
        unlocked = unlock_interpreter(elements);
        status = abn_backward_reduce(&call.machine, &call.core, &call.dz.core, &call.sums);
        lock_interpreter(unlocked);
    }
    if (status_check(status) < 0) goto done;
    if (!(sum_dy = vector_new(NPY_DOUBLE, channels))) goto done;
    if (!(sum_dy_xhat = vector_new(NPY_DOUBLE, channels))) goto done;
    if (!(dslope = call.sums.param ? vector_new(NPY_DOUBLE, call.ctx->slopes) : Py_NewRef(Py_None))) goto done;
    vector_fill(sum_dy, channels, call.sums.dy);
    vector_fill(sum_dy_xhat, channels, call.sums.dy_xhat);
    if (call.sums.param) slope_fill(&call, dslope);
    result = PyTuple_Pack(3, sum_dy, sum_dy_xhat, dslope);
done:
    Py_XDECREF(sum_dy);
    Py_XDECREF(sum_dy_xhat);
    Py_XDECREF(dslope);
    backward_close(&call);
    return result;
}

/* Reads sum_dy, sum_dy_xhat and count, which are the same for every part of a synchronised batch. */
static int sums_open(backward_call *call) {
    const npy_intp channels = call->dz.core.channels;
    vector sums[2];
    for (int i = 0; i < 2; i++) {
        const name_id name = i ? NAME_SUM_DY_XHAT : NAME_SUM_DY;
        if (call->got[name] == Py_None) {
            PyErr_Format(PyExc_TypeError, "%s must be a numpy.ndarray, got None", name_texts[name]);
            return -1;
        }
        if (vector_open(call->state, call->got[name], name, channels, NPY_DOUBLE, NULL, &sums[i]) < 0) return -1;
        if (call->dx.array && refuse_overlap(&call->dx.bytes, call->dx.name, &sums[i].bytes, sums[i].name) < 0)
            return -1;
        if (refuse_overlap(&call->dresidual.bytes, call->dresidual.name, &sums[i].bytes, sums[i].name) < 0) return -1;
        vector_read(&sums[i], channels, i ? call->sums.dy_xhat : call->sums.dy);
    }
    if (!call->ctx->training) {
        call->count = 0.0; /* running statistics do not depend on x */
    } else if (call->count != call->ctx->count) {
        PyObject *wanted = PyLong_FromDouble(call->ctx->count);
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
    if (call.ctx->has_residual && !is_provided(call.got[NAME_RESIDUAL_GRAD]) &&
        !is_provided(call.got[NAME_RESIDUAL_OUT])) {
        PyErr_SetString(
            PyExc_ValueError,
            "residual_grad is needed by a ctx of a forward that was given residual, got None; give an array, "
            "zeros like x for one, that the residual's gradient is added to");
        goto done;
    }
    if (out_open(&call, "backward_apply") < 0 || residual_grad_open(&call, "backward_apply") < 0 ||
        sums_open(&call) < 0 || gradients_open(&call) < 0)
        goto done;
    elements = batch_elements(&call.dz);
    if (elements > 0) {
        const abn_gradients to = gradients_of(&call);
        unlocked = unlock_interpreter(elements);
        status = abn_backward_apply(&call.machine, &call.core, &call.dz.core, &to, &call.sums, call.count);
        lock_interpreter(unlocked);
    }
    if (status_check(status) < 0) goto done;
    result = Py_NewRef(addressed_given(&call.arrays, call.dx.array));
    if (!call.keep) context_free(call.ctx, "backward_apply");
done:
    backward_close(&call);
    return result;
}
