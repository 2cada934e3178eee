/* Describes a context: roles of its arrays, owner, text for messages, and reports to the ledger. */
#include "context.h"

#include "../guard.h"
#include "saved_array.h"

static const char *const kept_names[] = {
    [ABN_KEEP_Z] = "z", [ABN_KEEP_X] = "x", [ABN_KEEP_XHAT] = "xhat", [ABN_KEEP_Y] = "y"};
static const char *const side_names[SIDE_ARRAYS] = {[SIDE_MASK] = "mask",
                                                    [SIDE_BRANCH_MASK] = "branch_mask",
                                                    [SIDE_GUARDED] = "guarded_xhat",
                                                    [SIDE_ESCAPE_INDEX] = "escape_index",
                                                    [SIDE_ESCAPE_XHAT] = "escape_xhat"};

const char *context_role(const context *ctx, int which) {
    return which == KEPT_RESIDUAL ? "residual" : kept_names[ctx->core.keep];
}

void context_parts(const context *ctx, kept_part *parts) {
    for (int i = 0; i < KEPT_ARRAYS; i++)
        *parts++ = (kept_part){context_role(ctx, i), ctx->kept[i].batch.array, ctx->kept[i].nbytes};
    for (int i = 0; i < SIDE_ARRAYS; i++)
        *parts++ = (kept_part){side_names[i], ctx->sides[i].array, ctx->sides[i].nbytes};
}

PyObject *context_text(const context *ctx) {
    const kept_array *kept = &ctx->kept[KEPT_MAIN];
    PyObject *shape = PyArray_IntTupleFromIntp(kept->batch.ndim, kept->batch.shape), *text = NULL;
    if (!shape) return NULL;
    text = PyUnicode_FromFormat("%S %S, strategy=%R, activation=%R, %s%s%s", (PyObject *)ctx->dtype, shape,
                                ctx->state->strategies[ctx->strategy], ctx->state->activations[ctx->core.activation],
                                ctx->freed_by ? "freed by " : "keeps ",
                                ctx->freed_by ? ctx->freed_by
                                : ctx->holds  ? context_role(ctx, KEPT_MAIN)
                                              : "no array of the size of x",
                                ctx->kept[KEPT_RESIDUAL].batch.array ? " and residual" : "");
    Py_DECREF(shape);
    return text;
}

PyObject *context_owner(const context *ctx) {
    PyObject *owner = ctx->owner, *name;
    if (!owner) return PyUnicode_FromFormat("functional.%s", ctx->function);
    Py_INCREF(owner); /* an owner that is a function may run code that frees the context */
    name = owner_name(owner);
    Py_DECREF(owner);
    return name;
}

/* ---- the active ledger, if any ---------------------------------------------------------------------------- */

/* Steals the result of a method call on the ledger. An exception of that call is reported, not raised. */
static void report(PyObject *result) {
    if (!result) PyErr_WriteUnraisable(NULL);
    Py_XDECREF(result);
}

void context_record(context *ctx) {
    PyObject *recorder = ctx->state->recorder, *owner;
    kept_part parts[KEPT_PARTS];
    if (!recorder || (ctx->owner && PyUnicode_Check(ctx->owner) && PyUnicode_GET_LENGTH(ctx->owner) == 0)) return;
    ctx->is_recorded = 1;
    context_parts(ctx, parts);
    owner = context_owner(ctx);
    if (!owner) PyErr_WriteUnraisable(NULL);
    for (int i = 0; owner && i < KEPT_PARTS; i++)
        if (parts[i].array)
            report(PyObject_CallMethod(recorder, "saved", "nOsOO", (Py_ssize_t)ctx, owner, parts[i].name,
                                       (PyObject *)parts[i].array,
                                       ctx->state->activations[abn_inverted_activation(&ctx->core)]));
    Py_XDECREF(owner);
}

/* Destructors call it too: a pending exception is preserved. */
void context_record_freed(context *ctx) {
    PyObject *recorder = ctx->state->recorder;
    if (!recorder || !ctx->is_recorded) return;
    ctx->is_recorded = 0;
#if PY_VERSION_HEX >= 0x030C0000
    PyObject *pending = PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
#endif
    report(PyObject_CallMethod(recorder, "freed", "n", (Py_ssize_t)ctx));
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(pending);
#else
    PyErr_Restore(type, value, traceback);
#endif
}
