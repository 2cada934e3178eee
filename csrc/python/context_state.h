/* The state of a context, from which another one can be made. */
#ifndef ABN_PYTHON_CONTEXT_STATE_H
#define ABN_PYTHON_CONTEXT_STATE_H

#include "binding.h"

/* A dict of all that a context without arrays of x's size has, for call_context_from_state; its side arrays are not
 * copied. */
PyObject *context_state(PyObject *self, PyObject *none);

#endif
