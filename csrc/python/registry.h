/* The registry of saved memory: which bytes must not change until a backward has run, who needs them, and in which
 * role.
 *
 * A Context or a SavedArray adds one entry for each array that it keeps. Everything that writes in place asks
 * registry_find or registry_refuse before its first write. An array is read-only while it has entries; removing the
 * last of them restores its writeable flag.
 *
 * All functions need the interpreter lock. Only registry_describe, and registry_refuse when it refuses, run Python
 * code.
 *
 * The index has the entries sorted by their first byte. A search for a range starts at the last entry that begins
 * before the end of the range, and goes backwards until an entry's reach is not past the start of the range. It takes
 * logarithmic time, plus the entries visited. */
#ifndef ABN_PYTHON_REGISTRY_H
#define ABN_PYTHON_REGISTRY_H

#include "overlap.h"

/* The writeable flag of one array, shared by all its entries. */
typedef struct {
    npy_intp entries;
    int restore;      /* True if the array becomes writeable when its last entry is removed */
    const void *data; /* the array's memory; if the array has other memory by then, it stays read-only */
} array_lock;

typedef struct saved_entry {
    const footprint *bytes;
    uintptr_t reach;      /* the largest bytes->high of this entry and of all before it in the index */
    PyArrayObject *array; /* borrowed from the holder; NULL for memory of another library, which is not locked */
    array_lock *lock;     /* NULL without array */
    int is_registered;
    const char *role;
    PyObject *holder;                     /* the object that this entry is a part of, alive while it is registered */
    PyObject *(*owner)(PyObject *holder); /* who needs the bytes, for messages: a new string */
} saved_entry;

/* 0, or -1 with MemoryError and nothing changed. */
int registry_add(binding_state *state, saved_entry *entry);

/* Does nothing for an entry that is not in the registry. */
void registry_remove(binding_state *state, saved_entry *entry);

/* An entry that shares a byte with `bytes`, or NULL. */
const saved_entry *registry_find(const binding_state *state, const footprint *bytes);

/* The lock of this array, whose first byte is at `low`, or NULL. */
array_lock *registry_lock(const binding_state *state, const PyArrayObject *array, uintptr_t low);

/* Owner and role of an entry: returns 0 and two new strings, or -1. May run Python code, which may remove the entry. */
int registry_describe(const saved_entry *entry, PyObject **owner, PyObject **role);

/* Returns 0, or -1 with a ValueError that names both sides if an entry shares a byte with `written`, which `writer` is
 * about to write. `name` is the name of the argument, or NULL. */
int registry_refuse(const binding_state *state, const footprint *written, const char *name, const char *writer);

/* Frees the index. */
void registry_close(binding_state *state);

#endif
