/* What inplace_abn/_cuda needs of csrc/cuda: opening the libraries, compiling, loading, memory of the host. The
 * launches are in cuda_plan.c. */
#include "cuda_calls.h"

#include <stdlib.h>

#include "../cuda/driver.h"
#include "calls.h"
#include "cuda_plan.h"

static PyObject *fail(const char *error) {
    PyErr_SetString(PyExc_RuntimeError, error);
    return NULL;
}

PyDoc_STRVAR(open_driver_doc,
             "_cuda_open_driver($module, path, /)\n--\n\n"
             "Opens the driver, None: the system's. Returns (version, number of devices); raises RuntimeError\n"
             "without one.");
static PyObject *open_driver(PyObject *Py_UNUSED(module), PyObject *args) {
    char error[ABN_CUDA_ERROR];
    const char *path;
    if (!PyArg_ParseTuple(args, "z", &path)) return NULL;
    if (abn_cuda_open_driver(path, error) < 0) return fail(error);
    return Py_BuildValue("ii", abn_cuda_driver_version(), abn_cuda_device_count());
}

PyDoc_STRVAR(open_compiler_doc,
             "_cuda_open_compiler($module, path, builtins, /)\n--\n\n"
             "Opens NVRTC, after the library of its built-in functions, if that is not None.\n\n"
             "Returns (version, newest compute capability); raises RuntimeError if it cannot be opened.");
static PyObject *open_compiler(PyObject *Py_UNUSED(module), PyObject *args) {
    char error[ABN_CUDA_ERROR];
    const char *path, *builtins;
    if (!PyArg_ParseTuple(args, "sz", &path, &builtins)) return NULL;
    if (abn_cuda_open_compiler(path, builtins, error) < 0) return fail(error);
    return Py_BuildValue("ii", abn_cuda_compiler_version(), abn_cuda_compiler_newest());
}

PyDoc_STRVAR(source_doc, "_cuda_source($module, /)\n--\n\nReturns the source of the kernels.");
static PyObject *source(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    PyObject *lines = PyList_New(0), *empty = PyUnicode_FromString(""), *joined = NULL;
    for (const char *const *line = abn_cuda_source; lines && *line; line++) {
        PyObject *text = PyUnicode_FromString(*line);
        if (!text || PyList_Append(lines, text) < 0) Py_CLEAR(lines);
        Py_XDECREF(text);
    }
    if (lines && empty) joined = PyUnicode_Join(empty, lines);
    Py_XDECREF(lines);
    Py_XDECREF(empty);
    return joined;
}

PyDoc_STRVAR(describe_doc,
             "_cuda_device($module, device, /)\n--\n\n"
             "Returns (name, major, minor, multiprocessors) of a device; major.minor is its compute capability.");
static PyObject *describe(PyObject *Py_UNUSED(module), PyObject *args) {
    char error[ABN_CUDA_ERROR];
    abn_cuda_device device;
    int index;
    if (!PyArg_ParseTuple(args, "i", &index)) return NULL;
    if (abn_cuda_describe(index, &device, error) < 0) return fail(error);
    return Py_BuildValue("siii", device.name, device.major, device.minor, device.multiprocessors);
}

PyDoc_STRVAR(compile_doc,
             "_cuda_compile($module, options, /)\n--\n\n"
             "Compiles the kernels with a tuple of options (str). Returns (image, log): machine code if an\n"
             "option names an architecture sm_..., else PTX. Raises RuntimeError with the log.");
static PyObject *compile_kernels(PyObject *Py_UNUSED(module), PyObject *args) {
    char error[ABN_CUDA_ERROR], *log = NULL;
    const char *options[64];
    void *image = NULL;
    size_t bytes = 0;
    int compiled;
    PyObject *tuple, *result = NULL;
    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &tuple)) return NULL;
    const int count = (int)PyTuple_GET_SIZE(tuple);
    if (count > 64) return fail("cuda_compile: more than 64 options");
    for (int i = 0; i < count; i++)
        if (!(options[i] = PyUnicode_AsUTF8(PyTuple_GET_ITEM(tuple, i)))) return NULL;
    PyThreadState *unlocked = PyEval_SaveThread();
    compiled = abn_cuda_compile(options, count, &image, &bytes, &log, error);
    PyEval_RestoreThread(unlocked);
    if (compiled < 0)
        PyErr_Format(PyExc_RuntimeError, "%s\n%s", error, log ? log : "");
    else
        result = Py_BuildValue("y#s", (const char *)image, (Py_ssize_t)bytes, log ? log : "");
    free(image);
    free(log);
    return result;
}

static void release_kernels(PyObject *capsule) {
    abn_cuda_kernels *kernels = PyCapsule_GetPointer(capsule, CUDA_KERNELS);
    if (!kernels) return;
    abn_cuda_unload(kernels);
    free(kernels);
}

PyDoc_STRVAR(load_doc,
             "_cuda_load($module, device, image, /)\n--\n\nLoads an image of cuda_compile (bytes); for CudaPlan.");
static PyObject *load(PyObject *Py_UNUSED(module), PyObject *args) {
    char error[ABN_CUDA_ERROR];
    const char *image;
    Py_ssize_t bytes;
    int device;
    if (!PyArg_ParseTuple(args, "iy#", &device, &image, &bytes)) return NULL;
    abn_cuda_kernels *kernels = calloc(1, sizeof *kernels);
    if (!kernels) return PyErr_NoMemory();
    if (abn_cuda_load(device, image, kernels, error) == 0) {
        PyObject *capsule = PyCapsule_New(kernels, CUDA_KERNELS, release_kernels);
        if (capsule) return capsule;
    } else {
        fail(error);
    }
    abn_cuda_unload(kernels);
    free(kernels);
    return NULL;
}

PyDoc_STRVAR(
    layout_doc,
    "cuda_layout($module, dtype, shape, channels_last, multiprocessors, /)\n--\n\n"
    "Returns (width, columns): the elements of a vector, and True for ABN_COLUMNS, with which the kernels for\n"
    "batches of this shape (images, channels, positions) must be compiled. dtype: index of an abn_dtype.");
static PyObject *layout(PyObject *Py_UNUSED(module), PyObject *args) {
    int dtype, channels_last, multiprocessors;
    long long images, channels, positions;
    if (!PyArg_ParseTuple(args, "i(LLL)pi", &dtype, &images, &channels, &positions, &channels_last, &multiprocessors))
        return NULL;
    const abn_cuda_plan plan =
        abn_cuda_plan_of((abn_dtype)dtype, images, channels, positions, channels_last, multiprocessors);
    return Py_BuildValue("iO", plan.width, plan.layout == ABN_CUDA_COLUMNS ? Py_True : Py_False);
}

PyDoc_STRVAR(is_capturing_doc, "_cuda_is_capturing($module, device, stream, /)\n--\n\n"
                               "Returns True if calls in the stream are recorded into a graph instead of run.");
static PyObject *is_capturing(PyObject *Py_UNUSED(module), PyObject *args) {
    int device;
    unsigned long long stream;
    if (!PyArg_ParseTuple(args, "iK", &device, &stream)) return NULL;
    return PyBool_FromLong(abn_cuda_is_capturing(device, (void *)(uintptr_t)stream));
}

PyDoc_STRVAR(host_memory_doc,
             "_cuda_host_memory($module, device, nbytes, /)\n--\n\n"
             "Returns (memoryview, address on the device) of memory of the host that kernels can write. Never freed.");
static PyObject *host_memory(PyObject *Py_UNUSED(module), PyObject *args) {
    char error[ABN_CUDA_ERROR];
    void *host = NULL, *on_device = NULL;
    int device;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(args, "in", &device, &bytes)) return NULL;
    if (abn_cuda_host_allocate(device, (size_t)bytes, &host, &on_device, error) < 0) return fail(error);
    return Py_BuildValue("NK", PyMemoryView_FromMemory(host, bytes, PyBUF_WRITE),
                         (unsigned long long)(uintptr_t)on_device);
}

PyDoc_STRVAR(read_doc, "_cuda_read($module, device, address, nbytes, stream, /)\n--\n\n"
                       "Returns bytes of the device's memory, once the stream has run what it was given.");
static PyObject *read_memory(PyObject *Py_UNUSED(module), PyObject *args) {
    char error[ABN_CUDA_ERROR];
    int device, status;
    unsigned long long address, stream;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(args, "iKnK", &device, &address, &bytes, &stream)) return NULL;
    PyObject *result = PyBytes_FromStringAndSize(NULL, bytes);
    if (!result) return NULL;
    char *to = PyBytes_AS_STRING(result);
    PyThreadState *unlocked = PyEval_SaveThread();
    status =
        abn_cuda_read(device, to, (const void *)(uintptr_t)address, (size_t)bytes, (void *)(uintptr_t)stream, error);
    PyEval_RestoreThread(unlocked);
    if (status == 0) return result;
    Py_DECREF(result);
    return fail(error);
}

PyDoc_STRVAR(
    check_forward_doc,
    "_check_forward($module, /, x, *, ...)\n--\n\n"
    "Raises the errors of forward, whose arguments it takes, for arrays given by their address, which it does\n"
    "not read. Returns ((images, channels, positions), channels_last).");

PyMethodDef cuda_methods[] = {
    {"_check_forward", (PyCFunction)(void (*)(void))call_check_forward, METH_FASTCALL | METH_KEYWORDS,
     check_forward_doc},
    {"_cuda_open_driver", open_driver, METH_VARARGS, open_driver_doc},
    {"_cuda_open_compiler", open_compiler, METH_VARARGS, open_compiler_doc},
    {"_cuda_source", source, METH_NOARGS, source_doc},
    {"_cuda_device", describe, METH_VARARGS, describe_doc},
    {"_cuda_compile", compile_kernels, METH_VARARGS, compile_doc},
    {"_cuda_load", load, METH_VARARGS, load_doc},
    {"_cuda_layout", layout, METH_VARARGS, layout_doc},
    {"_cuda_is_capturing", is_capturing, METH_VARARGS, is_capturing_doc},
    {"_cuda_host_memory", host_memory, METH_VARARGS, host_memory_doc},
    {"_cuda_read", read_memory, METH_VARARGS, read_doc},
    {NULL, NULL, 0, NULL},
};
