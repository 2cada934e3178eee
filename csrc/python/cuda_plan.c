/* The host's time limits small layers, so arguments go by position. An array is None (NULL), its address as an int, or
 * an object with the method data_ptr, such as a tensor of PyTorch. */
#include "cuda_plan.h"

#include "cuda_calls.h"

#include "../cuda/driver.h"

typedef struct {
    PyObject_HEAD PyObject *capsule;
    abn_cuda_kernels *kernels;
    abn_cuda_plan plan;
} cuda_plan;

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    int dtype, channels_last, multiprocessors;
    long long images, channels, positions;
    PyObject *capsule;
    if (kwargs && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "CudaPlan takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "Oi(LLL)pi", &capsule, &dtype, &images, &channels, &positions, &channels_last,
                          &multiprocessors))
        return NULL;
    abn_cuda_kernels *kernels = PyCapsule_GetPointer(capsule, CUDA_KERNELS);
    if (!kernels) return NULL;
    cuda_plan *self = (cuda_plan *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->capsule = Py_NewRef(capsule);
    self->kernels = kernels;
    self->plan = abn_cuda_plan_of((abn_dtype)dtype, images, channels, positions, channels_last, multiprocessors);
    return (PyObject *)self;
}

static void plan_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(((cuda_plan *)self)->capsule);
    type->tp_free(self);
    Py_DECREF(type);
}

static void *address_of(PyObject *array) {
    if (array == Py_None) return NULL;
    if (PyLong_Check(array)) return PyLong_AsVoidPtr(array);
    static PyObject *name; /* the module is for one interpreter */
    if (!name && !(name = PyUnicode_InternFromString("data_ptr"))) return NULL;
    PyObject *address = PyObject_CallMethodNoArgs(array, name);
    if (!address) return NULL;
    void *result = PyLong_AsVoidPtr(address);
    Py_DECREF(address);
    return result;
}

/* The addresses of args[0 .. count), into `to`; 0, or -1 with an exception. */
static int read_addresses(PyObject *const *args, int count, void **to) {
    for (int i = 0; i < count; i++)
        if (!(to[i] = address_of(args[i])) && PyErr_Occurred()) return -1;
    return 0;
}

static int read_numbers(PyObject *const *args, int count, double *to) {
    for (int i = 0; i < count; i++) {
        to[i] = PyFloat_AsDouble(args[i]);
        if (to[i] == -1 && PyErr_Occurred()) return -1;
    }
    return 0;
}

static PyObject *run(cuda_plan *self, abn_cuda_pass *pass, void *stream, void *scratch, int backward) {
    char error[ABN_CUDA_ERROR];
    int status;
    PyThreadState *unlocked = PyEval_SaveThread(); /* a launch waits if the stream's queue is full */
    status = abn_cuda_run(self->kernels, &self->plan, pass, scratch, stream, backward, error);
    PyEval_RestoreThread(unlocked);
    if (status == 0) Py_RETURN_NONE;
    PyErr_SetString(PyExc_RuntimeError, error);
    return NULL;
}

/* The last three arguments, which a call of one process alone leaves out: exchange, the address of what is exchanged,
 * and the count. */
enum { EXCHANGE, EXCHANGED, COUNT, EXCHANGE_ARGUMENTS };

static int read_exchange(PyObject *const *args, Py_ssize_t given, abn_cuda_pass *pass) {
    void *exchanged;
    if (given == 0) return 0;
    pass->exchange = (int32_t)PyLong_AsLong(args[EXCHANGE]);
    if (PyErr_Occurred() || read_addresses(args + EXCHANGED, 1, &exchanged) < 0) return -1;
    pass->exchanged = exchanged;
    return read_numbers(args + COUNT, 1, &pass->count);
}

static int check_count(const char *function, Py_ssize_t got, int wanted) {
    if (got == wanted || got == wanted + EXCHANGE_ARGUMENTS) return 0;
    PyErr_Format(PyExc_TypeError, "CudaPlan.%s takes %d or %d arguments by position, got %zd", function, wanted,
                 wanted + EXCHANGE_ARGUMENTS, got);
    return -1;
}

PyDoc_STRVAR(forward_doc,
             "forward($self, stream, x, z, residual, weight, bias, slope, running_mean, running_var, batches,\n"
             "        saved, scratch, xhat, report, capacity, training, momentum, eps, param, most_bias, exchange=0,\n"
             "        exchanged=None, count=0, /)\n--\n\n"
             "x -> z, and what the backward needs -> saved, in a stream. See inplace_abn/_cuda.");
static PyObject *plan_forward(PyObject *of, PyObject *const *args, Py_ssize_t count) {
    enum { STREAM, X, Z, RESIDUAL, WEIGHT, BIAS, SLOPE, MEAN, VAR, BATCHES, SAVED, SCRATCH, XHAT, REPORT, ADDRESSES };
    enum { CAPACITY, TRAINING, MOMENTUM, EPS, PARAM, MOST_BIAS, NUMBERS };
    cuda_plan *self = (cuda_plan *)of;
    void *address[ADDRESSES];
    double number[NUMBERS];
    if (check_count("forward", count, ADDRESSES + NUMBERS) < 0) return NULL;
    if (read_addresses(args, ADDRESSES, address) < 0 || read_numbers(args + ADDRESSES, NUMBERS, number) < 0)
        return NULL;
    abn_cuda_pass pass = self->plan.geometry;
    pass.source = address[X];
    pass.destination = address[Z];
    pass.residual = address[RESIDUAL];
    pass.weight = address[WEIGHT];
    pass.bias = address[BIAS];
    pass.slope = address[SLOPE];
    pass.running_mean = address[MEAN];
    pass.running_var = address[VAR];
    pass.batches = address[BATCHES];
    pass.saved = address[SAVED];
    pass.xhat = address[XHAT];
    pass.report = address[REPORT];
    pass.capacity = (int32_t)number[CAPACITY];
    pass.training = number[TRAINING] != 0;
    pass.momentum = number[MOMENTUM];
    pass.eps = number[EPS];
    pass.param = number[PARAM];
    pass.most_bias = number[MOST_BIAS];
    if (read_exchange(args + ADDRESSES + NUMBERS, count - ADDRESSES - NUMBERS, &pass) < 0) return NULL;
    return run(self, &pass, address[STREAM], address[SCRATCH], 0);
}

PyDoc_STRVAR(
    backward_doc,
    "backward($self, stream, kept, dz, residual, dx, dresidual, dweight, dbias, dslope, saved, scratch, xhat,\n"
    "         training, param, exchange=0, exchanged=None, count=0, /)\n--\n\n"
    "dz -> dx and the other gradients, in a stream. See inplace_abn/_cuda.");
static PyObject *plan_backward(PyObject *of, PyObject *const *args, Py_ssize_t count) {
    enum { STREAM, KEPT, DZ, RESIDUAL, DX, DRESIDUAL, DWEIGHT, DBIAS, DSLOPE, SAVED, SCRATCH, XHAT, ADDRESSES };
    enum { TRAINING, PARAM, NUMBERS };
    cuda_plan *self = (cuda_plan *)of;
    void *address[ADDRESSES];
    double number[NUMBERS];
    if (check_count("backward", count, ADDRESSES + NUMBERS) < 0) return NULL;
    if (read_addresses(args, ADDRESSES, address) < 0 || read_numbers(args + ADDRESSES, NUMBERS, number) < 0)
        return NULL;
    abn_cuda_pass pass = self->plan.geometry;
    pass.source = address[KEPT];
    pass.gradient = address[DZ];
    pass.residual = address[RESIDUAL];
    pass.destination = address[DX];
    pass.residual_gradient = address[DRESIDUAL];
    pass.weight_gradient = address[DWEIGHT];
    pass.bias_gradient = address[DBIAS];
    pass.slope_gradient = address[DSLOPE];
    pass.saved = address[SAVED];
    pass.xhat = address[XHAT];
    pass.training = number[TRAINING] != 0;
    pass.param = number[PARAM];
    if (read_exchange(args + ADDRESSES + NUMBERS, count - ADDRESSES - NUMBERS, &pass) < 0) return NULL;
    return run(self, &pass, address[STREAM], address[SCRATCH], 1);
}

static PyObject *plan_saved_bytes(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromSize_t(((cuda_plan *)self)->plan.saved_bytes);
}

static PyObject *plan_scratch_bytes(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromSize_t(((cuda_plan *)self)->plan.scratch_bytes);
}

static PyMethodDef plan_methods[] = {
    {"forward", (PyCFunction)(void (*)(void))plan_forward, METH_FASTCALL, forward_doc},
    {"backward", (PyCFunction)(void (*)(void))plan_backward, METH_FASTCALL, backward_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef plan_getters[] = {
    {"saved_bytes", plan_saved_bytes, NULL, "The size of `saved` in bytes.", NULL},
    {"scratch_bytes", plan_scratch_bytes, NULL, "The size of `scratch` in bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_new, plan_new},
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_methods, plan_methods},
    {Py_tp_getset, plan_getters},
    {Py_tp_doc, "_CudaPlan(kernels, dtype, shape, channels_last, multiprocessors, /)\n--\n\n"
                "The kernels for batches of one shape (images, channels, positions) on one device."},
    {0, NULL},
};

PyType_Spec cuda_plan_spec = {
    .name = "inplace_abn._core._CudaPlan",
    .basicsize = sizeof(cuda_plan),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = plan_slots,
};
