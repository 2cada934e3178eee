/* The life of a context: made, filled, locked, used, freed. */
#include "context.h"

#include <string.h>

/* ---- making ------------------------------------------------------------------------------------------- */

context *context_new(PyObject *module, const batch *x, int strategy) {
    binding_state *state = state_of(module);
    context *ctx = (context *)state->context_type->tp_alloc(state->context_type, 0);
    const npy_intp channels = x->core.channels;
    double *block;
    if (!ctx) return NULL;
    ctx->module = Py_NewRef(module);
    ctx->state = state;
    ctx->freed_by = "an error in forward";
    ctx->strategy = strategy;
    ctx->kept = *x;
    ctx->kept.array = NULL;
    ctx->dtype = (PyArray_Descr *)Py_NewRef(PyArray_DESCR(x->array));
    ctx->constants = block =
        PyMem_Malloc((size_t)channels * (5 * sizeof(double) + 2 * sizeof(ptrdiff_t)) + sizeof(ptrdiff_t));
    if (!block) {
        PyErr_NoMemory();
        Py_DECREF(ctx);
        return NULL;
    }
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
    return ctx;
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
    Py_INCREF(ctx->dtype);
    ctx->guarded = (PyArrayObject *)PyArray_NewFromDescr(&PyArray_Type, ctx->dtype, 3, dims, NULL, NULL, 0, NULL);
    if (!ctx->guarded) return -1;
    core->guard.slot = slot;
    core->guard.xhat = PyArray_DATA(ctx->guarded);
    return 0;
}

/* From the library's memory to NumPy's, where tracemalloc and the user can see it. */
static int adopt_escapes(context *ctx) {
    abn_escapes *escapes = &ctx->core.escapes;
    const npy_intp channels = ctx->kept.core.channels;
    npy_intp count = escapes->count;
    ptrdiff_t *first = (ptrdiff_t *)((double *)ctx->constants + 5 * channels) + channels;
    int outcome = -1;
    if (count == 0) {
        abn_escapes_free(escapes);
        return 0;
    }
    ctx->escape_index = (PyArrayObject *)PyArray_SimpleNew(1, &count, NPY_INT64);
    ctx->escape_xhat = (PyArrayObject *)PyArray_SimpleNew(1, &count, NPY_DOUBLE);
    if (ctx->escape_index && ctx->escape_xhat) {
        memcpy(first, escapes->first, (size_t)(channels + 1) * sizeof(ptrdiff_t));
        memcpy(PyArray_DATA(ctx->escape_index), escapes->position, (size_t)count * sizeof(int64_t));
        memcpy(PyArray_DATA(ctx->escape_xhat), escapes->xhat, (size_t)count * sizeof(double));
        outcome = 0;
    }
    abn_escapes_free(escapes);
    if (outcome == 0)
        *escapes = (abn_escapes){.count = count,
                                 .first = first,
                                 .position = PyArray_DATA(ctx->escape_index),
                                 .xhat = PyArray_DATA(ctx->escape_xhat)};
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

static void unlock(context *ctx) {
    const lock_kind held = ctx->lock;
    ctx->lock = LOCK_NONE;
    if (held == LOCK_NONE || (held == LOCK_SHARED && keeper_of(ctx->state, ctx->kept.array, ctx))) return;
    PyArray_ENABLEFLAGS(ctx->kept.array, NPY_ARRAY_WRITEABLE);
}

int context_keep(context *ctx, PyArrayObject *array) {
    PyArrayObject *side[3];
    if (adopt_escapes(ctx) < 0) return -1;
    side[0] = ctx->guarded;
    side[1] = ctx->escape_index;
    side[2] = ctx->escape_xhat;
    for (int i = 0; i < 3; i++)
        if (side[i]) PyArray_CLEARFLAGS(side[i], NPY_ARRAY_WRITEABLE);
    ctx->kept.array = (PyArrayObject *)Py_NewRef(array);
    ctx->freed_by = NULL;
    lock(ctx);
    ctx->next = ctx->state->live;
    if (ctx->next) ctx->next->previous = ctx;
    ctx->state->live = ctx;
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
    Py_CLEAR(ctx->kept.array);
    Py_CLEAR(ctx->guarded);
    Py_CLEAR(ctx->escape_index);
    Py_CLEAR(ctx->escape_xhat);
    PyMem_Free(ctx->constants);
    ctx->constants = NULL;
}

/* ---- using --------------------------------------------------------------------------------------------- */

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
    if (PyArray_DATA(ctx->kept.array) != ctx->core.kept.data ||
        PyArray_SIZE(ctx->kept.array) != batch_elements(&ctx->kept)) {
        PyErr_SetString(PyExc_RuntimeError, "the array that ctx keeps was resized or given other memory");
        return NULL;
    }
    ctx->busy = 1;
    return ctx;
}

void context_unclaim(context *ctx) {
    if (ctx) ctx->busy = 0;
}

int context_batch(context *ctx, PyObject *got, name_id name, int writable, batch *b) {
    if (batch_open(ctx->state, got, name, ctx->kept.channel_axis, &ctx->kept, writable, b) < 0) return -1;
    return writable ? refuse_overlap(ctx->state, b->array, b->name, ctx->kept.array, "what ctx keeps") : 0;
}
