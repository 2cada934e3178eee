/* inplace_abn._core: the functions and the state of the module, and the choice of kernels. */
#define ABN_IMPORTS_NUMPY
#include "binding.h"

#include <stdlib.h>

#include "calls.h"
#include "context.h"
#include "cuda_calls.h"
#include "registry.h"
#include "saved_array.h"
#include "signatures.h"

#ifndef ABN_VERSION /* setup.py passes pyproject.toml's */
#define ABN_VERSION "unknown"
#endif

#if defined(__clang__) /* __clang_version__ ends in a space */
#define ABN_COMPILER \
    "clang " Py_STRINGIFY(__clang_major__) "." Py_STRINGIFY(__clang_minor__) "." Py_STRINGIFY(__clang_patchlevel__)
#elif defined(__GNUC__)
#define ABN_COMPILER "gcc " __VERSION__
#elif defined(_MSC_VER)
#define ABN_COMPILER "msvc " Py_STRINGIFY(_MSC_VER)
#else
#define ABN_COMPILER "unknown"
#endif

/* ---- threads and info ------------------------------------------------------------------------------------ */

static PyObject *set_num_threads(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    binding_state *state = state_of(module);
    PyObject *got[NAMES] = {NULL};
    if (bind_args(state, &set_num_threads_signature, args, positionals, kwnames, got) < 0) return NULL;
    if (int_arg(got[NAME_N], NAME_N, 1, ABN_MAX_THREADS, &state->threads) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *get_num_threads(PyObject *module, PyObject *Py_UNUSED(none)) {
    return PyLong_FromLong(state_of(module)->threads);
}

/* The names of the instruction sets that were built, or of those that this machine can run: a new list. */
static PyObject *isa_names(int usable_only) {
    const abn_kernels *kernels;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && (kernels = abn_kernels_at(i)); i++) {
        PyObject *name;
        if (usable_only && !abn_kernels_usable(kernels)) continue;
        name = PyUnicode_FromString(abn_kernels_name(kernels));
        if (!name || PyList_Append(list, name) < 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

static PyObject *info(PyObject *module, PyObject *Py_UNUSED(none)) {
    const binding_state *state = state_of(module);
    PyObject *built = isa_names(0), *usable = isa_names(1), *result = NULL;
    if (built && usable)
        result = Py_BuildValue("{s:s, s:O, s:O, s:s, s:O, s:i, s:s, s:s}", "version", ABN_VERSION, "isa_built", built,
                               "isa_usable", usable, "isa_active", abn_kernels_name(state->kernels), "openmp",
                               abn_has_openmp() ? Py_True : Py_False, "threads", state->threads, "compiler",
                               ABN_COMPILER, "numpy_api", Py_STRINGIFY(NPY_TARGET_VERSION));
    Py_XDECREF(built);
    Py_XDECREF(usable);
    return result;
}

/* ---- module state ----------------------------------------------------------------------------------------- */

/* The best usable instruction set, or the one that INPLACE_ABN_ISA names. */
static int choose_kernels(binding_state *state) {
    const char *wanted = getenv("INPLACE_ABN_ISA");
    const abn_kernels *kernels;
    PyObject *usable;
    int count = 0;
    for (int i = 0; (kernels = abn_kernels_at(i)) && count < ABN_MAX_KERNELS - 1; i++)
        if (abn_kernels_usable(kernels)) state->usable[count++] = kernels;
    if (!wanted || !*wanted) {
        state->kernels = state->usable[0];
        return 0;
    }
    for (int i = 0; i < count; i++)
        if (PyOS_stricmp(abn_kernels_name(state->usable[i]), wanted) == 0) state->kernels = state->usable[i];
    if (state->kernels) return 0;
    usable = isa_names(1);
    if (usable)
        PyErr_Format(PyExc_ImportError,
                     "the environment variable INPLACE_ABN_ISA is '%s', which this machine or this build "
                     "of inplace_abn cannot use; it may be one of %S, or unset",
                     wanted, usable);
    Py_XDECREF(usable);
    return -1;
}

static int intern_texts(binding_state *state) {
    for (int i = 0; i < NAMES; i++)
        if (!(state->names[i] = PyUnicode_InternFromString(name_texts[i]))) return -1;
    for (int i = 0; i < ABN_ACTIVATIONS; i++)
        if (!(state->activations[i] = PyUnicode_InternFromString(abn_activation_table[i].name))) return -1;
    for (int i = 0; i < STRATEGIES; i++)
        if (!(state->strategies[i] = PyUnicode_InternFromString(strategy_table[i].name))) return -1;
    return (state->ml_dtypes = PyUnicode_InternFromString("ml_dtypes")) ? 0 : -1;
}

static int find_numpy(binding_state *state) {
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (!numpy) return -1;
    state->memmap = PyObject_GetAttrString(numpy, "memmap");
    Py_DECREF(numpy);
    return state->memmap ? 0 : -1;
}

static int module_exec(PyObject *module) {
    binding_state *state = state_of(module);
    state->bfloat16 = -1;
    abn_initialize();
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    if (!(state->raw_bfloat16 = PyArray_DescrNewFromType(NPY_USHORT))) return -1;
    if (intern_texts(state) < 0 || find_numpy(state) < 0 || choose_kernels(state) < 0) return -1;
    state->threads = abn_default_threads();
    if (state->threads < 1) state->threads = 1;
    if (state->threads > ABN_MAX_THREADS) state->threads = ABN_MAX_THREADS;
    state->context_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &context_spec, NULL);
    if (!state->context_type || PyModule_AddType(module, state->context_type) < 0) return -1;
    state->saved_array_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &saved_array_spec, NULL);
    if (!state->saved_array_type || PyModule_AddType(module, state->saved_array_type) < 0) return -1;
    PyObject *plan_type = PyType_FromModuleAndSpec(module, &cuda_plan_spec, NULL);
    const int added = plan_type ? PyModule_AddType(module, (PyTypeObject *)plan_type) : -1;
    Py_XDECREF(plan_type);
    if (added < 0 || PyModule_AddFunctions(module, cuda_methods) < 0) return -1;
    return PyModule_AddStringConstant(module, "__version__", ABN_VERSION);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    binding_state *state = state_of(module);
    Py_VISIT(state->context_type);
    Py_VISIT(state->saved_array_type);
    Py_VISIT(state->recorder);
    Py_VISIT(state->memmap);
    return 0;
}

static int module_clear(PyObject *module) {
    binding_state *state = state_of(module);
    Py_CLEAR(state->context_type);
    Py_CLEAR(state->saved_array_type);
    Py_CLEAR(state->recorder);
    Py_CLEAR(state->memmap);
    return 0;
}

static void module_free(void *module) {
    binding_state *state = state_of(module);
    module_clear(module);
    registry_close(state);
    for (int i = 0; i < NAMES; i++) Py_CLEAR(state->names[i]);
    for (int i = 0; i < ABN_ACTIVATIONS; i++) Py_CLEAR(state->activations[i]);
    for (int i = 0; i < STRATEGIES; i++) Py_CLEAR(state->strategies[i]);
    Py_CLEAR(state->ml_dtypes);
    Py_CLEAR(state->raw_bfloat16);
}

/* ---- the module ------------------------------------------------------------------------------------------------ */

#define FAST(name) {#name, (PyCFunction)(void (*)(void))call_##name, METH_FASTCALL | METH_KEYWORDS, name##_doc}

static PyMethodDef methods[] = {
    FAST(forward),
    FAST(backward),
    FAST(statistics),
    FAST(normalize),
    FAST(backward_reduce),
    FAST(backward_apply),
    FAST(stream),
    FAST(save),
    FAST(saved_by),
    FAST(refuse_if_saved),
    FAST(restore_writeable),
    FAST(set_recorder),
    FAST(context_from_state),
    {"set_num_threads", (PyCFunction)(void (*)(void))set_num_threads, METH_FASTCALL | METH_KEYWORDS,
     set_num_threads_doc},
    {"get_num_threads", get_num_threads, METH_NOARGS, get_num_threads_doc},
    {"saved_count", call_saved_count, METH_NOARGS, saved_count_doc},
    {"info", info, METH_NOARGS, info_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* NumPy does not support them */
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_USED}, /* the registry and the flags of the arrays rely on it */
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "inplace_abn._core",
    .m_doc = "In-place activated batch normalization on NumPy arrays; inplace_abn.functional documents it.",
    .m_size = sizeof(binding_state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
