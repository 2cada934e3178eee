#include "registry.h"

#include <string.h>

/* ---- the index ------------------------------------------------------------------------------------------- */

/* The number of entries whose first byte is before `address`. */
static npy_intp entries_before(const registry *index, uintptr_t address) {
    npy_intp low = 0, high = index->count;
    while (low < high) {
        const npy_intp middle = low + (high - low) / 2;
        if (index->places[middle].low < address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Computes reach from index `first` on, until it no longer changes. */
static void update_reach(registry *index, npy_intp first) {
    uintptr_t reach = first > 0 ? index->places[first - 1].entry->reach : 0;
    for (npy_intp i = first; i < index->count; i++) {
        saved_entry *entry = index->places[i].entry;
        if (entry->bytes->high > reach) reach = entry->bytes->high;
        if (entry->reach == reach) return;
        entry->reach = reach;
    }
}

static int make_room(registry *index) {
    const npy_intp room = index->room ? 2 * index->room : 64;
    registry_place *places;
    if (index->count < index->room) return 0;
    places = PyMem_Realloc(index->places, (size_t)room * sizeof *places);
    if (!places) {
        PyErr_NoMemory();
        return -1;
    }
    index->places = places;
    index->room = room;
    return 0;
}

static void insert(registry *index, saved_entry *entry) {
    const npy_intp position = entries_before(index, entry->bytes->low);
    registry_place *place = &index->places[position];
    memmove(place + 1, place, (size_t)(index->count - position) * sizeof *place);
    *place = (registry_place){.low = entry->bytes->low, .entry = entry};
    index->count++;
    entry->reach = 0;
    update_reach(index, position);
}

static void take_out(registry *index, const saved_entry *entry) {
    npy_intp position = entries_before(index, entry->bytes->low);
    while (index->places[position].entry != entry) position++; /* several entries may begin at the same byte */
    index->count--;
    memmove(&index->places[position], &index->places[position + 1],
            (size_t)(index->count - position) * sizeof *index->places);
    update_reach(index, position);
}

const saved_entry *registry_find(const binding_state *state, const footprint *bytes) {
    const registry *index = &state->saved;
    if (bytes->low == bytes->high) return NULL;
    for (npy_intp i = entries_before(index, bytes->high) - 1; i >= 0; i--) {
        const saved_entry *entry = index->places[i].entry;
        if (entry->reach <= bytes->low) return NULL;
        if (footprints_meet(bytes, entry->bytes)) return entry;
    }
    return NULL;
}

/* ---- locks ------------------------------------------------------------------------------------------------- */

array_lock *registry_lock(const binding_state *state, const PyArrayObject *array, uintptr_t low) {
    const registry *index = &state->saved;
    for (npy_intp i = entries_before(index, low); i < index->count && index->places[i].low == low; i++)
        if (index->places[i].entry->array == array) return index->places[i].entry->lock;
    return NULL;
}

static int lock(const binding_state *state, saved_entry *entry) {
    array_lock *shared = registry_lock(state, entry->array, entry->bytes->low);
    if (!shared) {
        if (!(shared = PyMem_Malloc(sizeof *shared))) {
            PyErr_NoMemory();
            return -1;
        }
        *shared = (array_lock){.restore = PyArray_ISWRITEABLE(entry->array), .data = PyArray_DATA(entry->array)};
    }
    shared->entries++;
    entry->lock = shared;
    PyArray_CLEARFLAGS(entry->array, NPY_ARRAY_WRITEABLE);
    return 0;
}

static void unlock(saved_entry *entry) {
    array_lock *shared = entry->lock;
    entry->lock = NULL;
    if (--shared->entries > 0) return;
    if (shared->restore && PyArray_DATA(entry->array) == shared->data)
        PyArray_ENABLEFLAGS(entry->array, NPY_ARRAY_WRITEABLE);
    PyMem_Free(shared);
}

/* ---- entries ----------------------------------------------------------------------------------------------- */

/* An empty array is added too, because it is locked; at address 0 it overlaps nothing. */
int registry_add(binding_state *state, saved_entry *entry) {
    if (make_room(&state->saved) < 0) return -1;
    if (entry->array && lock(state, entry) < 0) return -1;
    insert(&state->saved, entry);
    entry->is_registered = 1;
    return 0;
}

void registry_remove(binding_state *state, saved_entry *entry) {
    if (!entry->is_registered) return;
    entry->is_registered = 0;
    take_out(&state->saved, entry);
    if (entry->array) unlock(entry);
}

void registry_close(binding_state *state) {
    PyMem_Free(state->saved.places);
    state->saved = (registry){0};
}

int registry_describe(const saved_entry *entry, PyObject **owner, PyObject **role) {
    PyObject *holder;
    if (!(*role = PyUnicode_FromString(entry->role))) return -1;
    holder = Py_NewRef(entry->holder); /* naming the owner may run Python code, which may release it */
    *owner = entry->owner(holder);
    Py_DECREF(holder);
    if (*owner) return 0;
    Py_DECREF(*role);
    return -1;
}

int registry_refuse(const binding_state *state, const footprint *written, const char *name, const char *writer) {
    const saved_entry *entry = registry_find(state, written);
    PyObject *owner, *role;
    if (!entry) return 0;
    if (registry_describe(entry, &owner, &role) == 0) {
        PyErr_Format(PyExc_ValueError,
                     "%s%s%s%s, but %U keeps that memory as %R for its backward; run that backward or release() it "
                     "first, or pass a copy; on a tape, where a copy has no gradient, use a layer that does not "
                     "overwrite its input",
                     name ? name : "", name ? " is written in place by " : "", writer, name ? "" : " writes in place",
                     owner, role);
        Py_DECREF(owner);
        Py_DECREF(role);
    }
    return -1;
}
