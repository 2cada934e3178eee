/* inplace_abn._core.Context: what a forward keeps for its backward, and the lock on it. */
#ifndef ABN_PYTHON_CONTEXT_H
#define ABN_PYTHON_CONTEXT_H

#include "batch.h"

/* Why is a kept array read-only? Because this context locked it, alone or together with others that keep the same
 * array and unlock it with the last of them; or it was read-only before, and stays so. */
typedef enum { LOCK_NONE, LOCK_SOLE, LOCK_SHARED } lock_kind;

/* One of the caller's arrays. batch.array is owned, and NULL where nothing is kept, or no longer; the rest stays as it
 * was found. */
typedef struct {
    batch batch;
    npy_intp nbytes;
    lock_kind lock;
} kept_array;

/* KEPT_MAIN: x, xhat or z. */
enum { KEPT_MAIN, KEPT_RESIDUAL, KEPT_ARRAYS };

/* An array of the context's own: `array` is what users see, read-only and without memory of its own, so that it
 * cannot be resized or unlocked; `memory`, a capsule that only the context and the array hold, is what backward reads. */
typedef struct {
    PyArrayObject *array;
    PyObject *memory;
    npy_intp nbytes;
} side_array;

enum { SIDE_MASK, SIDE_BITS, SIDE_GUARDED, SIDE_ESCAPE_INDEX, SIDE_ESCAPE_XHAT, SIDE_ARRAYS };

typedef struct context {
    PyObject_HEAD PyObject *weak_references;
    PyObject *module; /* keeps `state` alive */
    binding_state *state;
    struct context *next, *previous; /* in state->live */

    const char *freed_by; /* NULL while it keeps something */
    int busy;             /* a call is at work on it with the interpreter lock released */

    int strategy; /* in strategy_table */
    int training, has_weight, has_bias;
    npy_intp slopes; /* elements of slope= */
    double count;    /* elements per channel behind the statistics: more than the batch's after normalize */
    PyArray_Descr *dtype;
    kept_array kept[KEPT_ARRAYS];
    side_array sides[SIDE_ARRAYS]; /* NULL where there is none; core points into them */

    void *constants; /* one block behind core.norm, core.channel_param and core.guard.slot */
    abn_context core;
} context;

extern PyType_Spec context_spec;

/* A context that keeps nothing yet. Making it may run the garbage collector, and that runs Python code. */
context *context_new(PyObject *module);

/* Room for the constants of x. A residual without an array is none. */
int context_open(context *ctx, const batch *x, const batch *residual, int strategy);

/* Keeps a copy of the mask, as bits. */
int context_open_mask(context *ctx, const mask *m);

/* Elements of a channel that take part: those of valid positions. */
npy_intp context_per_channel(const context *ctx);

/* Makes the arrays for what is kept beside z, now that the constants are there. Before the first write. */
int context_open_sides(context *ctx);

/* Takes hold of x (or z, the same array) and of the residual, if that is not NULL, locks them and marks the context
 * busy, before the first write. */
void context_keep(context *ctx, PyArrayObject *array, PyArrayObject *residual);

/* Takes over the escapes of abn_forward. */
int context_keep_escapes(context *ctx);

/* "float32 (2, 3), strategy='inplace', activation='elu', keeps z and residual": a new string. */
PyObject *context_text(const context *ctx);

/* What one of KEPT_ARRAYS is: "x", "xhat", "z" or "residual". */
const char *context_role(const context *ctx, int which);

/* Is this array locked because a live context keeps it? */
int context_keeps(const binding_state *state, const PyArrayObject *array);

/* Refuses to write memory that a live context keeps, through whatever array: -1 with a ValueError that names both. */
int refuse_kept(const binding_state *state, const footprint *written, const char *name);

/* The context in an argument, if it can be used now; marks it busy. NULL with TypeError or RuntimeError. */
context *context_claim(const binding_state *state, PyObject *got);
void context_unclaim(context *ctx);

/* A batch of ctx's shape, dtype and layout. If it is to be written, it may not be what ctx keeps. */
int context_batch(context *ctx, PyObject *got, name_id name, int writable, batch *b);

/* Unlocks and lets go of all it keeps. `by` names the call for later errors. */
void context_free(context *ctx, const char *by);

#endif
