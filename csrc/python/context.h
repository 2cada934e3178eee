/* inplace_abn._core.Context: what a forward keeps for its backward. */
#ifndef ABN_PYTHON_CONTEXT_H
#define ABN_PYTHON_CONTEXT_H

#include "batch.h"
#include "registry.h"

/* An array of the caller that the context keeps. batch.array is owned, or NULL if none is kept; the other members of
 * `batch` describe the array at the time of the forward. */
typedef struct {
    batch batch;
    npy_intp nbytes;
    saved_entry entry;
} kept_array;

/* KEPT_MAIN: x, xhat, y or z. */
enum { KEPT_MAIN, KEPT_RESIDUAL, KEPT_ARRAYS };

/* An array that the context allocates. Users see `array`, which is read-only and does not own its memory, so that it
 * cannot be resized or made writeable. backward reads `memory`, a capsule that only the context and the array refer
 * to. */
typedef struct {
    PyArrayObject *array;
    PyObject *memory;
    npy_intp nbytes;
} side_array;

enum { SIDE_MASK, SIDE_BRANCH_MASK, SIDE_GUARDED, SIDE_ESCAPE_INDEX, SIDE_ESCAPE_XHAT, SIDE_ARRAYS };

typedef struct context {
    PyObject_HEAD PyObject *weak_references;
    PyObject *module; /* keeps `state` alive */
    binding_state *state;
    const char *function; /* "forward" or "normalize" */
    PyObject *owner;      /* a str, a function that returns one, or NULL: the function's name; "": no ledger */
    int is_recorded;      /* True if a ledger has recorded what it keeps */

    const char *freed_by; /* the call that freed it; NULL while it is live */
    int busy;             /* True while a call uses it */

    int strategy; /* index in strategy_table */
    int training, has_weight, has_bias, has_residual;
    int holds;       /* 0: the arrays of the batch's size are neither kept nor locked; backward gets them again */
    npy_intp slopes; /* elements of slope= */
    double count;    /* elements per channel behind the statistics: more than the batch's after normalize */
    PyArray_Descr *dtype;
    kept_array kept[KEPT_ARRAYS];
    side_array sides[SIDE_ARRAYS]; /* array is NULL where there is none; core points to their memory */

    void *constants; /* one block that holds core.norm, core.channel_param and core.guard.slot */
    abn_context core;
} context;

extern PyType_Spec context_spec;

/* A context that keeps nothing yet. The allocation may run the garbage collector, which may run Python code. */
context *context_new(PyObject *module, const char *function, PyObject *owner);

/* Stores the descriptions of x and residual, and allocates the constants of the channels. residual->array may be
 * NULL. */
int context_open(context *ctx, const batch *x, const batch *residual, int strategy);

/* Keeps a copy of the mask, as bits. */
int context_open_mask(context *ctx, const mask *m);

/* The number of valid positions: elements per channel that take part. */
npy_intp context_per_channel(const context *ctx);

/* Allocates the side arrays that are kept with z. Needs the constants; call it before the first write. */
int context_open_sides(context *ctx);

/* Allocates one of SIDE_ARRAYS, zeroed. Steals the reference to dtype. */
int context_side_open(context *ctx, int which, PyArray_Descr *dtype, int ndim, const npy_intp *dims);

/* Memory for ctx->core.guard.slot, and the shape of guarded_xhat for core.guard.count channels. */
ptrdiff_t *context_guard_slots(const context *ctx);
void context_guarded_shape(const context *ctx, npy_intp *dims);

/* Registers x (or what is written over it) and the residual, if that is not NULL, unless ctx->holds is 0; marks the
 * context busy. Call it before the first write. 0, or -1 with MemoryError. */
int context_keep(context *ctx, PyArrayObject *array, PyArrayObject *residual);

/* Moves the escapes of abn_forward into arrays of the context. */
int context_keep_escapes(context *ctx);

/* Everything that a context keeps, arrays of full size first; array is NULL if nothing of that name is kept. */
typedef struct {
    const char *name;
    PyArrayObject *array;
    npy_intp nbytes;
} kept_part;

enum { KEPT_PARTS = KEPT_ARRAYS + SIDE_ARRAYS };

void context_parts(const context *ctx, kept_part *parts);

/* "float32 (2, 3), strategy='inplace', activation='elu', keeps z and residual": a new string. */
PyObject *context_text(const context *ctx);

/* The role of one of KEPT_ARRAYS: "x", "xhat", "y", "z" or "residual". */
const char *context_role(const context *ctx, int which);

/* The name of the context's owner: a new string. */
PyObject *context_owner(const context *ctx);

/* Report to the active ledger, if any: what the context keeps, and that it is freed. They run Python code: call them
 * after the last write. */
void context_record(context *ctx);
void context_record_freed(context *ctx);

/* The context in an argument, marked as busy; NULL with TypeError, or with RuntimeError if it cannot be used now. */
context *context_acquire(const binding_state *state, PyObject *got);
void context_leave(context *ctx);

/* What a backward or recompute reads besides ctx: the arrays that ctx holds, or those in kept= and residual=. Sets the
 * batches in `core`, a copy of ctx->core, and in given[KEPT_ARRAYS]; array is NULL where none is given. */
int context_arrays(context *ctx, PyObject *const *got, int needs_residual, abn_context *core, batch *given);

/* A batch of ctx's shape, dtype and layout. `writer` is the function that writes it, or NULL if it is only read. */
int context_batch(context *ctx, PyObject *got, name_id name, const char *writer, batch *b);

/* Removes its entries from the registry, which unlocks the arrays. Runs no Python code. */
void context_unlock(context *ctx);

/* Unlocks and drops everything. `by` names the call for later errors. */
void context_free(context *ctx, const char *by);

#endif
