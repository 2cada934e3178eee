/* The functions of the module that are defined outside of module.c; module.c lists them. */
#ifndef ABN_PYTHON_CALLS_H
#define ABN_PYTHON_CALLS_H

#include "binding.h"

PyObject *call_forward(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_check_forward(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_normalize(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_backward(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_backward_reduce(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_backward_apply(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_statistics(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_save(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_saved_by(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_refuse_if_saved(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_restore_writeable(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_saved_count(PyObject *module, PyObject *none);
PyObject *call_set_recorder(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_context_from_state(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);
PyObject *call_stream(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames);

#endif
