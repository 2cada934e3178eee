/* Context.state and context_from_state: a context as a dict of arrays and plain values, and back. */
#include "context_state.h"

#include <math.h>
#include <string.h>

#include "../guard.h"
#include "addressed.h"
#include "calls.h"
#include "context.h"
#include "signatures.h"

/* weight, bias, mean, var and inv_std; a row of slopes follows if there are any. */
enum { CONSTANT_ROWS = 5 };

/* ---- to a dict ----------------------------------------------------------------------------------------------- */

/* The values that are no arrays; description_read has their order. */
static PyObject *description_of(const context *ctx) {
    const batch *x = &ctx->kept[KEPT_MAIN].batch;
    PyObject *dtype =
        ctx->dtype == ctx->state->raw_bfloat16 ? PyUnicode_FromString("bfloat16") : Py_NewRef((PyObject *)ctx->dtype);
    PyObject *shape = PyArray_IntTupleFromIntp(x->ndim, x->shape);
    PyObject *owner = ctx->owner && PyUnicode_Check(ctx->owner) ? ctx->owner : Py_None;
    return Py_BuildValue("(sOOdiddNNiiiiiinO)", ctx->function, ctx->state->strategies[ctx->strategy],
                         ctx->state->activations[ctx->core.activation], ctx->core.activation_param, ctx->training,
                         ctx->core.norm.eps, ctx->count, shape, dtype, x->channel_axis, x->layout == CHANNELS_LAST,
                         ctx->has_weight, ctx->has_bias, ctx->has_residual, ctx->core.statistics_given,
                         (Py_ssize_t)ctx->slopes, owner);
}

static PyObject *constants_of(const context *ctx) {
    npy_intp dims[2] = {CONSTANT_ROWS + (ctx->core.channel_param != NULL), ctx->core.kept.channels};
    PyObject *array = PyArray_SimpleNew(2, dims, NPY_DOUBLE);
    if (array)
        memcpy(PyArray_DATA((PyArrayObject *)array), ctx->constants, (size_t)(dims[0] * dims[1]) * sizeof(double));
    return array;
}

/* The guarded channels in order: channel i of guarded_xhat is the i-th of them. */
static PyObject *guarded_channels_of(const context *ctx) {
    npy_intp count = ctx->core.guard.count;
    PyObject *array = PyArray_SimpleNew(1, &count, NPY_INT64);
    if (!array) return NULL;
    int64_t *channel = PyArray_DATA((PyArrayObject *)array);
    for (npy_intp c = 0; c < ctx->core.kept.channels; c++)
        if (ctx->core.guard.slot[c] >= 0) *channel++ = c;
    return array;
}

/* Steals the reference to value. */
static int put(PyObject *dict, const char *key, PyObject *value) {
    const int outcome = value ? PyDict_SetItemString(dict, key, value) : -1;
    Py_XDECREF(value);
    return outcome;
}

static PyObject *dict_of(const context *ctx) {
    PyObject *dict = PyDict_New();
    kept_part parts[KEPT_PARTS];
    if (!dict) return NULL;
    context_parts(ctx, parts);
    if (put(dict, "description", description_of(ctx)) < 0 || put(dict, "constants", constants_of(ctx)) < 0) goto failed;
    if (ctx->core.guard.count > 0 && put(dict, "guarded_channels", guarded_channels_of(ctx)) < 0) goto failed;
    for (int i = KEPT_ARRAYS; i < KEPT_PARTS; i++)
        if (parts[i].array && put(dict, parts[i].name, Py_NewRef((PyObject *)parts[i].array)) < 0) goto failed;
    return dict;
failed:
    Py_DECREF(dict);
    return NULL;
}

PyObject *context_state(PyObject *self, PyObject *Py_UNUSED(none)) {
    context *ctx = context_acquire(((context *)self)->state, self);
    PyObject *dict = NULL;
    if (!ctx) return NULL;
    if (ctx->holds)
        PyErr_SetString(PyExc_ValueError,
                        "state goes with a ctx of forward(..., hold=False); this one holds a lock on the very array "
                        "that it keeps for the backward");
    else
        dict = dict_of(ctx);
    context_leave(ctx);
    return dict;
}

/* ---- from a dict --------------------------------------------------------------------------------------------- */

/* What a dict says, checked. */
typedef struct {
    binding_state *state;
    PyObject *dict;
    const char *function;
    int strategy, activation, training, has_weight, has_bias, has_residual, statistics_given;
    double activation_param, eps, count;
    Py_ssize_t slopes;
    batch x;
    PyArray_Descr *dtype;     /* owned */
    PyObject *values, *owner; /* owner is borrowed from values, which is owned */
} saved_state;

static int refuse(const char *key) {
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "state must be a dict that Context.state() returned, its '%s' is not from one",
                     key);
    return -1;
}

/* The strides of a contiguous array of x's shape in its layout. */
static void strides_fill(const batch *x, npy_intp item, npy_intp *strides) {
    const int channel = x->channel_axis == 1 ? 1 : x->ndim - 1;
    npy_intp step = item;
    if (x->layout == CHANNELS_LAST) {
        strides[channel] = step;
        step *= x->shape[channel];
    }
    for (int i = x->ndim - 1; i > 0; i--) {
        if (i == channel) continue;
        strides[i] = step;
        step *= x->shape[i];
    }
    if (x->layout == CHANNELS_FIRST) {
        strides[channel] = step;
        step *= x->shape[channel];
    }
    strides[0] = step;
}

/* Describes x, whose shape and layout are set, without memory. */
static int batch_describe(binding_state *state, PyArray_Descr *dtype, batch *x) {
    static double no_memory[1];
    const layout wanted = x->layout;
    npy_intp strides[ABN_MAX_DIMS];
    PyObject *array;
    int outcome;
    strides_fill(x, PyDataType_ELSIZE(dtype), strides);
    Py_INCREF(dtype);
    array = PyArray_NewFromDescr(&PyArray_Type, dtype, x->ndim, x->shape, strides, no_memory, 0, NULL);
    if (!array) return -1;
    outcome = batch_open(state, array, NAME_X, x->channel_axis, NULL, NULL, x);
    Py_DECREF(array);
    x->array = NULL;
    x->core.data = NULL;
    x->bytes = (footprint){0};
    x->dtype = dtype;
    x->layout = wanted;
    return outcome;
}

static int shape_read(PyObject *shape, batch *x) {
    x->ndim = (int)PyTuple_GET_SIZE(shape);
    if (x->ndim < 2 || x->ndim > ABN_MAX_DIMS) return refuse("description");
    for (int i = 0; i < x->ndim; i++) {
        x->shape[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i));
        if (x->shape[i] < 0) return refuse("description");
    }
    return PyArray_OverflowMultiplyList(x->shape, x->ndim) < 0 ? refuse("description") : 0;
}

static int slopes_check(const saved_state *s) {
    const int per_channel = abn_activation_table[s->activation].param == ABN_CHANNEL_PARAM;
    if (per_channel ? s->slopes == 1 || s->slopes == s->x.core.channels : s->slopes == 0) return 0;
    return refuse("description");
}

static int description_read(saved_state *s) {
    PyObject *values = PyDict_GetItemString(s->dict, "description"), *strategy, *activation, *shape, *dtype;
    int is_last;
    if (!values || !PyTuple_Check(values)) return refuse("description");
    s->values = Py_NewRef(values);
    if (!PyArg_ParseTuple(values, "sUUdpddO!OipppppnO;state must be a dict that Context.state() returned", &s->function,
                          &strategy, &activation, &s->activation_param, &s->training, &s->eps, &s->count, &PyTuple_Type,
                          &shape, &dtype, &s->x.channel_axis, &is_last, &s->has_weight, &s->has_bias, &s->has_residual,
                          &s->statistics_given, &s->slopes, &s->owner))
        return -1;
    s->function = strcmp(s->function, "normalize") == 0 ? "normalize" : "forward";
    if (choice_arg(strategy, NAME_STRATEGY, s->state->strategies, STRATEGIES, &s->strategy) < 0 ||
        choice_arg(activation, NAME_ACTIVATION, s->state->activations, ABN_ACTIVATIONS, &s->activation) < 0)
        return -1;
    if (!isfinite(s->activation_param) || !isfinite(s->count) || s->count < 0.0 || !isfinite(s->eps) || s->eps <= 0.0 ||
        (s->x.channel_axis != 1 && s->x.channel_axis != -1) || (s->owner != Py_None && !PyUnicode_Check(s->owner)))
        return refuse("description");
    s->x.layout = is_last ? CHANNELS_LAST : CHANNELS_FIRST;
    if (shape_read(shape, &s->x) < 0) return -1;
    s->dtype = PyArray_DescrCheck(dtype) ? (PyArray_Descr *)Py_NewRef(dtype) : addressed_dtype(s->state, dtype);
    if (!s->dtype || batch_describe(s->state, s->dtype, &s->x) < 0) return -1;
    return slopes_check(s);
}

/* The array under this key, borrowed: of the wanted type, contiguous, with `ndim` lengths, each as wanted unless that
 * is -1. NULL with an exception if there is another object, without one if there is none. */
static PyArrayObject *array_of(const saved_state *s, const char *key, PyArray_Descr *dtype, int ndim,
                               const npy_intp *dims) {
    PyObject *got = PyDict_GetItemString(s->dict, key);
    PyArrayObject *array = (PyArrayObject *)got;
    if (!got) return NULL;
    if (!PyArray_CheckExact(got) || !PyArray_EquivTypes(PyArray_DESCR(array), dtype) || !PyArray_ISCARRAY_RO(array) ||
        PyArray_NDIM(array) != ndim) {
        refuse(key);
        return NULL;
    }
    for (int i = 0; i < ndim; i++) {
        if (dims[i] < 0 || PyArray_DIM(array, i) == dims[i]) continue;
        refuse(key);
        return NULL;
    }
    return array;
}

static PyArrayObject *array_of_type(const saved_state *s, const char *key, int type, int ndim, const npy_intp *dims) {
    PyArray_Descr *dtype = PyArray_DescrFromType(type);
    PyArrayObject *array = array_of(s, key, dtype, ndim, dims);
    Py_DECREF(dtype);
    return array;
}

static int constants_load(const saved_state *s, context *ctx, const batch *residual) {
    const npy_intp dims[2] = {CONSTANT_ROWS + (s->slopes > 0), s->x.core.channels};
    PyArrayObject *constants = array_of_type(s, "constants", NPY_DOUBLE, 2, dims);
    if (!constants) return refuse("constants");
    if (context_open(ctx, &s->x, residual, s->strategy) < 0) return -1;
    memcpy(ctx->constants, PyArray_DATA(constants), (size_t)PyArray_NBYTES(constants));
    ctx->training = s->training;
    ctx->has_weight = s->has_weight;
    ctx->has_bias = s->has_bias;
    ctx->has_residual = s->has_residual;
    ctx->slopes = s->slopes;
    ctx->count = s->count;
    ctx->core.activation = (abn_activation)s->activation;
    ctx->core.activation_param = s->activation_param;
    ctx->core.statistics_given = s->statistics_given;
    ctx->core.norm.eps = s->eps;
    if (s->slopes == 0) ctx->core.channel_param = NULL;
    return 0;
}

/* Copies a side array; *data points to the copy. 0 also if there is none: then *data is unchanged. */
static int side_load(context *ctx, int which, PyArrayObject *array, void *data) {
    void *copy;
    if (!array) return PyErr_Occurred() ? -1 : 0;
    if (context_side_open(ctx, which, (PyArray_Descr *)Py_NewRef((PyObject *)PyArray_DESCR(array)), PyArray_NDIM(array),
                          PyArray_DIMS(array)) < 0)
        return -1;
    copy = PyArray_DATA(ctx->sides[which].array);
    memcpy(copy, PyArray_DATA(array), (size_t)PyArray_NBYTES(array));
    memcpy(data, &copy, sizeof copy);
    return 0;
}

static int mask_load(const saved_state *s, context *ctx) {
    abn_mask *mask = &ctx->core.mask;
    const npy_intp words = mask_words(&s->x), positions = batch_per_channel(&s->x);
    if (side_load(ctx, SIDE_MASK, array_of_type(s, "mask", NPY_UINT64, 1, &words), &mask->words) < 0) return -1;
    if (!mask->words) return 0;
    for (npy_intp p = 0; p < words * 64; p++) {
        const uint64_t bit = mask->words[p / 64] >> p % 64 & 1;
        if (bit && p >= positions) return refuse("mask");
        mask->valid += (ptrdiff_t)bit;
    }
    return 0;
}

static int branch_mask_load(const saved_state *s, context *ctx) {
    const npy_intp bytes = (npy_intp)abn_branch_mask_bytes(&ctx->core);
    if (side_load(ctx, SIDE_BRANCH_MASK, array_of_type(s, "branch_mask", NPY_UINT8, 1, &bytes),
                  &ctx->core.branch_mask) < 0)
        return -1;
    return !ctx->core.branch_mask == (bytes == 0) ? 0 : refuse("branch_mask");
}

static int guard_load(const saved_state *s, context *ctx) {
    abn_guard *guard = &ctx->core.guard;
    const npy_intp any = -1, channels = s->x.core.channels;
    PyArrayObject *guarded = array_of_type(s, "guarded_channels", NPY_INT64, 1, &any);
    ptrdiff_t *slot = context_guard_slots(ctx);
    npy_intp dims[3];
    int64_t before = -1;
    if (!guarded) return PyErr_Occurred() ? -1 : 0;
    guard->count = PyArray_DIM(guarded, 0);
    guard->slot = slot;
    for (npy_intp c = 0; c < channels; c++) slot[c] = -1;
    for (npy_intp i = 0; i < guard->count; i++) {
        const int64_t channel = ((const int64_t *)PyArray_DATA(guarded))[i];
        if (channel <= before || channel >= channels) return refuse("guarded_channels");
        slot[channel] = i;
        before = channel;
    }
    context_guarded_shape(ctx, dims);
    if (side_load(ctx, SIDE_GUARDED, array_of(s, "guarded_xhat", ctx->dtype, 3, dims), &guard->xhat) < 0) return -1;
    return guard->xhat ? 0 : refuse("guarded_xhat");
}

static int escapes_load(const saved_state *s, context *ctx) {
    abn_escapes *escapes = &ctx->core.escapes;
    const int64_t elements = context_per_channel(ctx) * s->x.core.channels;
    npy_intp count = -1;
    PyArrayObject *index = array_of_type(s, "escape_index", NPY_INT64, 1, &count);
    if (!index) return PyErr_Occurred() ? -1 : 0;
    count = PyArray_DIM(index, 0);
    if (side_load(ctx, SIDE_ESCAPE_INDEX, index, &escapes->index) < 0 ||
        side_load(ctx, SIDE_ESCAPE_XHAT, array_of_type(s, "escape_xhat", NPY_DOUBLE, 1, &count), &escapes->xhat) < 0)
        return -1;
    if (!escapes->xhat) return refuse("escape_xhat");
    for (npy_intp i = 0; i < count; i++)
        if (escapes->index[i] < (i ? escapes->index[i - 1] + 1 : 0) || escapes->index[i] >= elements)
            return refuse("escape_index");
    escapes->count = count;
    return 0;
}

PyObject *call_context_from_state(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    PyObject *got[NAMES] = {NULL};
    saved_state s = {.state = state_of(module)};
    const batch no_residual = {0};
    context *ctx = NULL;
    int outcome = -1;
    if (bind_args(s.state, &context_from_state_signature, args, positionals, kwnames, got) < 0) return NULL;
    s.dict = got[NAME_STATE];
    if (!PyDict_Check(s.dict)) {
        PyErr_Format(PyExc_TypeError, "state must be a dict that Context.state() returned, got '%s'",
                     Py_TYPE(s.dict)->tp_name);
        return NULL;
    }
    if (description_read(&s) < 0) goto done;
    if (!(ctx = context_new(module, s.function, s.owner))) goto done;
    if (constants_load(&s, ctx, &no_residual) < 0 || mask_load(&s, ctx) < 0 || branch_mask_load(&s, ctx) < 0 ||
        guard_load(&s, ctx) < 0 || escapes_load(&s, ctx) < 0 || context_keep(ctx, NULL, NULL) < 0)
        goto done;
    context_leave(ctx);
    context_record(ctx);
    outcome = 0;
done:
    Py_XDECREF(s.dtype);
    Py_XDECREF(s.values);
    if (outcome < 0) Py_CLEAR(ctx);
    return (PyObject *)ctx;
}
