/* Creates, fills, registers, checks and frees contexts. */
#include "context.h"

#include <string.h>

#include "../guard.h"

/* ---- making ------------------------------------------------------------------------------------------- */

context *context_new(PyObject *module, const char *function, PyObject *owner) {
    binding_state *state = state_of(module);
    context *ctx = (context *)state->context_type->tp_alloc(state->context_type, 0);
    if (!ctx) return NULL;
    PyObject_GC_UnTrack(ctx); /* gc.get_objects() must not return a context that is incomplete */
    ctx->module = Py_NewRef(module);
    ctx->state = state;
    ctx->function = function;
    ctx->owner = is_provided(owner) ? Py_NewRef(owner) : NULL;
    ctx->freed_by = "an error in forward";
    return ctx;
}

enum { CONSTANTS = 6 }; /* vectors of doubles in the block; the slots of guarded channels follow them */

int context_open(context *ctx, const batch *x, const batch *residual, int strategy) {
    const npy_intp channels = x->core.channels;
    double *block = PyMem_Calloc((size_t)channels, CONSTANTS * sizeof(double) + sizeof(ptrdiff_t));
    ctx->constants = block;
    if (!block) {
        PyErr_NoMemory();
        return -1;
    }
    ctx->strategy = strategy;
    ctx->kept[KEPT_MAIN].batch = *x;
    ctx->kept[KEPT_RESIDUAL].batch = *residual;
    for (int i = 0; i < KEPT_ARRAYS; i++) ctx->kept[i].batch.array = NULL; /* not owned yet */
    ctx->dtype = (PyArray_Descr *)Py_NewRef(x->dtype);
    ctx->has_residual = residual->array != NULL;
    ctx->core = (abn_context){
        .keep = strategy_table[strategy].keep,
        .scheme = strategy_table[strategy].scheme,
        .kept = x->core,
        .channel_param = block + 5 * channels,
        .residual = residual->core,
        .norm = {.weight = block,
                 .bias = block + channels,
                 .mean = block + 2 * channels,
                 .var = block + 3 * channels,
                 .inv_std = block + 4 * channels},
    };
    return 0;
}

static void free_memory(PyObject *capsule) { PyDataMem_FREE(PyCapsule_GetPointer(capsule, NULL)); }

int context_side_open(context *ctx, int which, PyArray_Descr *dtype, int ndim, const npy_intp *dims) {
    side_array *side = &ctx->sides[which];
    const npy_intp nbytes = PyArray_MultiplyList(dims, ndim) * PyDataType_ELSIZE(dtype);
    void *data = PyDataMem_NEW_ZEROED((size_t)nbytes, 1);
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

int context_open_mask(context *ctx, const mask *m) {
    side_array *side = &ctx->sides[SIDE_MASK];
    npy_intp words = mask_words(&ctx->kept[KEPT_MAIN].batch);
    if (!m->array) return 0;
    if (context_side_open(ctx, SIDE_MASK, PyArray_DescrFromType(NPY_UINT64), 1, &words) < 0) return -1;
    mask_pack(m, PyArray_DATA(side->array));
    ctx->core.mask = (abn_mask){PyArray_DATA(side->array), m->valid};
    return 0;
}

npy_intp context_per_channel(const context *ctx) {
    return ctx->core.mask.words ? ctx->core.mask.valid : batch_per_channel(&ctx->kept[KEPT_MAIN].batch);
}

static int branch_mask_open(context *ctx) {
    side_array *side = &ctx->sides[SIDE_BRANCH_MASK];
    npy_intp bytes = (npy_intp)abn_branch_mask_bytes(&ctx->core);
    if (bytes == 0) return 0;
    if (context_side_open(ctx, SIDE_BRANCH_MASK, PyArray_DescrFromType(NPY_UINT8), 1, &bytes) < 0) return -1;
    ctx->core.branch_mask = PyArray_DATA(side->array);
    return 0;
}

ptrdiff_t *context_guard_slots(const context *ctx) {
    return (ptrdiff_t *)((double *)ctx->constants + CONSTANTS * ctx->core.kept.channels);
}

void context_guarded_shape(const context *ctx, npy_intp *dims) {
    const abn_batch *x = &ctx->core.kept;
    const abn_mask *x_mask = &ctx->core.mask;
    const int masked = x_mask->words != NULL;
    const npy_intp count = ctx->core.guard.count, batch = masked ? 1 : x->batch;
    const npy_intp spatial = masked ? x_mask->valid : x->spatial;
    const int is_last = ctx->kept[KEPT_MAIN].batch.layout == CHANNELS_LAST;
    dims[0] = is_last ? batch : count;
    dims[1] = is_last ? spatial : batch;
    dims[2] = is_last ? count : spatial;
}

static int guard_open(context *ctx) {
    abn_guard *guard = &ctx->core.guard;
    ptrdiff_t *slot = context_guard_slots(ctx);
    npy_intp dims[3];
    guard->count = abn_guard_channels(&ctx->core, slot);
    if (guard->count == 0) return 0;
    context_guarded_shape(ctx, dims);
    if (context_side_open(ctx, SIDE_GUARDED, (PyArray_Descr *)Py_NewRef(ctx->dtype), 3, dims) < 0) return -1;
    guard->slot = slot;
    guard->xhat = PyArray_DATA(ctx->sides[SIDE_GUARDED].array);
    return 0;
}

int context_open_sides(context *ctx) {
    if (!abn_recovers_xhat(&ctx->core) || batch_elements(&ctx->kept[KEPT_MAIN].batch) == 0) return 0;
    if (context_per_channel(ctx) == 0) return 0;
    return branch_mask_open(ctx) < 0 || guard_open(ctx) < 0 ? -1 : 0;
}

/* Moves the escapes from the C core's memory to NumPy's, which tracemalloc counts and users can read. */
int context_keep_escapes(context *ctx) {
    abn_escapes *escapes = &ctx->core.escapes;
    side_array *index = &ctx->sides[SIDE_ESCAPE_INDEX], *xhat = &ctx->sides[SIDE_ESCAPE_XHAT];
    npy_intp count = escapes->count;
    int outcome = -1;
    if (count == 0) {
        abn_escapes_free(escapes);
        return 0;
    }
    if (context_side_open(ctx, SIDE_ESCAPE_INDEX, PyArray_DescrFromType(NPY_INT64), 1, &count) == 0 &&
        context_side_open(ctx, SIDE_ESCAPE_XHAT, PyArray_DescrFromType(NPY_DOUBLE), 1, &count) == 0) {
        memcpy(PyArray_DATA(index->array), escapes->index, (size_t)count * sizeof(int64_t));
        memcpy(PyArray_DATA(xhat->array), escapes->xhat, (size_t)count * sizeof(double));
        outcome = 0;
    }
    abn_escapes_free(escapes);
    if (outcome == 0)
        *escapes =
            (abn_escapes){.count = count, .index = PyArray_DATA(index->array), .xhat = PyArray_DATA(xhat->array)};
    return outcome;
}

/* ---- keeping ------------------------------------------------------------------------------------------- */

/* The owner, for messages: a new string. */
static PyObject *holder_text(PyObject *holder) {
    const context *ctx = (const context *)holder;
    PyObject *owner = context_owner(ctx), *details, *text = NULL;
    if (ctx->owner || !owner) return owner;
    if ((details = context_text(ctx))) text = PyUnicode_FromFormat("%U (%U)", owner, details);
    Py_XDECREF(details);
    Py_DECREF(owner);
    return text;
}

static int keep(context *ctx, int which, PyArrayObject *array) {
    kept_array *kept = &ctx->kept[which];
    kept->entry = (saved_entry){.bytes = &kept->batch.bytes,
                                .array = array,
                                .role = context_role(ctx, which),
                                .holder = (PyObject *)ctx,
                                .owner = holder_text};
    if (registry_add(ctx->state, &kept->entry) < 0) return -1;
    kept->batch.array = (PyArrayObject *)Py_NewRef(array);
    kept->nbytes = PyArray_NBYTES(array);
    return 0;
}

int context_keep(context *ctx, PyArrayObject *array, PyArrayObject *residual) {
    ctx->freed_by = NULL;
    if (ctx->holds && (keep(ctx, KEPT_MAIN, array) < 0 || (residual && keep(ctx, KEPT_RESIDUAL, residual) < 0))) {
        context_free(ctx, "an error in forward");
        return -1;
    }
    ctx->busy = 1;
    PyObject_GC_Track((PyObject *)ctx);
    return 0;
}

void context_unlock(context *ctx) {
    for (int i = 0; i < KEPT_ARRAYS; i++) registry_remove(ctx->state, &ctx->kept[i].entry);
}

void context_free(context *ctx, const char *by) {
    PyArrayObject *arrays[KEPT_ARRAYS];
    PyObject *owner = ctx->owner;
    const int was_live = !ctx->freed_by;
    context_unlock(ctx);
    if (was_live) ctx->freed_by = by;
    PyMem_Free(ctx->constants);
    ctx->constants = NULL;
    ctx->owner = NULL;
    for (int i = 0; i < SIDE_ARRAYS; i++) side_free(&ctx->sides[i]);
    for (int i = 0; i < KEPT_ARRAYS; i++) {
        arrays[i] = ctx->kept[i].batch.array;
        ctx->kept[i].batch.array = NULL;
    }
    /* From here on Python code may run: methods of the ledger, and destructors of objects that own the arrays'
     * memory. */
    context_record_freed(ctx);
    for (int i = 0; i < KEPT_ARRAYS; i++) Py_XDECREF(arrays[i]);
    Py_XDECREF(owner);
}

/* ---- using --------------------------------------------------------------------------------------------- */

/* Checks that the array is as the forward left it: only its writeable flag protects it, which users can bypass. */
static int kept_check(const context *ctx, int which) {
    const kept_array *kept = &ctx->kept[which];
    const char *what = which == KEPT_MAIN ? "array" : "residual";
    PyArrayObject *array = kept->batch.array;
    PyArray_Descr *dtype = PyArray_DESCR(array);
    if (PyArray_DATA(array) != kept->batch.core.data || PyArray_NBYTES(array) != kept->nbytes) {
        PyErr_Format(PyExc_RuntimeError,
                     "the %s that ctx keeps was resized or given other memory: it had %zd bytes at %p, and now has "
                     "%zd bytes at %p; run forward again",
                     what, (Py_ssize_t)kept->nbytes, kept->batch.core.data, (Py_ssize_t)PyArray_NBYTES(array),
                     PyArray_DATA(array));
        return -1;
    }
    if (dtype->type_num != ctx->dtype->type_num || PyArray_ISBYTESWAPPED(array)) {
        PyErr_Format(PyExc_RuntimeError,
                     "the %s that ctx keeps was given another dtype: it was %S, and now is %R; set its dtype back, or "
                     "run forward again",
                     what, (PyObject *)ctx->dtype, (PyObject *)dtype);
        return -1;
    }
    if (kept->entry.lock->restore && PyArray_ISWRITEABLE(array)) {
        PyErr_Format(PyExc_RuntimeError,
                     "the %s that ctx keeps was unlocked: flags.writeable is True, and was False; set it back if "
                     "nothing was written, or run forward again",
                     what);
        return -1;
    }
    return 0;
}

context *context_acquire(const binding_state *state, PyObject *got) {
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
    for (int i = 0; i < KEPT_ARRAYS; i++)
        if (ctx->kept[i].batch.array && kept_check(ctx, i) < 0) return NULL;
    ctx->busy = 1;
    return ctx;
}

void context_leave(context *ctx) {
    if (ctx) ctx->busy = 0;
}

/* Refuses kept= and residual= of a context that holds its arrays; requires them of another one. */
static int given_check(const context *ctx, PyObject *got, name_id name, int needed) {
    if (is_provided(got) == (needed && !ctx->holds)) return 0;
    if (is_provided(got))
        PyErr_Format(PyExc_ValueError, "%s goes with a ctx of forward(..., hold=False)%s; leave it out",
                     name_texts[name], ctx->holds ? "" : " that was given one");
    else
        PyErr_Format(PyExc_ValueError,
                     "%s is needed by a ctx of forward(..., hold=False), got None; pass the array that "
                     "forward %s",
                     name_texts[name], name == NAME_KEPT ? "read or wrote as x" : "was given as residual");
    return -1;
}

int context_arrays(context *ctx, PyObject *const *got, int needs_residual, abn_context *core, batch *given) {
    static const name_id names[KEPT_ARRAYS] = {NAME_KEPT, NAME_RESIDUAL};
    const int needed[KEPT_ARRAYS] = {1, needs_residual};
    *core = ctx->core;
    for (int i = 0; i < KEPT_ARRAYS; i++) {
        given[i] = (batch){0};
        if (given_check(ctx, got[names[i]], names[i], needed[i]) < 0) return -1;
        if (ctx->holds || !needed[i]) continue;
        if (context_batch(ctx, got[names[i]], names[i], NULL, &given[i]) < 0) return -1;
        *(i == KEPT_MAIN ? &core->kept : &core->residual) = given[i].core;
    }
    return 0;
}

int context_batch(context *ctx, PyObject *got, name_id name, const char *writer, batch *b) {
    const batch *like = &ctx->kept[KEPT_MAIN].batch;
    if (batch_open(ctx->state, got, name, like->channel_axis, like, writer, b) < 0) return -1;
    if (!writer) return 0;
    for (int i = 0; i < KEPT_ARRAYS && ctx->holds; i++)
        if (refuse_overlap(&b->bytes, b->name, &ctx->kept[i].batch.bytes, "what ctx keeps") < 0) return -1;
    return registry_refuse(ctx->state, &b->bytes, b->name, writer);
}
