/* inplace_abn._core.SavedArray, an entry of the registry created from Python, and the functions that query the
 * registry. */
#include "saved_array.h"

#include <structmember.h>

#include "batch.h"
#include "calls.h"
#include "registry.h"
#include "signatures.h"

typedef struct {
    PyObject_HEAD PyObject *weak_references;
    PyObject *module; /* keeps `state` alive */
    binding_state *state;
    PyObject *array, *owner, *role; /* array is a tuple for memory of another library; all NULL once released */
    footprint bytes;
    saved_entry entry;
} saved_array;

/* ---- memory: an array, or an address and a number of bytes --------------------------------------------------- */

/* *array is borrowed, and NULL for a range. */
static int memory_arg(PyObject *got, const char *name, footprint *bytes, PyArrayObject **array) {
    void *address;
    Py_ssize_t nbytes;
    *array = NULL;
    if (PyArray_Check(got)) {
        *array = (PyArrayObject *)got;
        *bytes = footprint_of_array(*array);
        return 0;
    }
    if (!PyTuple_Check(got) || PyTuple_GET_SIZE(got) != 2) {
        PyErr_Format(PyExc_TypeError, "%s must be a numpy.ndarray, or (address, nbytes) of other memory, got '%s'",
                     name, Py_TYPE(got)->tp_name);
        return -1;
    }
    address = PyLong_AsVoidPtr(PyTuple_GET_ITEM(got, 0));
    if (!address && PyErr_Occurred()) return -1;
    nbytes = PyLong_AsSsize_t(PyTuple_GET_ITEM(got, 1));
    if (nbytes == -1 && PyErr_Occurred()) return -1;
    if (nbytes < 0) {
        PyErr_Format(PyExc_ValueError, "%s must have 0 bytes or more, got %zd", name, nbytes);
        return -1;
    }
    *bytes = footprint_of_range(address, nbytes);
    return 0;
}

int owner_arg(PyObject *got) {
    if (got && (PyUnicode_Check(got) || PyCallable_Check(got))) return 0;
    PyErr_Format(PyExc_TypeError, "owner must be a str or a function that returns one, got %R", got ? got : Py_None);
    return -1;
}

PyObject *owner_name(PyObject *owner) {
    PyObject *name, *text;
    if (PyUnicode_Check(owner)) return Py_NewRef(owner);
    if (!(name = PyObject_CallNoArgs(owner))) return NULL;
    text = PyObject_Str(name);
    Py_DECREF(name);
    return text;
}

static int text_arg(PyObject *got, name_id name) {
    if (PyUnicode_Check(got)) return 0;
    PyErr_Format(PyExc_TypeError, "%s must be a str, got %R", name_texts[name], got);
    return -1;
}

/* ---- SavedArray ---------------------------------------------------------------------------------------------- */

static PyObject *holder_text(PyObject *holder) {
    PyObject *owner = Py_NewRef(((saved_array *)holder)->owner), *text = owner_name(owner);
    Py_DECREF(owner);
    return text;
}

static void drop(saved_array *saved) {
    PyObject *array = saved->array, *owner = saved->owner, *role = saved->role;
    registry_remove(saved->state, &saved->entry);
    saved->array = saved->owner = saved->role = NULL;
    if (!array) return;
    Py_DECREF(array); /* may run Python code, and so may the next two */
    Py_XDECREF(owner);
    Py_XDECREF(role);
}

PyObject *call_save(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    binding_state *state = state_of(module);
    PyObject *got[NAMES] = {NULL};
    PyArrayObject *array;
    saved_array *saved;
    footprint bytes;
    const char *role;
    if (bind_args(state, &save_signature, args, positionals, kwnames, got) < 0) return NULL;
    if (owner_arg(got[NAME_OWNER]) < 0 || text_arg(got[NAME_ROLE], NAME_ROLE) < 0) return NULL;
    if (!(role = PyUnicode_AsUTF8(got[NAME_ROLE]))) return NULL;
    saved = (saved_array *)state->saved_array_type->tp_alloc(state->saved_array_type, 0);
    if (!saved) return NULL;
    saved->module = Py_NewRef(module);
    saved->state = state;
    if (memory_arg(got[NAME_ARRAY], "array", &bytes, &array) < 0) goto failed;
    saved->bytes = bytes;
    saved->entry = (saved_entry){
        .bytes = &saved->bytes, .array = array, .role = role, .holder = (PyObject *)saved, .owner = holder_text};
    if (registry_add(state, &saved->entry) < 0) goto failed;
    saved->array = Py_NewRef(got[NAME_ARRAY]);
    saved->owner = Py_NewRef(got[NAME_OWNER]);
    saved->role = Py_NewRef(got[NAME_ROLE]);
    return (PyObject *)saved;
failed:
    Py_DECREF(saved);
    return NULL;
}

static PyObject *release(PyObject *self, PyObject *Py_UNUSED(none)) {
    drop((saved_array *)self);
    Py_RETURN_NONE;
}

static PyObject *get(PyObject *self, void *member) {
    PyObject *value = *(PyObject **)((char *)self + (size_t)member);
    return Py_NewRef(value ? value : Py_None);
}

static PyObject *get_owner(PyObject *self, void *Py_UNUSED(closure)) {
    return ((saved_array *)self)->owner ? holder_text(self) : Py_NewRef(Py_None);
}

static int traverse(PyObject *self, visitproc visit, void *arg) {
    saved_array *saved = (saved_array *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(saved->module);
    Py_VISIT(saved->array);
    Py_VISIT(saved->owner);
    return 0;
}

static int clear(PyObject *self) {
    drop((saved_array *)self);
    return 0;
}

static void dealloc(PyObject *self) {
    saved_array *saved = (saved_array *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (saved->state) registry_remove(saved->state, &saved->entry);
    if (saved->weak_references) PyObject_ClearWeakRefs(self);
    if (saved->state) drop(saved);
    Py_XDECREF(saved->module);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"release", release, METH_NOARGS, saved_release_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"array", get, NULL, "The array, or (address, nbytes); None once released.", (void *)offsetof(saved_array, array)},
    {"owner", get_owner, NULL, "Who needs the memory; None once released.", NULL},
    {"role", get, NULL, "What its owner uses it for; None once released.", (void *)offsetof(saved_array, role)},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(saved_array, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Memory that must not change until release(), or until this object is deleted."},
    {Py_tp_dealloc, dealloc},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_tp_members, members},
    {0, NULL},
};

PyType_Spec saved_array_spec = {
    .name = "inplace_abn._core.SavedArray",
    .basicsize = sizeof(saved_array),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

/* ---- functions that query the registry ------------------------------------------------------------------------ */

PyObject *call_saved_by(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    binding_state *state = state_of(module);
    PyObject *got[NAMES] = {NULL}, *owner, *role;
    PyArrayObject *array;
    const saved_entry *entry;
    footprint bytes;
    if (bind_args(state, &saved_by_signature, args, positionals, kwnames, got) < 0) return NULL;
    if (memory_arg(got[NAME_ARRAY], "array", &bytes, &array) < 0) return NULL;
    if (!(entry = registry_find(state, &bytes))) Py_RETURN_NONE;
    return registry_describe(entry, &owner, &role) < 0 ? NULL : Py_BuildValue("(NN)", owner, role);
}

PyObject *call_refuse_if_saved(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    binding_state *state = state_of(module);
    PyObject *got[NAMES] = {NULL};
    PyArrayObject *array;
    footprint bytes;
    const char *writer;
    if (bind_args(state, &refuse_if_saved_signature, args, positionals, kwnames, got) < 0) return NULL;
    if (text_arg(got[NAME_WRITER], NAME_WRITER) < 0 || !(writer = PyUnicode_AsUTF8(got[NAME_WRITER]))) return NULL;
    if (memory_arg(got[NAME_ARRAY], "array", &bytes, &array) < 0) return NULL;
    if (registry_refuse(state, &bytes, NULL, writer) < 0) return NULL;
    Py_RETURN_NONE;
}

PyObject *call_restore_writeable(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    binding_state *state = state_of(module);
    PyObject *got[NAMES] = {NULL};
    PyArrayObject *array;
    array_lock *lock;
    footprint bytes;
    if (bind_args(state, &restore_writeable_signature, args, positionals, kwnames, got) < 0) return NULL;
    if (memory_arg(got[NAME_ARRAY], "array", &bytes, &array) < 0) return NULL;
    lock = array ? registry_lock(state, array, bytes.low) : NULL;
    if (lock) lock->restore = 1;
    return PyBool_FromLong(lock != NULL);
}

PyObject *call_saved_count(PyObject *module, PyObject *Py_UNUSED(none)) {
    return PyLong_FromSsize_t((Py_ssize_t)state_of(module)->saved.count);
}

PyObject *call_set_recorder(PyObject *module, PyObject *const *args, Py_ssize_t positionals, PyObject *kwnames) {
    binding_state *state = state_of(module);
    PyObject *got[NAMES] = {NULL};
    if (bind_args(state, &set_recorder_signature, args, positionals, kwnames, got) < 0) return NULL;
    Py_XSETREF(state->recorder, got[NAME_RECORDER] == Py_None ? NULL : Py_NewRef(got[NAME_RECORDER]));
    Py_RETURN_NONE;
}
