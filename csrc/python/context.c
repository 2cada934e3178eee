/* The life of a context: made, filled, locked, used, freed. */
#include "context.h"

#include <string.h>

/* ---- making ------------------------------------------------------------------------------------------- */

context *context_new(PyObject *module) {
    binding_state *state = state_of(module);
    context *ctx = (context *)state->context_type->tp_alloc(state->context_type, 0);
    if (!ctx) return NULL;
    PyObject_GC_UnTrack(ctx); /* nobody is to find it among the collector's objects before it is complete */
    ctx->module = Py_NewRef(module);
    ctx->state = state;
    ctx->freed_by = "an error in forward";
    return ctx;
}

int context_open(context *ctx, const batch *x, int strategy) {
    const npy_intp channels = x->core.channels;
    double *block = PyMem_Malloc((size_t)channels * (5 * sizeof(double) + 2 * sizeof(ptrdiff_t)) + sizeof(ptrdiff_t));
    ctx->constants = block;
    if (!block) {
        PyErr_NoMemory();
        return -1;
    }
    ctx->strategy = strategy;
    ctx->kept = *x;
    ctx->kept.array = NULL;
    ctx->dtype = (PyArray_Descr *)Py_NewRef(PyArray_DESCR(x->array));
    ctx->core = (abn_context){
        .keep = strategy_table[strategy].keep,
        .scheme = strategy_table[strategy].scheme,
        .kept = x->core,
        .norm = {.weight = block,
                 .bias = block + channels,
                 .mean = block + 2 * channels,
                 .var = block + 3 * channels,
                 .inv_std = block + 4 * channels},
    };
    return 0;
}

static void free_memory(PyObject *capsule) { PyDataMem_FREE(PyCapsule_GetPointer(capsule, NULL)); }

/* Takes over the reference to dtype. */
static int side_open(side_array *side, PyArray_Descr *dtype, int ndim, const npy_intp *dims) {
    const npy_intp nbytes = PyArray_MultiplyList(dims, ndim) * PyDataType_ELSIZE(dtype);
    void *data = PyDataMem_NEW((size_t)nbytes);
    if (!data) {
        Py_DECREF(dtype);
        PyErr_NoMemory();
        return -1;
    }
    if (!(side->memory = PyCapsule_New(data, NULL, free_memory))) {
        Py_DECREF(dtype);
        PyDataMem_FREE(data);
        return -1;
    }
    side->array =
        (PyArrayObject *)PyArray_NewFromDescr(&PyArray_Type, dtype, ndim, dims, NULL, data, NPY_ARRAY_CARRAY_RO, NULL);
    side->nbytes = nbytes;
    return side->array ? PyArray_SetBaseObject(side->array, Py_NewRef(side->memory)) : -1;
}

static void side_free(side_array *side) {
    Py_CLEAR(side->array);
    Py_CLEAR(side->memory);
}

int context_guard(context *ctx) {
    abn_context *core = &ctx->core;
    const abn_batch *x = &core->kept;
    ptrdiff_t *slot = (ptrdiff_t *)((double *)ctx->constants + 5 * x->channels);
    npy_intp dims[3] = {0, x->batch, x->spatial};
    if (core->keep != ABN_KEEP_Z || batch_elements(&ctx->kept) == 0) return 0;
    core->guard.count = abn_guard_channels(x->dtype, core->activation, core->activation_param, core->norm.weight,
                                           core->norm.bias, x->channels, x->batch * x->spatial, slot);
    if (core->guard.count == 0) return 0;
    dims[0] = core->guard.count;
    if (ctx->kept.layout == CHANNELS_LAST) {
        dims[0] = x->batch;
        dims[1] = x->spatial;
        dims[2] = core->guard.count;
    }
    if (side_open(&ctx->guarded, (PyArray_Descr *)Py_NewRef(ctx->dtype), 3, dims) < 0) return -1;
    core->guard.slot = slot;
    core->guard.xhat = PyArray_DATA(ctx->guarded.array);
    return 0;
}

/* From the library's memory to NumPy's, where tracemalloc and the user can see it. */
int context_keep_escapes(context *ctx) {
    abn_escapes *escapes = &ctx->core.escapes;
    const npy_intp channels = ctx->kept.core.channels;
    npy_intp count = escapes->count;
    ptrdiff_t *first = (ptrdiff_t *)((double *)ctx->constants + 5 * channels) + channels;
    int outcome = -1;
    if (count == 0) {
        abn_escapes_free(escapes);
        return 0;
    }
    if (side_open(&ctx->escape_index, PyArray_DescrFromType(NPY_INT64), 1, &count) == 0 &&
        side_open(&ctx->escape_xhat, PyArray_DescrFromType(NPY_DOUBLE), 1, &count) == 0) {
        memcpy(first, escapes->first, (size_t)(channels + 1) * sizeof(ptrdiff_t));
        memcpy(PyArray_DATA(ctx->escape_index.array), escapes->position, (size_t)count * sizeof(int64_t));
        memcpy(PyArray_DATA(ctx->escape_xhat.array), escapes->xhat, (size_t)count * sizeof(double));
        outcome = 0;
    }
    abn_escapes_free(escapes);
    if (outcome == 0)
        *escapes = (abn_escapes){.count = count,
                                 .first = first,
                                 .position = PyArray_DATA(ctx->escape_index.array),
                                 .xhat = PyArray_DATA(ctx->escape_xhat.array)};
    return outcome;
}

/* ---- keeping ------------------------------------------------------------------------------------------- */

static context *keeper_of(const binding_state *state, const PyArrayObject *array, const context *other_than) {
    for (context *ctx = state->live; ctx; ctx = ctx->next)
        if (ctx != other_than && ctx->lock != LOCK_NONE && ctx->kept.array == array) return ctx;
    return NULL;
}

int context_keeps(const binding_state *state, const PyArrayObject *array) {
    return keeper_of(state, array, NULL) != NULL;
}

static void lock(context *ctx) {
    if (PyArray_ISWRITEABLE(ctx->kept.array)) {
        PyArray_CLEARFLAGS(ctx->kept.array, NPY_ARRAY_WRITEABLE);
        ctx->lock = LOCK_SOLE;
    } else {
        context *keeper = keeper_of(ctx->state, ctx->kept.array, ctx);
        if (keeper) ctx->lock = keeper->lock = LOCK_SHARED;
    }
}

/* An array that was given other memory since, perhaps somebody's constant bytes, stays locked. */
static void unlock(context *ctx) {
    const lock_kind held = ctx->lock;
    ctx->lock = LOCK_NONE;
    if (held == LOCK_NONE || (held == LOCK_SHARED && keeper_of(ctx->state, ctx->kept.array, ctx))) return;
    if (PyArray_DATA(ctx->kept.array) == ctx->core.kept.data) PyArray_ENABLEFLAGS(ctx->kept.array, NPY_ARRAY_WRITEABLE);
}

void context_keep(context *ctx, PyArrayObject *array) {
    ctx->kept.array = (PyArrayObject *)Py_NewRef(array);
    ctx->kept_nbytes = PyArray_NBYTES(array);
    ctx->freed_by = NULL;
    ctx->busy = 1;
    PyObject_GC_Track((PyObject *)ctx);
    lock(ctx);
    ctx->next = ctx->state->live;
    if (ctx->next) ctx->next->previous = ctx;
    ctx->state->live = ctx;
}

int refuse_kept(const binding_state *state, const footprint *written, const char *name) {
    for (const context *ctx = state->live; ctx; ctx = ctx->next) {
        PyObject *text;
        if (!footprints_meet(written, &ctx->kept.bytes)) continue;
        if ((text = context_text(ctx))) {
            PyErr_Format(PyExc_ValueError,
                         "%s is written in place, and shares memory with the %s that a live context keeps for its "
                         "backward (%U); run that backward or release() the context first, or pass a copy",
                         name, context_role(ctx), text);
            Py_DECREF(text);
        }
        return -1;
    }
    return 0;
}

void context_free(context *ctx, const char *by) {
    if (ctx->kept.array) {
        unlock(ctx);
        if (ctx->next) ctx->next->previous = ctx->previous;
        if (ctx->previous)
            ctx->previous->next = ctx->next;
        else
            ctx->state->live = ctx->next;
        ctx->next = ctx->previous = NULL;
        ctx->freed_by = by;
    }
    PyMem_Free(ctx->constants);
    ctx->constants = NULL;
    side_free(&ctx->guarded);
    side_free(&ctx->escape_index);
    side_free(&ctx->escape_xhat);
    Py_CLEAR(ctx->kept.array); /* last: what it is a view of may run Python code when it goes */
}

/* ---- using --------------------------------------------------------------------------------------------- */

/* Is what ctx keeps still what the forward left? The lock is only a flag, and NumPy has ways around it. */
static int kept_check(const context *ctx) {
    PyArrayObject *array = ctx->kept.array;
    PyArray_Descr *dtype = PyArray_DESCR(array);
    if (PyArray_DATA(array) != ctx->core.kept.data || PyArray_NBYTES(array) != ctx->kept_nbytes) {
        PyErr_Format(PyExc_RuntimeError,
                     "the array that ctx keeps was resized or given other memory: it had %zd bytes at %p, and now has "
                     "%zd bytes at %p; run forward again",
                     (Py_ssize_t)ctx->kept_nbytes, ctx->core.kept.data, (Py_ssize_t)PyArray_NBYTES(array),
                     PyArray_DATA(array));
        return -1;
    }
    if (dtype->type_num != ctx->dtype->type_num || PyArray_ISBYTESWAPPED(array)) {
        PyErr_Format(
            PyExc_RuntimeError,
            "the array that ctx keeps was made another dtype: it was %S, and now is %R; set its dtype back, or "
            "run forward again",
            (PyObject *)ctx->dtype, (PyObject *)dtype);
        return -1;
    }
    if (ctx->lock != LOCK_NONE && PyArray_ISWRITEABLE(array)) {
        PyErr_SetString(PyExc_RuntimeError,
                        "the array that ctx keeps was unlocked: flags.writeable is True, and was False; set it back if "
                        "nothing was written, or run forward again");
        return -1;
    }
    return 0;
}

context *context_claim(const binding_state *state, PyObject *got) {
    context *ctx = (context *)got;
    if (!Py_IS_TYPE(got, state->context_type)) {
        PyErr_Format(PyExc_TypeError, "ctx must be the Context that forward or normalize returned, got '%s'",
                     Py_TYPE(got)->tp_name);
        return NULL;
    }
    if (ctx->freed_by) {
        PyErr_Format(PyExc_RuntimeError, "ctx keeps nothing any more, it was freed by %s; run forward again",
                     ctx->freed_by);
        return NULL;
    }
    if (ctx->busy) {
        PyErr_SetString(PyExc_RuntimeError,
                        "ctx is in use by a call in another thread; a context serves one at a time");
        return NULL;
    }
    if (kept_check(ctx) < 0) return NULL;
    ctx->busy = 1;
    return ctx;
}

void context_unclaim(context *ctx) {
    if (ctx) ctx->busy = 0;
}

int context_batch(context *ctx, PyObject *got, name_id name, int writable, batch *b) {
    if (batch_open(ctx->state, got, name, ctx->kept.channel_axis, &ctx->kept, writable, b) < 0) return -1;
    if (!writable) return 0;
    if (refuse_overlap(&b->bytes, b->name, &ctx->kept.bytes, "what ctx keeps") < 0) return -1;
    return refuse_kept(ctx->state, &b->bytes, b->name);
}
