/* The Python type of contexts: attributes, recompute and release; it can be pickled without arrays of x's size. */
#include "addressed.h"
#include "context.h"
#include "context_state.h"
#include "signatures.h"

#include <structmember.h>

/* ---- attributes ---------------------------------------------------------------------------------------- */

static PyObject *get_strategy(PyObject *self, void *Py_UNUSED(closure)) {
    const context *ctx = (context *)self;
    return Py_NewRef(ctx->state->strategies[ctx->strategy]);
}

static PyObject *get_activation(PyObject *self, void *Py_UNUSED(closure)) {
    const context *ctx = (context *)self;
    return Py_NewRef(ctx->state->activations[ctx->core.activation]);
}

static PyObject *get_activation_param(PyObject *self, void *Py_UNUSED(closure)) {
    return PyFloat_FromDouble(((context *)self)->core.activation_param);
}

static PyObject *get_training(PyObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(((context *)self)->training);
}

static PyObject *get_shape(PyObject *self, void *Py_UNUSED(closure)) {
    const batch *kept = &((context *)self)->kept[KEPT_MAIN].batch;
    return PyArray_IntTupleFromIntp(kept->ndim, kept->shape);
}

static PyObject *get_dtype(PyObject *self, void *Py_UNUSED(closure)) {
    return Py_NewRef((PyObject *)((context *)self)->dtype);
}

static PyObject *get_channel_axis(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromLong(((context *)self)->kept[KEPT_MAIN].batch.channel_axis);
}

static PyObject *get_freed(PyObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(((context *)self)->freed_by != NULL);
}

static PyObject *get_saved(PyObject *self, void *Py_UNUSED(closure)) {
    const context *ctx = (context *)self;
    kept_part parts[KEPT_PARTS];
    PyObject *roles, *proxy = NULL;
    if (ctx->freed_by) {
        PyErr_Format(PyExc_RuntimeError,
                     "this context was freed by %s, nothing is left of what it kept; every backward needs a forward of "
                     "its own, so run the forward again",
                     ctx->freed_by);
        return NULL;
    }
    context_parts(ctx, parts);
    roles = PyDict_New();
    for (int i = 0; roles && i < KEPT_PARTS; i++)
        if (parts[i].array && PyDict_SetItemString(roles, parts[i].name, (PyObject *)parts[i].array) < 0)
            Py_CLEAR(roles);
    if (roles) proxy = PyDictProxy_New(roles);
    Py_XDECREF(roles);
    return proxy;
}

static PyObject *get_owner(PyObject *self, void *Py_UNUSED(closure)) { return context_owner((context *)self); }

/* ---- sizes and text ---------------------------------------------------------------------------------------- */

static PyObject *get_nbytes(PyObject *self, void *Py_UNUSED(closure)) {
    kept_part parts[KEPT_PARTS];
    npy_intp bytes = 0;
    context_parts((context *)self, parts);
    for (int i = 0; i < KEPT_PARTS; i++) {
        const int is_repeated = i == KEPT_RESIDUAL && parts[i].array == parts[KEPT_MAIN].array; /* residual=x */
        if (parts[i].array && !is_repeated) bytes += parts[i].nbytes;
    }
    return PyLong_FromSsize_t((Py_ssize_t)bytes);
}

static PyObject *context_repr(PyObject *self) {
    PyObject *text = context_text((const context *)self), *whole = NULL;
    if (text) whole = PyUnicode_FromFormat("<Context of %U>", text);
    Py_XDECREF(text);
    return whole;
}

/* ---- methods ------------------------------------------------------------------------------------------- */

static PyObject *context_recompute(PyObject *self, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    binding_state *state = ((context *)self)->state;
    PyObject *got[NAMES] = {NULL}, *result = NULL;
    batch given[KEPT_ARRAYS];
    addressed arrays;
    abn_context core;
    PyArrayObject *fresh = NULL;
    PyThreadState *unlocked;
    abn_machine machine;
    abn_status status = ABN_OK;
    context *ctx = NULL;
    const batch *like;
    batch z;

    if (bind_args(state, &recompute_signature, args, positionals, kwnames, got) < 0) return NULL;
    if (machine_args(state, got, &machine) < 0) return NULL;
    if (addressed_open(state, got, &arrays) < 0) goto done;
    if (!(ctx = context_acquire(state, self))) goto done;
    like = &ctx->kept[KEPT_MAIN].batch;
    machine_settle(state, batch_elements(like), &machine);
    if (ctx->core.keep == ABN_KEEP_Z) {
        PyErr_Format(PyExc_ValueError, "strategy %R keeps z itself, there is nothing to recompute",
                     state->strategies[ctx->strategy]);
        goto done;
    }
    /* y includes the residual */
    if (context_arrays(ctx, got, ctx->has_residual && ctx->core.keep != ABN_KEEP_Y, &core, given) < 0) goto done;
    if (is_provided(got[NAME_OUT])) {
        if (context_batch(ctx, got[NAME_OUT], NAME_OUT, "recompute", &z) < 0) goto done;
        for (int i = 0; i < KEPT_ARRAYS; i++)
            if (refuse_overlap(&z.bytes, z.name, &given[i].bytes, given[i].name) < 0) goto done;
    } else if (!(fresh = batch_like(like, &z))) {
        goto done;
    }
    if (batch_elements(&z) > 0) {
        unlocked = unlock_interpreter(batch_elements(&z));
        status = abn_recompute(&machine, &core, &z.core);
        lock_interpreter(unlocked);
    }
    if (status_check(status) == 0) result = Py_NewRef(addressed_given(&arrays, z.array));
done:
    addressed_close(&arrays);
    Py_XDECREF(fresh);
    context_leave(ctx);
    return result;
}

static PyObject *context_release(PyObject *self, PyObject *Py_UNUSED(none)) {
    context *ctx = (context *)self;
    if (ctx->busy) {
        PyErr_SetString(PyExc_RuntimeError, "ctx is in use by a call in another thread");
        return NULL;
    }
    context_free(ctx, "release()");
    Py_RETURN_NONE;
}

static PyObject *context_reduce(PyObject *self, PyObject *Py_UNUSED(none)) {
    const context *ctx = (context *)self;
    PyObject *state = NULL, *make = NULL, *result = NULL;
    if (ctx->holds) {
        PyErr_SetString(PyExc_TypeError,
                        "a Context cannot be pickled or copied: it holds a lock on the very array that it keeps for "
                        "the backward; run the backward first, or forward(..., hold=False)");
        return NULL;
    }
    if ((state = context_state(self, NULL)) && (make = PyObject_GetAttrString(ctx->module, "context_from_state")))
        result = Py_BuildValue("O(O)", make, state);
    Py_XDECREF(state);
    Py_XDECREF(make);
    return result;
}

/* ---- life ---------------------------------------------------------------------------------------------- */

static int context_traverse(PyObject *self, visitproc visit, void *arg) {
    context *ctx = (context *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(ctx->module);
    Py_VISIT(ctx->dtype);
    Py_VISIT(ctx->owner);
    for (int i = 0; i < KEPT_ARRAYS; i++) Py_VISIT(ctx->kept[i].batch.array);
    for (int i = 0; i < SIDE_ARRAYS; i++) Py_VISIT(ctx->sides[i].array);
    return 0;
}

/* Keeps module and dtype, which the attributes need. Neither can form a reference cycle with a context alone. */
static int context_clear(PyObject *self) {
    context_free((context *)self, "the garbage collector");
    return 0;
}

static void context_dealloc(PyObject *self) {
    context *ctx = (context *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    context_unlock(ctx); /* first: callbacks of weak references must not find entries of a dying context */
    if (ctx->weak_references) PyObject_ClearWeakRefs(self);
    context_free(ctx, "its deletion");
    Py_XDECREF(ctx->dtype);
    Py_XDECREF(ctx->module);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"recompute", (PyCFunction)(void (*)(void))context_recompute, METH_FASTCALL | METH_KEYWORDS, recompute_doc},
    {"release", context_release, METH_NOARGS, release_doc},
    {"state", context_state, METH_NOARGS, state_doc},
    {"__reduce__", context_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"strategy", get_strategy, NULL, "The name of the strategy, as passed to forward.", NULL},
    {"activation", get_activation, NULL, "The activation's name.", NULL},
    {"activation_param", get_activation_param, NULL, "Slope of leaky_relu, alpha of elu and celu.", NULL},
    {"training", get_training, NULL,
     "True if batch statistics were used (of this batch or of several), False for running ones.", NULL},
    {"shape", get_shape, NULL, "The shape of x, z and their gradients.", NULL},
    {"dtype", get_dtype, NULL, "Their dtype.", NULL},
    {"channel_axis", get_channel_axis, NULL, "1 or -1.", NULL},
    {"owner", get_owner, NULL, "Who needs what is kept; messages and memory.ledger() show it.", NULL},
    {"saved", get_saved, NULL,
     "Everything kept for the backward, by role, as a read-only mapping. RuntimeError once freed.", NULL},
    {"nbytes", get_nbytes, NULL, "The bytes of `saved`, each array once; 0 once freed.", NULL},
    {"freed", get_freed, NULL, "True after the backward or release().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(context, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "What a forward keeps for its backward. The arrays kept are read-only until it is freed."},
    {Py_tp_dealloc, context_dealloc},
    {Py_tp_traverse, context_traverse},
    {Py_tp_clear, context_clear},
    {Py_tp_repr, context_repr},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_tp_members, members},
    {0, NULL},
};

PyType_Spec context_spec = {
    .name = "inplace_abn._core.Context",
    .basicsize = sizeof(context),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
