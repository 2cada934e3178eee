/* inplace_abn._core.Context: what a forward keeps for its backward, and the lock on it. */
#ifndef ABN_PYTHON_CONTEXT_H
#define ABN_PYTHON_CONTEXT_H

#include "batch.h"

/* Why is the kept array read-only? Because this context locked it, alone or together with other contexts that
 * keep the same array and unlock it with the last of them; or it was read-only before, and stays so. */
typedef enum { LOCK_NONE, LOCK_SOLE, LOCK_SHARED } lock_kind;

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
    batch kept;   /* kept.array is owned, and NULL when freed; the rest stays */
    PyArray_Descr *dtype;
    PyArrayObject *guarded, *escape_index, *escape_xhat; /* owned, or NULL; core points into them */

    void *constants; /* one block behind core.norm, core.guard.slot and core.escapes.first */
    abn_context core;
} context;

extern PyType_Spec context_spec;

/* A context for x with room for its constants; it keeps nothing before context_keep. */
context *context_new(PyObject *module, const batch *x, int strategy);

/* Asks abn_guard_channels and makes the array for what it wants kept. Before the first write. */
int context_guard(context *ctx);

/* Takes hold of x (or z, the same array) and of the escapes of abn_forward, and locks. */
int context_keep(context *ctx, PyArrayObject *array);

/* Is this array locked because a live context keeps it? */
int context_keeps(const binding_state *state, const PyArrayObject *array);

/* The context in an argument, if it can be used now; marks it busy. NULL with TypeError or RuntimeError. */
context *context_claim(const binding_state *state, PyObject *got);
void context_unclaim(context *ctx);

/* dz or out: a batch of ctx's shape, dtype and layout. If it is to be written, it may not be what ctx keeps. */
int context_batch(context *ctx, PyObject *got, name_id name, int writable, batch *b);

/* Unlocks and lets go of all it keeps. `by` names the call for later errors. */
void context_free(context *ctx, const char *by);

#endif
