/* Binds the arguments of every function, and converts those that are not arrays. */
#ifndef ABN_PYTHON_ARGS_H
#define ABN_PYTHON_ARGS_H

#include <Python.h>

#include "../abn.h"

/* All keywords of all functions. NAME_X is also the argument's index in the array that bind_args fills. */
/* clang-format off */
#define EACH_NAME(NAME) \
    NAME(X, x) NAME(WEIGHT, weight) NAME(BIAS, bias) NAME(RUNNING_MEAN, running_mean) \
    NAME(RUNNING_VAR, running_var) NAME(TRAINING, training) NAME(MOMENTUM, momentum) NAME(EPS, eps) \
    NAME(ACTIVATION, activation) NAME(ACTIVATION_PARAM, activation_param) NAME(STRATEGY, strategy) \
    NAME(CHANNEL_AXIS, channel_axis) NAME(RESIDUAL, residual) NAME(SLOPE, slope) NAME(MASK, mask) \
    NAME(THREADS, threads) NAME(ISA, isa) NAME(MEAN, mean) NAME(VAR, var) NAME(COUNT, count) NAME(CTX, ctx) \
    NAME(DZ, dz) NAME(OVERWRITE, overwrite) NAME(RESIDUAL_GRAD, residual_grad) NAME(SUM_DY, sum_dy) \
    NAME(SUM_DY_XHAT, sum_dy_xhat) NAME(OUT, out) NAME(N, n) NAME(A, a) NAME(B, b) NAME(C, c) NAME(D, d) \
    NAME(PREFETCH, prefetch) NAME(ARRAY, array) NAME(HOLD, hold) NAME(KEPT, kept) NAME(KEEP, keep) \
    NAME(RESIDUAL_OUT, residual_out) NAME(RESIDUAL_ACTIVATION, residual_activation) \
    NAME(RESIDUAL_ACTIVATION_PARAM, residual_activation_param) \
    NAME(OWNER, owner) NAME(ROLE, role) NAME(WRITER, writer) NAME(RECORDER, recorder) NAME(STATE, state)
/* clang-format on */

#define NAME_ID(upper, lower) NAME_##upper,
typedef enum { EACH_NAME(NAME_ID) NAMES } name_id;
#undef NAME_ID

extern const char *const name_texts[NAMES];

/* The first `positional` names are accepted by position; the first `required` have no default. */
typedef struct {
    const char *function;
    unsigned char required, positional, count;
    const unsigned char *names; /* name_id each */
} signature;

typedef struct {
    const char *name;
    abn_keep keep;
    abn_scheme scheme;
} strategy_info;

enum { STRATEGIES = 7 };
extern const strategy_info strategy_table[STRATEGIES];

struct binding_state;

/* Stores borrowed references to the arguments of a vectorcall in got[NAMES]. The caller passes got filled with NULL;
 * missing arguments stay NULL. Returns 0, or -1 with a TypeError that names the function and the argument. */
int bind_args(const struct binding_state *state, const signature *sig, PyObject *const *args, Py_ssize_t positionals,
              PyObject *kwnames, PyObject **got);

/* Converters: return 0, or -1 with an exception that names the argument. If `got` is NULL, *value keeps its default.
 * They may run Python code (__index__, __float__), which may change any array or context: callers convert every
 * argument before they open the first array and before they acquire the context. */
int double_arg(PyObject *got, name_id name, double *value);
int bool_arg(PyObject *got, name_id name, int *value);
int int_arg(PyObject *got, name_id name, long low, long high, int *value);
int choice_arg(PyObject *got, name_id name, PyObject *const *choices, int count, int *value);

/* Converts threads= and isa=. Without threads=, machine->threads is 0 until machine_settle chooses the number. */
int machine_args(const struct binding_state *state, PyObject *const *got, abn_machine *machine);

#define ABN_MAX_THREADS 1024

#endif
