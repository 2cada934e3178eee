#include "binding.h"

#include <string.h>

const char *const name_texts[NAMES] = {
#define NAME_TEXT(upper, lower) #lower,
    EACH_NAME(NAME_TEXT)
#undef NAME_TEXT
};

/* ---- binding ----------------------------------------------------------------------------------------- */

/* The edit distance of two short names, cut off at 3. */
static int distance(const char *a, const char *b) {
    int row[33];
    const int length_a = (int)strlen(a), length_b = (int)strlen(b);
    if (length_a > 32 || length_b > 32) return 3;
    for (int j = 0; j <= length_b; j++) row[j] = j;
    for (int i = 1; i <= length_a; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= length_b; j++) {
            const int above = row[j], replaced = diagonal + (a[i - 1] != b[j - 1]);
            const int shorter = above < row[j - 1] ? above : row[j - 1];
            row[j] = replaced < shorter + 1 ? replaced : shorter + 1;
            diagonal = above;
        }
    }
    return row[length_b] < 3 ? row[length_b] : 3;
}

/* The names from `first` to `end`, each followed by `suffix`, with `separator` in between: a new string. */
static PyObject *list_names(const binding_state *state, const signature *sig, int first, int end, const char *separator,
                            const char *suffix) {
    PyObject *text = PyUnicode_FromString("");
    for (int i = first; text && i < end; i++) {
        PyObject *longer =
            PyUnicode_FromFormat("%U%s%U%s", text, i > first ? separator : "", state->names[sig->names[i]], suffix);
        Py_DECREF(text);
        text = longer;
    }
    return text;
}

/* -1 with a TypeError that lists the keywords. */
static int too_many_positionals(const binding_state *state, const signature *sig, Py_ssize_t positionals) {
    PyObject *allowed = list_names(state, sig, 0, sig->positional, " and ", "");
    PyObject *keywords = list_names(state, sig, sig->positional, sig->count, ", ", "=");
    if (allowed && keywords)
        PyErr_Format(PyExc_TypeError, "%s() takes %U%s by position, got %zd positional argument%s%s%U", sig->function,
                     allowed, sig->positional ? " only" : "nothing", positionals, positionals == 1 ? "" : "s",
                     sig->positional < sig->count ? "; pass the others by keyword: " : "", keywords);
    Py_XDECREF(allowed);
    Py_XDECREF(keywords);
    return -1;
}

static int unexpected(const binding_state *state, const signature *sig, PyObject *keyword) {
    const char *given = PyUnicode_AsUTF8(keyword), *closest = NULL;
    PyObject *names;
    int nearest = 3;
    if (!given) return -1;
    for (int i = 0; i < sig->count; i++) {
        const char *name = name_texts[sig->names[i]];
        const int d = distance(given, name);
        if (d >= nearest || d >= (int)strlen(name)) continue;
        nearest = d;
        closest = name;
    }
    if (closest) {
        PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R; did you mean '%s'?", sig->function,
                     keyword, closest);
        return -1;
    }
    names = list_names(state, sig, 0, sig->count, ", ", "");
    if (names) {
        PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R; it takes %U", sig->function, keyword,
                     names);
        Py_DECREF(names);
    }
    return -1;
}

/* The place of a keyword among the signature's names, or -1. Keywords in a caller's code are the same objects as
 * the interned names, and mostly come in the signature's order: the search starts at the one expected next. */
static int find_name(const binding_state *state, const signature *sig, PyObject *keyword, int expected) {
    for (int i = expected; i < sig->count; i++)
        if (state->names[sig->names[i]] == keyword) return i;
    for (int i = 0; i < expected; i++)
        if (state->names[sig->names[i]] == keyword) return i;
    for (int i = 0; i < sig->count; i++)
        if (PyUnicode_CompareWithASCIIString(keyword, name_texts[sig->names[i]]) == 0) return i;
    return -1;
}

static int bind_keywords(const binding_state *state, const signature *sig, PyObject *const *values, PyObject *kwnames,
                         int expected, PyObject **got) {
    const Py_ssize_t count = PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *keyword = PyTuple_GET_ITEM(kwnames, i);
        const int place = find_name(state, sig, keyword, expected);
        if (place < 0) return unexpected(state, sig, keyword);
        if (got[sig->names[place]]) {
            PyErr_Format(PyExc_TypeError, "%s() got %R twice, by position and by name", sig->function, keyword);
            return -1;
        }
        got[sig->names[place]] = values[i];
        expected = place + 1;
    }
    return 0;
}

int bind_args(const binding_state *state, const signature *sig, PyObject *const *args, Py_ssize_t positionals,
              PyObject *kwnames, PyObject **got) {
    if (positionals > sig->positional) return too_many_positionals(state, sig, positionals);
    for (Py_ssize_t i = 0; i < positionals; i++) got[sig->names[i]] = args[i];
    if (kwnames && bind_keywords(state, sig, args + positionals, kwnames, (int)positionals, got) < 0) return -1;
    for (int i = (int)positionals; i < sig->required; i++) {
        if (got[sig->names[i]]) continue;
        PyErr_Format(PyExc_TypeError, "%s() needs '%s'", sig->function, name_texts[sig->names[i]]);
        return -1;
    }
    return 0;
}

/* ---- converters ---------------------------------------------------------------------------------------- */

int double_arg(PyObject *got, name_id name, double *value) {
    if (!got) return 0;
    if (PyFloat_CheckExact(got)) {
        *value = PyFloat_AS_DOUBLE(got);
        return 0;
    }
    if (PyArray_Check(got)) goto kind; /* PyFloat_AsDouble accepts an array of one element, with a warning */
    *value = PyFloat_AsDouble(got);
    if (*value != -1.0 || !PyErr_Occurred()) return 0;
    if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Format(PyExc_ValueError, "%s must be a number that fits a float, got %R", name_texts[name], got);
        return -1;
    }
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) return -1;
kind:
    PyErr_Format(PyExc_TypeError, "%s must be a number, got %R of type '%s'", name_texts[name], got,
                 Py_TYPE(got)->tp_name);
    return -1;
}

int bool_arg(PyObject *got, name_id name, int *value) {
    if (!got || got == Py_True || got == Py_False) {
        if (got) *value = got == Py_True;
        return 0;
    }
    if (PyArray_IsScalar(got, Bool)) {
        *value = PyObject_IsTrue(got);
        return *value < 0 ? -1 : 0;
    }
    PyErr_Format(PyExc_TypeError, "%s must be True or False, got %R", name_texts[name], got);
    return -1;
}

int int_arg(PyObject *got, name_id name, long low, long high, int *value) {
    PyObject *index;
    long number;
    int overflow;
    if (!got) return 0;
    index = PyBool_Check(got) ? NULL : PyNumber_Index(got);
    if (!index) {
        if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_TypeError)) return -1;
        PyErr_Format(PyExc_TypeError, "%s must be an integer, got %R", name_texts[name], got);
        return -1;
    }
    number = PyLong_AsLongAndOverflow(index, &overflow);
    Py_DECREF(index);
    if (number == -1 && !overflow && PyErr_Occurred()) return -1;
    if (overflow || number < low || number > high) {
        PyErr_Format(PyExc_ValueError, "%s must be between %ld and %ld, got %R", name_texts[name], low, high, got);
        return -1;
    }
    *value = (int)number;
    return 0;
}

/* "'a', 'b' or 'c'": a new string. */
static PyObject *list_choices(PyObject *const *choices, int count) {
    PyObject *text = PyUnicode_FromFormat("%R", choices[0]);
    for (int i = 1; text && i < count; i++) {
        PyObject *longer = PyUnicode_FromFormat("%U%s%R", text, i + 1 < count ? ", " : " or ", choices[i]);
        Py_DECREF(text);
        text = longer;
    }
    return text;
}

int choice_arg(PyObject *got, name_id name, PyObject *const *choices, int count, int *value) {
    PyObject *list;
    if (!got) return 0;
    for (int i = 0; i < count; i++) {
        if (got != choices[i]) continue;
        *value = i;
        return 0;
    }
    for (int i = 0; i < count && PyUnicode_Check(got); i++) {
        if (PyUnicode_Compare(got, choices[i]) != 0) continue;
        *value = i;
        return 0;
    }
    if (PyErr_Occurred()) return -1;
    list = list_choices(choices, count);
    if (list) {
        PyErr_Format(PyUnicode_Check(got) ? PyExc_ValueError : PyExc_TypeError, "%s must be %U, got %R",
                     name_texts[name], list, got);
        Py_DECREF(list);
    }
    return -1;
}

static int isa_arg(const binding_state *state, PyObject *got, const abn_kernels **kernels) {
    PyObject *names[ABN_MAX_KERNELS] = {NULL};
    int count = 0, chosen = 0, outcome = -1;
    for (; state->usable[count]; count++) {
        names[count] = PyUnicode_InternFromString(abn_kernels_name(state->usable[count]));
        if (!names[count]) goto done;
    }
    if (choice_arg(got, NAME_ISA, names, count, &chosen) < 0) goto done;
    *kernels = state->usable[chosen];
    outcome = 0;
done:
    for (int i = 0; i < count; i++) Py_DECREF(names[i]);
    return outcome;
}

int machine_args(const binding_state *state, PyObject *const *got, abn_machine *machine) {
    PyObject *threads = got[NAME_THREADS], *isa = got[NAME_ISA];
    machine->kernels = state->kernels;
    machine->threads = 0;
    if (threads && threads != Py_None && int_arg(threads, NAME_THREADS, 1, ABN_MAX_THREADS, &machine->threads) < 0)
        return -1;
    return isa && isa != Py_None ? isa_arg(state, isa, &machine->kernels) : 0;
}
