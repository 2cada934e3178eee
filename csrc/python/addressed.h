/* Arrays that a caller gives by their address, as (address, shape, strides, dtype): memory of another library. */
#ifndef ABN_PYTHON_ADDRESSED_H
#define ABN_PYTHON_ADDRESSED_H

#include "binding.h"

/* The arrays made for the arguments of one call. `given` is borrowed, `made` is owned. */
typedef struct {
    PyObject *given[NAMES], *made[NAMES];
} addressed;

/* Replaces each tuple in got[NAMES] by an ndarray over its memory. 0, or -1 with an exception. Call addressed_close
 * afterwards, also after an error. */
int addressed_open(binding_state *state, PyObject **got, addressed *arrays);
void addressed_close(addressed *arrays);

/* The dtype of this name: a new reference, or NULL with TypeError. */
PyArray_Descr *addressed_dtype(const binding_state *state, PyObject *name);

/* What the caller gave for this array: the tuple that it was made from, or the array itself. Borrowed. */
PyObject *addressed_given(const addressed *arrays, PyArrayObject *array);

#endif
