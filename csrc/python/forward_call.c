/* forward and normalize: one function, with the statistics of the batch, the running ones, or the caller's. */
#include "addressed.h"
#include "calls.h"
#include "context.h"
#include "saved_array.h"
#include "signatures.h"

#include <float.h>
#include <math.h>

/* Strategies with the same fields are the same to the core: "checkpoint" and "standard" differ in what layers let
 * others recompute, "inplace" is another name of "inplace_2". */
const strategy_info strategy_table[STRATEGIES] = {
    {"standard", ABN_KEEP_X, ABN_SCHEME_II},
    {"checkpoint", ABN_KEEP_X, ABN_SCHEME_II},
    {"checkpoint_xhat", ABN_KEEP_XHAT, ABN_SCHEME_II},
    {"pre_activation", ABN_KEEP_Y, ABN_SCHEME_II},
    {"inplace_1", ABN_KEEP_Z, ABN_SCHEME_I},
    {"inplace_2", ABN_KEEP_Z, ABN_SCHEME_II},
    {"inplace", ABN_KEEP_Z, ABN_SCHEME_II},
};
enum { STRATEGY_INPLACE = 6 };

/* Indices in forward_call.vectors. */
enum { WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR, SLOPE, MEAN, VAR, VECTORS };

typedef struct {
    PyObject *module;
    binding_state *state;
    PyObject *got[NAMES];
    addressed arrays;
    int is_normalize, hold;
    int training, strategy, activation, channel_axis;
    double momentum, eps, activation_param, count;
    abn_machine machine;
    batch x, z, residual, out;
    mask mask;
    vector vectors[VECTORS];
} forward_call;

static const char *writer_of(const forward_call *call) { return call->is_normalize ? "normalize" : "forward"; }

/* ---- arguments that are not arrays ----------------------------------------------------------------------- */

static int refuse_number(name_id name, const char *wanted, double got) {
    PyObject *number = PyFloat_FromDouble(got);
    if (number) PyErr_Format(PyExc_ValueError, "%s must be %s, got %R", name_texts[name], wanted, number);
    Py_XDECREF(number);
    return -1;
}

/* Checks that there is a slope if and only if the activation takes one. */
static int slope_check(const forward_call *call, const abn_activation_info *info) {
    const int wanted = info->param == ABN_CHANNEL_PARAM;
    if (wanted == is_provided(call->got[NAME_SLOPE])) return 0;
    if (wanted)
        PyErr_Format(PyExc_ValueError,
                     "slope is needed by activation '%s': an array of shape (%zd,), one element per channel, or (1,); "
                     "got None",
                     info->name, (Py_ssize_t)call->x.core.channels);
    else
        PyErr_Format(
            PyExc_ValueError,
            "slope goes with activation 'prelu', got it with '%s'; leave it out (activation_param is the slope "
            "of leaky_relu)",
            info->name);
    return -1;
}

/* The in-place strategies invert the activation: its parameter has to be positive. */
static int refuse_param_in_place(const forward_call *call) {
    PyObject *number = PyFloat_FromDouble(call->activation_param);
    if (number)
        PyErr_Format(PyExc_ValueError,
                     "activation_param must be positive and finite with strategy '%s', got %R; strategies 'standard', "
                     "'checkpoint', 'checkpoint_xhat' and 'pre_activation' take any finite number",
                     strategy_table[call->strategy].name, number);
    Py_XDECREF(number);
    return -1;
}

static int param_check(const forward_call *call, const abn_activation_info *info, abn_dtype dtype) {
    const double a = call->activation_param, size = fabs(a);
    const int in_place = strategy_table[call->strategy].keep == ABN_KEEP_Z;
    if (info->param != ABN_ONE_PARAM && info->param != ABN_NONZERO_PARAM) return 0;
    if (in_place && !(isfinite(a) && a > 0.0)) return refuse_param_in_place(call);
    if (!isfinite(a)) return refuse_number(NAME_ACTIVATION_PARAM, "finite", a);
    if (info->param == ABN_NONZERO_PARAM && a == 0.0)
        return refuse_number(NAME_ACTIVATION_PARAM, "a number other than 0 for activation 'celu'", a);
    if (dtype != ABN_FLOAT64 && a != 0.0 && (size < FLT_MIN || size > FLT_MAX))
        return refuse_number(NAME_ACTIVATION_PARAM, "in float32's range for this dtype of x", a);
    return 0;
}

static int activation_check(const forward_call *call, abn_dtype dtype) {
    const abn_activation_info *info = &abn_activation_table[call->activation];
    if (info->inverse == ABN_NO_INVERSE && strategy_table[call->strategy].keep == ABN_KEEP_Z) {
        PyErr_Format(PyExc_ValueError,
                     "activation '%s' has no inverse, which strategy '%s' needs; use leaky_relu, silu or another one "
                     "that has an inverse, or strategy 'standard', 'checkpoint', 'checkpoint_xhat' or 'pre_activation'",
                     info->name, strategy_table[call->strategy].name);
        return -1;
    }
    if (slope_check(call, info) < 0) return -1;
    return param_check(call, info, dtype);
}

static int options_read(forward_call *call) {
    PyObject *const *got = call->got;
    call->training = call->hold = 1;
    call->strategy = STRATEGY_INPLACE;
    call->activation = ABN_LEAKY_RELU;
    call->momentum = 0.1;
    call->eps = 1e-5;
    call->activation_param = 0.01;
    if (is_provided(got[NAME_OWNER]) && owner_arg(got[NAME_OWNER]) < 0) return -1;
    if (channel_axis_arg(got[NAME_CHANNEL_AXIS], &call->channel_axis) < 0 ||
        machine_args(call->state, got, &call->machine) < 0 ||
        bool_arg(got[NAME_TRAINING], NAME_TRAINING, &call->training) < 0 ||
        bool_arg(got[NAME_HOLD], NAME_HOLD, &call->hold) < 0 ||
        double_arg(got[NAME_MOMENTUM], NAME_MOMENTUM, &call->momentum) < 0 ||
        double_arg(got[NAME_EPS], NAME_EPS, &call->eps) < 0 ||
        double_arg(got[NAME_ACTIVATION_PARAM], NAME_ACTIVATION_PARAM, &call->activation_param) < 0 ||
        double_arg(got[NAME_COUNT], NAME_COUNT, &call->count) < 0 ||
        choice_arg(got[NAME_STRATEGY], NAME_STRATEGY, call->state->strategies, STRATEGIES, &call->strategy) < 0 ||
        choice_arg(got[NAME_ACTIVATION], NAME_ACTIVATION, call->state->activations, ABN_ACTIVATIONS,
                   &call->activation) < 0)
        return -1;
    if (!(call->momentum >= 0.0 && call->momentum <= 1.0))
        return refuse_number(NAME_MOMENTUM, "in [0, 1]", call->momentum);
    if (!isfinite(call->eps) || call->eps <= 0.0) return refuse_number(NAME_EPS, "positive and finite", call->eps);
    return 0;
}

/* Elements per channel of the statistics: at least 2, or 0 for an empty batch. */
static int count_check(forward_call *call) {
    const npy_intp valid = call->mask.valid;
    PyObject *shape;
    if (!call->is_normalize) call->count = (double)valid;
    if (!isfinite(call->count) || call->count < 0.0)
        return refuse_number(NAME_COUNT, "at least 0 and finite", call->count);
    if (!call->training || call->count > 1.0 || (call->count == 0.0 && valid * call->x.core.channels == 0)) return 0;
    if (call->is_normalize)
        return refuse_number(NAME_COUNT, "more than 1 element per channel behind mean and var", call->count);
    if (call->mask.array) {
        PyErr_Format(PyExc_ValueError,
                     "mask must leave more than 1 valid position in training, got %zd of %zd; use a larger batch or "
                     "training=False",
                     (Py_ssize_t)valid, (Py_ssize_t)batch_per_channel(&call->x));
        return -1;
    }
    shape = PyArray_IntTupleFromIntp(call->x.ndim, call->x.shape);
    if (shape)
        PyErr_Format(PyExc_ValueError,
                     "x must have more than 1 value per channel in training, got shape %S; use a larger batch or "
                     "training=False",
                     shape);
    Py_XDECREF(shape);
    return -1;
}

/* ---- arrays ------------------------------------------------------------------------------------------------ */

static int vectors_open(forward_call *call) {
    static const name_id names[VECTORS] = {NAME_WEIGHT, NAME_BIAS, NAME_RUNNING_MEAN, NAME_RUNNING_VAR,
                                           NAME_SLOPE,  NAME_MEAN, NAME_VAR};
    const npy_intp channels = call->x.core.channels;
    const int type = weight_type(call->x.core.dtype);
    for (int i = 0; i < VECTORS; i++) {
        PyObject *got = call->got[names[i]];
        vector *v = &call->vectors[i];
        const int is_updated = call->training && (i == RUNNING_MEAN || i == RUNNING_VAR);
        if (i >= MEAN && call->is_normalize && got == Py_None) {
            PyErr_Format(PyExc_TypeError, "%s must be a numpy.ndarray, got None", name_texts[names[i]]);
            return -1;
        }
        if (i == SLOPE ? slope_open(call->state, got, channels, type, v) < 0
                       : vector_open(call->state, got, names[i], channels, i < MEAN ? type : NPY_DOUBLE,
                                     is_updated ? writer_of(call) : NULL, v) < 0)
            return -1;
    }
    if (!call->vectors[RUNNING_MEAN].array != !call->vectors[RUNNING_VAR].array) {
        PyErr_Format(PyExc_ValueError, "running_mean and running_var go together, got %s alone",
                     call->vectors[RUNNING_MEAN].array ? "running_mean" : "running_var");
        return -1;
    }
    if (!call->training && !call->vectors[RUNNING_MEAN].array) {
        PyErr_SetString(PyExc_ValueError, "training=False normalizes with running_mean and running_var: give both");
        return -1;
    }
    return 0;
}

/* An array that is written may share memory with no other array of the call, and with none that a live context
 * keeps. */
static int written_check(const forward_call *call, const footprint *written, const char *name) {
    const vector *v = call->vectors;
    for (int i = 0; i < VECTORS; i++)
        if (written != &v[i].bytes && refuse_overlap(written, name, &v[i].bytes, v[i].name) < 0) return -1;
    if (written != &call->x.bytes && refuse_overlap(written, name, &call->x.bytes, "x") < 0) return -1;
    if (refuse_overlap(written, name, &call->residual.bytes, "residual") < 0) return -1;
    if (written != &call->out.bytes && refuse_overlap(written, name, &call->out.bytes, "out") < 0) return -1;
    if (refuse_overlap(written, name, &call->mask.bytes, "mask") < 0) return -1;
    return registry_refuse(call->state, written, name, writer_of(call));
}

/* out=: the array that z is written to. */
static int out_open(forward_call *call) {
    PyObject *out = call->got[NAME_OUT];
    if (!is_provided(out)) return 0;
    if (strategy_table[call->strategy].keep == ABN_KEEP_Z) {
        PyErr_Format(PyExc_ValueError,
                     "out goes with the strategies that do not write z over x; strategy '%s' does, leave it out",
                     strategy_table[call->strategy].name);
        return -1;
    }
    return batch_open(call->state, out, NAME_OUT, call->channel_axis, &call->x, writer_of(call), &call->out);
}

/* A context cannot hold memory that it does not own. */
static int hold_check(const forward_call *call) {
    if (!call->hold || !(call->arrays.made[NAME_X] || call->arrays.made[NAME_RESIDUAL])) return 0;
    PyErr_Format(PyExc_ValueError, "hold must be False if %s is given by its address",
                 call->arrays.made[NAME_X] ? "x" : "residual");
    return -1;
}

static int arrays_open(forward_call *call) {
    const char *x_writer = strategy_table[call->strategy].keep != ABN_KEEP_X ? writer_of(call) : NULL;
    PyObject *residual = call->got[NAME_RESIDUAL];
    if (batch_open(call->state, call->got[NAME_X], NAME_X, call->channel_axis, NULL, x_writer, &call->x) < 0 ||
        activation_check(call, call->x.core.dtype) < 0 ||
        mask_open(call->state, call->got[NAME_MASK], &call->x, &call->mask) < 0 || count_check(call) < 0 ||
        hold_check(call) < 0)
        return -1;
    if (is_provided(residual) &&
        batch_open(call->state, residual, NAME_RESIDUAL, call->channel_axis, &call->x, NULL, &call->residual) < 0)
        return -1;
    if (out_open(call) < 0 || vectors_open(call) < 0) return -1;
    if (call->out.array && written_check(call, &call->out.bytes, "out") < 0) return -1;
    if (x_writer && written_check(call, &call->x.bytes, "x") < 0) return -1;
    for (int i = RUNNING_MEAN; call->training && i <= RUNNING_VAR; i++)
        if (written_check(call, &call->vectors[i].bytes, call->vectors[i].name) < 0) return -1;
    machine_settle(call->state, batch_elements(&call->x), &call->machine);
    return 0;
}

/* ---- the work -------------------------------------------------------------------------------------------------- */

/* Writes the values of a vector, or `otherwise` for every channel if there is no vector. */
static void constants_fill(const vector *v, npy_intp channels, double otherwise, const double *values) {
    double *out = (double *)values; /* weight and bias of abn_norm are const for the C core; the binding fills them */
    if (v->array)
        vector_read(v, channels, out);
    else
        for (npy_intp c = 0; c < channels; c++) out[c] = otherwise;
}

/* Slopes may be zero and negative. NaN and infinity would propagate into every gradient. */
static int slope_prepare(const forward_call *call, context *ctx) {
    const vector *slope = &call->vectors[SLOPE];
    const npy_intp channels = call->x.core.channels;
    if (!slope->array) {
        ctx->core.channel_param = NULL;
        return 0;
    }
    ctx->slopes = PyArray_DIM(slope->array, 0);
    constants_fill(slope, channels, 0.0, ctx->core.channel_param);
    for (npy_intp c = 0; c < channels; c++)
        if (!isfinite(ctx->core.channel_param[c]))
            return refuse_number(NAME_SLOPE, "finite in every channel", ctx->core.channel_param[c]);
    return 0;
}

static int context_prepare(const forward_call *call, context *ctx) {
    const vector *mean = &call->vectors[call->is_normalize ? MEAN : RUNNING_MEAN];
    const vector *var = &call->vectors[call->is_normalize ? VAR : RUNNING_VAR];
    const npy_intp channels = call->x.core.channels;
    abn_norm *norm;
    if (context_open(ctx, &call->x, &call->residual, call->strategy) < 0) return -1;
    if (context_open_mask(ctx, &call->mask) < 0) return -1;
    ctx->training = call->training;
    ctx->holds = call->hold;
    ctx->has_weight = call->vectors[WEIGHT].array != NULL;
    ctx->has_bias = call->vectors[BIAS].array != NULL;
    ctx->count = call->count;
    ctx->core.activation = (abn_activation)call->activation;
    ctx->core.activation_param = call->activation_param;
    norm = &ctx->core.norm;
    norm->eps = call->eps;
    constants_fill(&call->vectors[WEIGHT], channels, 1.0, norm->weight);
    constants_fill(&call->vectors[BIAS], channels, 0.0, norm->bias);
    if (call->is_normalize || !call->training) {
        vector_read(mean, channels, norm->mean);
        vector_read(var, channels, norm->var);
    }
    return slope_prepare(call, ctx) < 0 || context_open_sides(ctx) < 0 ? -1 : 0;
}

static void running_update(const forward_call *call, const abn_norm *norm) {
    const npy_intp channels = call->x.core.channels;
    const double count = call->count;
    const vector *running_mean = &call->vectors[RUNNING_MEAN], *running_var = &call->vectors[RUNNING_VAR];
    if (!call->training || !running_mean->array || count <= 1.0) return;
    vector_blend(running_mean, channels, call->momentum, norm->mean, 1.0);
    vector_blend(running_var, channels, call->momentum, norm->var, count / (count - 1.0));
}

/* Everything has been checked: from here on x may be written. */
static PyObject *run(forward_call *call, context *ctx) {
    const npy_intp elements = batch_elements(&call->x);
    PyArrayObject *fresh = NULL;
    PyObject *result = NULL;
    PyThreadState *unlocked;
    abn_status status = ABN_OK;

    if (context_prepare(call, ctx) < 0) return NULL;
    call->z = call->out.array ? call->out : call->x;
    if (ctx->core.keep != ABN_KEEP_Z && !call->out.array && !(fresh = batch_like(&call->x, &call->z))) return NULL;
    if (context_keep(ctx, call->x.array, call->residual.array) < 0) {
        Py_XDECREF(fresh);
        return NULL;
    }
    if (elements > 0) {
        unlocked = unlock_interpreter(elements);
        status = abn_forward(&call->machine, &call->x.core, &call->z.core, &ctx->core,
                             call->training && !call->is_normalize);
        lock_interpreter(unlocked);
    }
    context_leave(ctx);
    if (status_check(status) < 0 || context_keep_escapes(ctx) < 0) {
        context_free(ctx, "an error in forward");
    } else {
        running_update(call, &ctx->core.norm);
        result = PyTuple_Pack(2, addressed_given(&call->arrays, call->z.array), (PyObject *)ctx);
    }
    Py_XDECREF(fresh);
    return result;
}

/* No Python code runs between the first check of an array and the last write, because it could resize the array.
 * Therefore all other arguments are converted first, and the context, whose allocation may run the garbage collector,
 * is created first. */
static PyObject *forward_or_normalize(PyObject *module, PyObject *const *args, Py_ssize_t positionals,
                                      PyObject *kwnames, int is_normalize) {
    forward_call call = {.module = module, .state = state_of(module), .is_normalize = is_normalize};
    const signature *sig = is_normalize ? &normalize_signature : &forward_signature;
    PyObject *result = NULL;
    context *ctx;
    if (bind_args(call.state, sig, args, positionals, kwnames, call.got) < 0 || options_read(&call) < 0) return NULL;
    if (addressed_open(call.state, call.got, &call.arrays) < 0 ||
        !(ctx = context_new(module, sig->function, call.got[NAME_OWNER]))) {
        addressed_close(&call.arrays);
        return NULL;
    }
    if (arrays_open(&call) == 0) result = run(&call, ctx);
    if (result) context_record(ctx);
    Py_DECREF(ctx);
    addressed_close(&call.arrays);
    return result;
}

/* (N, C, S) and whether x is channels-last in memory, for kernels of another device. */
static PyObject *checked(const forward_call *call) {
    const abn_batch *core = &call->x.core;
    return Py_BuildValue("(nnn)N", core->batch, core->channels, core->spatial,
                         PyBool_FromLong(call->x.layout == CHANNELS_LAST));
}

/* Checks the arguments of a forward and reads no array. */
PyObject *call_check_forward(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    forward_call call = {.module = module, .state = state_of(module)};
    PyObject *result = NULL;
    if (bind_args(call.state, &forward_signature, args, positionals, kwnames, call.got) < 0 || options_read(&call) < 0)
        return NULL;
    if (addressed_open(call.state, call.got, &call.arrays) == 0 && arrays_open(&call) == 0) result = checked(&call);
    addressed_close(&call.arrays);
    return result;
}

PyObject *call_forward(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    return forward_or_normalize(module, args, positionals, kwnames, 0);
}

PyObject *call_normalize(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    return forward_or_normalize(module, args, positionals, kwnames, 1);
}
