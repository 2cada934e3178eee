/* The functions and the type of the module for GPUs. inplace_abn/_cuda uses them; their arguments are checked there. */
#ifndef ABN_PYTHON_CUDA_CALLS_H
#define ABN_PYTHON_CUDA_CALLS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern PyMethodDef cuda_methods[]; /* ends with NULL */
extern PyType_Spec cuda_plan_spec;

#endif
