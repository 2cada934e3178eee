/* inplace_abn._core.SavedArray. An owner is a str, or a function that returns one and is called when a name is
 * needed. */
#ifndef ABN_PYTHON_SAVED_ARRAY_H
#define ABN_PYTHON_SAVED_ARRAY_H

#include "binding.h"

extern PyType_Spec saved_array_spec;

/* 0, or -1 with TypeError. */
int owner_arg(PyObject *got);

/* A new string. It may run Python code. */
PyObject *owner_name(PyObject *owner);

#endif
