/* Shared by all files of the binding: Python and NumPy headers, and the state of the module. */
#ifndef ABN_PYTHON_BINDING_H
#define ABN_PYTHON_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL abn_numpy_api
#ifndef ABN_IMPORTS_NUMPY /* module.c alone fills the table of NumPy's functions */
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "../abn.h"
#include "args.h"

#define ABN_MAX_DIMS 5
#define ABN_MAX_KERNELS 8

struct saved_entry;

/* The index of saved memory; registry.h describes it. */
typedef struct {
    uintptr_t low;
    struct saved_entry *entry;
} registry_place;

typedef struct {
    registry_place *places; /* sorted by low */
    npy_intp count, room;
} registry;

typedef struct binding_state {
    PyObject *names[NAMES];                 /* interned keyword names */
    PyObject *activations[ABN_ACTIVATIONS]; /* interned, in the order of abn_activation_table */
    PyObject *strategies[STRATEGIES];       /* interned, in the order of strategy_table */
    PyTypeObject *context_type, *saved_array_type;
    PyObject *memmap;                           /* numpy.memmap: the one subclass that batches may have */
    PyObject *ml_dtypes;                        /* the str "ml_dtypes", to find it in sys.modules */
    PyArray_Descr *raw_bfloat16;                /* uint16: the dtype of bfloat16 memory given by its address */
    int bfloat16;                               /* type number of bfloat16; -1 until the first such array */
    int threads;                                /* what threads=None means for large batches */
    const abn_kernels *usable[ABN_MAX_KERNELS]; /* best first, NULL past the end */
    const abn_kernels *kernels;                 /* what isa=None means */
    registry saved;                             /* memory that live contexts and SavedArrays need */
    PyObject *recorder;                         /* the active memory.Ledger, or NULL */
} binding_state;

static inline binding_state *state_of(PyObject *module) { return (binding_state *)PyModule_GetState(module); }

/* Up to this many elements, the work costs less than releasing and taking the interpreter lock. */
#define ABN_WORTH_UNLOCKING 16384
/* Below this many elements, waking a second thread costs more than it saves. */
#define ABN_WORTH_THREADS 32768

/* Chooses the number of threads for a call over `elements` elements, unless threads= has set it. */
static inline void machine_settle(const binding_state *state, npy_intp elements, abn_machine *machine) {
    if (machine->threads == 0) machine->threads = elements < ABN_WORTH_THREADS ? 1 : state->threads;
}

static inline PyThreadState *unlock_interpreter(npy_intp elements) {
    return elements > ABN_WORTH_UNLOCKING ? PyEval_SaveThread() : NULL;
}

static inline void lock_interpreter(PyThreadState *unlocked) {
    if (unlocked) PyEval_RestoreThread(unlocked);
}

/* 0, or -1 with MemoryError set. */
static inline int status_check(abn_status status) {
    if (status == ABN_OK) return 0;
    PyErr_NoMemory();
    return -1;
}

#endif
