#include "batch.h"

#include <string.h>

#include "registry.h"

/* ---- kind: type of the object, memory, dtype --------------------------------------------------------------- */

static int refuse_kind(PyObject *got, const char *name) {
    if (PyArray_Check(got))
        PyErr_Format(PyExc_TypeError,
                     "%s must be a plain numpy.ndarray or numpy.memmap, got '%s'; pass %s.view(numpy.ndarray) if its "
                     "data alone is meant",
                     name, Py_TYPE(got)->tp_name, name);
    else
        PyErr_Format(PyExc_TypeError, "%s must be a numpy.ndarray, got '%s'; numpy.asarray makes one", name,
                     Py_TYPE(got)->tp_name);
    return -1;
}

/* Other subclasses, such as masked arrays and arrays with units, have a meaning beyond their elements that would be
 * lost. */
int check_kind(const binding_state *state, PyObject *got, const char *name, PyArrayObject **array) {
    if (!PyArray_CheckExact(got) && (PyObject *)Py_TYPE(got) != state->memmap) return refuse_kind(got, name);
    *array = (PyArrayObject *)got;
    return 0;
}

/* Byte order, alignment and, with a writer, the writeable flag. */
int check_memory(const binding_state *state, PyArrayObject *array, const char *name, const char *writer) {
    if (PyArray_ISBYTESWAPPED(array)) {
        PyErr_Format(PyExc_TypeError,
                     "%s must be in native byte order, got dtype %R; pass %s.astype(%s.dtype.newbyteorder('='))", name,
                     (PyObject *)PyArray_DESCR(array), name, name);
        return -1;
    }
    if (!PyArray_ISALIGNED(array)) {
        PyErr_Format(
            PyExc_ValueError,
            "%s must be aligned in memory, its elements are not at multiples of their alignment; pass %s.copy()", name,
            name);
        return -1;
    }
    if (writer && !PyArray_ISWRITEABLE(array)) {
        const footprint bytes = footprint_of_array(array);
        if (registry_refuse(state, &bytes, name, writer) == 0)
            PyErr_Format(PyExc_ValueError, "%s is written in place, but it is read-only; pass a copy", name);
        return -1;
    }
    return 0;
}

/* ml_dtypes registers bfloat16 with NumPy when it is imported, under a type number that differs between processes.
 * Looking it up in sys.modules may run Python code. That is done once, before anything but the type of the object is
 * checked. */
static int is_bfloat16(binding_state *state, PyArrayObject *array) {
    PyObject *module, *type;
    PyArray_Descr *descr = NULL;
    if (PyArray_TYPE(array) < NPY_USERDEF) return 0;
    if (state->bfloat16 >= 0) return PyArray_TYPE(array) == state->bfloat16;
    module = PyImport_GetModule(state->ml_dtypes);
    type = module ? PyObject_GetAttrString(module, "bfloat16") : NULL;
    if (type && PyArray_DescrConverter(type, &descr) && descr->type_num >= NPY_USERDEF && PyDataType_ELSIZE(descr) == 2)
        state->bfloat16 = descr->type_num;
    PyErr_Clear();
    Py_XDECREF(descr);
    Py_XDECREF(type);
    Py_XDECREF(module);
    return PyArray_TYPE(array) == state->bfloat16;
}

static int check_dtype(binding_state *state, PyArrayObject *array, const char *name, abn_dtype *dtype) {
    switch (PyArray_TYPE(array)) {
        case NPY_FLOAT: *dtype = ABN_FLOAT32; return 0;
        case NPY_DOUBLE: *dtype = ABN_FLOAT64; return 0;
        case NPY_HALF: *dtype = ABN_FLOAT16; return 0;
        default: break;
    }
    if (PyArray_DESCR(array) == state->raw_bfloat16 || is_bfloat16(state, array)) {
        *dtype = ABN_BFLOAT16;
        return 0;
    }
    PyErr_Format(PyExc_TypeError,
                 "%s must be float32, float64, float16 or ml_dtypes.bfloat16, got %S; pass %s.astype(numpy.float32)",
                 name, (PyObject *)PyArray_DESCR(array), name);
    return -1;
}

/* The dtype as an argument of astype; its name follows the dot. */
static const char *dtype_text(abn_dtype dtype) {
    static const char *const texts[ABN_DTYPES] = {"numpy.float32", "numpy.float64", "numpy.float16",
                                                  "ml_dtypes.bfloat16"};
    return texts[dtype];
}

int weight_type(abn_dtype dtype) { return dtype == ABN_FLOAT64 ? NPY_DOUBLE : NPY_FLOAT; }

/* ---- layout: an array as (N, C, S) --------------------------------------------------------------------- */

static int refuse_layout(const batch *b, const char *what) {
    PyObject *shape = PyObject_GetAttrString((PyObject *)b->array, "shape");
    PyObject *strides = PyObject_GetAttrString((PyObject *)b->array, "strides");
    if (shape && strides)
        PyErr_Format(PyExc_ValueError, "%s %s: shape %R, strides %R in bytes, channel_axis=%d; %s", b->name, what,
                     shape, strides, b->channel_axis, b->remedy);
    Py_XDECREF(shape);
    Py_XDECREF(strides);
    return -1;
}

/* Computes N, C and S, and their strides in elements; a stride is 0 along a length of 1. */
static int collapse(batch *b, npy_intp item) {
    const int ndim = b->ndim, first = b->channel_axis == 1 ? 2 : 1;
    const int channel = b->channel_axis == 1 ? 1 : ndim - 1, last = b->channel_axis == 1 ? ndim : ndim - 1;
    const npy_intp *dims = b->shape, *strides = PyArray_STRIDES(b->array);
    abn_batch *core = &b->core;
    *core = (abn_batch){.data = PyArray_DATA(b->array),
                        .dtype = core->dtype,
                        .batch = dims[0],
                        .channels = dims[channel],
                        .spatial = 1};
    for (int i = first; i < last; i++) core->spatial *= dims[i];
    if (batch_elements(b) == 0) return 0;
    for (int i = 0; i < ndim; i++) {
        if (dims[i] == 1) continue;
        if (strides[i] == 0) return refuse_layout(b, "overlaps itself, as a broadcast array does");
        if (strides[i] < 0) return refuse_layout(b, "runs backwards in memory");
        if (strides[i] % item) return refuse_layout(b, "has strides that are no multiple of its item size");
    }
    if (dims[0] > 1) core->batch_stride = strides[0] / item;
    if (dims[channel] > 1) core->channel_stride = strides[channel] / item;
    for (npy_intp i = last - 1, steps = 1; i >= first; i--) {
        if (dims[i] == 1) continue;
        if (steps == 1)
            core->spatial_stride = strides[i] / item;
        else if (strides[i] / item != core->spatial_stride * steps)
            return refuse_layout(b, "has spatial dimensions that cannot be read as one with a single stride");
        steps *= dims[i];
    }
    return 0;
}

/* Strides of a contiguous batch. */
static void contiguous_strides(abn_batch *core, layout kind) {
    core->spatial_stride = kind == CHANNELS_FIRST ? 1 : core->channels;
    core->channel_stride = kind == CHANNELS_FIRST ? core->spatial : 1;
    core->batch_stride = core->channels * core->spatial;
}

static int choose_layout(batch *b, const batch *like) {
    abn_batch *core = &b->core, dense;
    const int fits_first = core->spatial == 1 || core->spatial_stride == 1;
    const int fits_last = core->channels == 1 || core->channel_stride == 1;
    if (like)
        b->layout = like->layout;
    else if (core->spatial == 1)
        b->layout = core->channel_stride == 1 ? CHANNELS_LAST : CHANNELS_FIRST;
    else
        b->layout = fits_first ? CHANNELS_FIRST : CHANNELS_LAST;
    /* One channel, or one position, can be read in either layout whatever its strides. */
    const int plain = core->channels == 1 || core->spatial == 1;
    if (!(like && plain) && (b->layout == CHANNELS_FIRST ? !fits_first : !fits_last))
        return refuse_layout(b, !like
                                    ? "is neither (N, C, *spatial) with contiguous spatial dimensions nor channels-last"
                                : b->layout == CHANNELS_FIRST ? "must be channels-first in memory, as x was"
                                                              : "must be channels-last in memory, as x was");
    dense = *core;
    contiguous_strides(&dense, b->layout);
    if (core->spatial == 1) core->spatial_stride = dense.spatial_stride;
    if (core->channels == 1) core->channel_stride = dense.channel_stride;
    if (core->batch == 1) core->batch_stride = dense.batch_stride;
    return 0;
}

static footprint batch_footprint(const batch *b) {
    const abn_batch *core = &b->core;
    const npy_intp item = (npy_intp)abn_dtype_size(core->dtype);
    const step steps[3] = {{core->batch, core->batch_stride * item},
                           {core->channels, core->channel_stride * item},
                           {core->spatial, core->spatial_stride * item}};
    return footprint_of(core->data, item, steps, 3);
}

/* Distinct indices must be distinct elements: each stride is larger than the extent of all smaller ones. */
static int refuse_self_overlap(const batch *b) {
    const abn_batch *core = &b->core;
    ptrdiff_t size[3] = {core->batch, core->channels, core->spatial};
    ptrdiff_t stride[3] = {core->batch_stride, core->channel_stride, core->spatial_stride};
    ptrdiff_t reach = 0;
    for (int round = 0; round < 3; round++) {
        int least = -1;
        for (int i = 0; i < 3; i++)
            if (size[i] > 1 && (least < 0 || stride[i] < stride[least])) least = i;
        if (least < 0) break;
        if (stride[least] <= reach) return refuse_layout(b, "overlaps itself");
        reach += stride[least] * (size[least] - 1);
        size[least] = 1;
    }
    return 0;
}

int channel_axis_arg(PyObject *got, int *channel_axis) {
    *channel_axis = 1;
    if (int_arg(got, NAME_CHANNEL_AXIS, INT_MIN, INT_MAX, channel_axis) < 0) return -1;
    if (*channel_axis == 1 || *channel_axis == -1) return 0;
    PyErr_Format(PyExc_ValueError, "channel_axis must be 1 for (N, C, *spatial) or -1 for (N, *spatial, C), got %d",
                 *channel_axis);
    return -1;
}

static int check_shape(batch *b, const batch *like) {
    PyObject *got, *wanted;
    b->ndim = PyArray_NDIM(b->array);
    if (!like && b->ndim >= 2 && b->ndim <= ABN_MAX_DIMS) {
        memcpy(b->shape, PyArray_DIMS(b->array), (size_t)b->ndim * sizeof(npy_intp));
        return 0;
    }
    if (like && b->ndim == like->ndim && PyArray_CompareLists(PyArray_DIMS(b->array), like->shape, b->ndim)) {
        memcpy(b->shape, like->shape, sizeof b->shape);
        return 0;
    }
    got = PyArray_IntTupleFromIntp(b->ndim, PyArray_DIMS(b->array));
    wanted = like ? PyArray_IntTupleFromIntp(like->ndim, like->shape)
                  : PyUnicode_FromString(b->channel_axis == 1 ? "(N, C, *spatial)" : "(N, *spatial, C)");
    if (got && wanted && like)
        PyErr_Format(PyExc_ValueError, "%s must have the shape of x, %S, got %S", b->name, wanted, got);
    else if (got && wanted)
        PyErr_Format(PyExc_ValueError, "%s must have 2 to %d dimensions, %U, got shape %S", b->name, ABN_MAX_DIMS,
                     wanted, got);
    Py_XDECREF(got);
    Py_XDECREF(wanted);
    return -1;
}

int batch_open(binding_state *state, PyObject *got, name_id name, int channel_axis, const batch *like,
               const char *writer, batch *b) {
    b->name = name_texts[name];
    b->channel_axis = channel_axis;
    b->remedy = like ? "copy it into numpy.empty_like(x)" : "pass a contiguous copy";
    if (check_kind(state, got, b->name, &b->array) < 0) return -1;
    if (check_dtype(state, b->array, b->name, &b->core.dtype) < 0) return -1;
    if (like && b->core.dtype != like->core.dtype) {
        const char *wanted = dtype_text(like->core.dtype);
        PyErr_Format(PyExc_TypeError, "%s must be %s as x was, got %S; pass %s.astype(%s)", b->name,
                     strchr(wanted, '.') + 1, (PyObject *)PyArray_DESCR(b->array), b->name, wanted);
        return -1;
    }
    b->dtype = PyArray_DESCR(b->array);
    if (check_shape(b, like) < 0) return -1;
    if (check_memory(state, b->array, b->name, writer) < 0) return -1;
    if (collapse(b, PyArray_ITEMSIZE(b->array)) < 0) return -1;
    if (batch_elements(b) == 0) {
        b->layout = like ? like->layout : channel_axis == 1 ? CHANNELS_FIRST : CHANNELS_LAST;
        contiguous_strides(&b->core, b->layout);
        b->bytes = (footprint){0};
        return 0;
    }
    if (choose_layout(b, like) < 0 || refuse_self_overlap(b) < 0) return -1;
    b->bytes = batch_footprint(b);
    return 0;
}

PyArrayObject *batch_like(const batch *b, batch *fresh) {
    PyArray_Descr *dtype = b->dtype;
    const int ndim = b->ndim, channel = b->channel_axis == 1 ? 1 : ndim - 1;
    const int natural = (b->layout == CHANNELS_FIRST) == (b->channel_axis == 1);
    const npy_intp *dims = b->shape;
    npy_intp strides[ABN_MAX_DIMS];
    *fresh = *b;
    contiguous_strides(&fresh->core, b->layout);
    if (!natural) {
        const npy_intp item = PyDataType_ELSIZE(dtype);
        npy_intp step = fresh->core.spatial_stride * item;
        for (int i = ndim - 1; i > 0; i--) {
            if (i == channel) continue;
            strides[i] = step;
            step *= dims[i];
        }
        strides[channel] = fresh->core.channel_stride * item;
        strides[0] = fresh->core.batch_stride * item;
    }
    Py_INCREF(dtype);
    fresh->array = (PyArrayObject *)PyArray_NewFromDescr(&PyArray_Type, dtype, ndim, dims, natural ? NULL : strides,
                                                         NULL, 0, NULL);
    if (fresh->array) fresh->core.data = PyArray_DATA(fresh->array);
    return fresh->array;
}
