/* inplace_abn._core.Context: what a forward keeps for its backward, and the lock on it. */
#ifndef ABN_PYTHON_CONTEXT_H
#define ABN_PYTHON_CONTEXT_H

#include "batch.h"

/* Why is the kept array read-only? Because this context locked it, alone or together with other contexts that
 * keep the same array and unlock it with the last of them; or it was read-only before, and stays so. */
typedef enum { LOCK_NONE, LOCK_SOLE, LOCK_SHARED } lock_kind;

/* A small array kept beside x or z: `array` is what users see, read-only and without memory of its own, so that it
 * cannot be resized or unlocked; `memory`, a capsule that only the context and the array hold, is what backward reads. */
typedef struct {
    PyArrayObject *array;
    PyObject *memory;
    npy_intp nbytes;
} side_array;

typedef struct context {
    PyObject_HEAD PyObject *weak_references;
    PyObject *module; /* keeps `state` alive */
    binding_state *state;
    struct context *next, *previous; /* in state->live */

    const char *freed_by; /* NULL while it keeps something */
    int busy;             /* a call is at work on it with the interpreter lock released */
    lock_kind lock;

    int strategy; /* in strategy_table */
    int training, has_weight, has_bias;
    double count; /* elements per channel behind the statistics: more than the batch's after normalize */
    batch kept;   /* kept.array is owned, and NULL when freed; the rest stays as it was found */
    npy_intp kept_nbytes;
    PyArray_Descr *dtype;
    side_array guarded, escape_index, escape_xhat; /* all NULL where there are none; core points into them */

    void *constants; /* one block behind core.norm, core.guard.slot and core.escapes.first */
    abn_context core;
} context;

extern PyType_Spec context_spec;

/* A context that keeps nothing yet. Making it may run the garbage collector, and that runs Python code. */
context *context_new(PyObject *module);

/* Room for the constants of x. */
int context_open(context *ctx, const batch *x, int strategy);

/* Asks abn_guard_channels and makes the array for what it wants kept. Before the first write. */
int context_guard(context *ctx);

/* Takes hold of x (or z, the same array), locks it and marks the context busy, before the first write. */
void context_keep(context *ctx, PyArrayObject *array);

/* Takes over the escapes of abn_forward. */
int context_keep_escapes(context *ctx);

/* "float32 (2, 3), strategy='inplace', activation='elu', keeps z": a new string. */
PyObject *context_text(const context *ctx);

/* What a context keeps: "x", "xhat" or "z". */
const char *context_role(const context *ctx);

/* Is this array locked because a live context keeps it? */
int context_keeps(const binding_state *state, const PyArrayObject *array);

/* Refuses to write memory that a live context keeps, through whatever array: -1 with a ValueError that names both. */
int refuse_kept(const binding_state *state, const footprint *written, const char *name);

/* The context in an argument, if it can be used now; marks it busy. NULL with TypeError or RuntimeError. */
context *context_claim(const binding_state *state, PyObject *got);
void context_unclaim(context *ctx);

/* dz or out: a batch of ctx's shape, dtype and layout. If it is to be written, it may not be what ctx keeps. */
int context_batch(context *ctx, PyObject *got, name_id name, int writable, batch *b);

/* Unlocks and lets go of all it keeps. `by` names the call for later errors. */
void context_free(context *ctx, const char *by);

#endif
