#include "signatures.h"

#define NORM_NAMES NAME_MOMENTUM, NAME_EPS, NAME_ACTIVATION, NAME_ACTIVATION_PARAM, NAME_STRATEGY
#define NORM_TEXT "momentum=0.1, eps=1e-05, activation='leaky_relu', activation_param=0.01, strategy='inplace'"
#define MORE_NAMES NAME_CHANNEL_AXIS, NAME_RESIDUAL, NAME_SLOPE, NAME_MASK, NAME_OUT, NAME_HOLD
#define MORE_TEXT "channel_axis=1, residual=None, slope=None, mask=None, out=None, hold=True"
#define GIVEN_NAMES NAME_KEPT, NAME_RESIDUAL, NAME_RESIDUAL_ACTIVATION, NAME_RESIDUAL_ACTIVATION_PARAM
#define GIVEN_TEXT "kept=None, residual=None, residual_activation='identity', residual_activation_param=0.01"
#define TO_NAMES NAME_OVERWRITE, NAME_OUT, NAME_RESIDUAL_GRAD, NAME_RESIDUAL_OUT, NAME_KEEP
#define TO_TEXT "overwrite=False, out=None, residual_grad=None, residual_out=None, keep=False"
#define MACHINE_NAMES NAME_THREADS, NAME_ISA
#define MACHINE_TEXT "threads=None, isa=None"

/* SIGNATURE(function, required, positional, names...) */
#define SIGNATURE(function, required, positional, ...)             \
    static const unsigned char function##_names[] = {__VA_ARGS__}; \
    const signature function##_signature = {#function, required, positional, sizeof function##_names, function##_names}

SIGNATURE(forward, 1, 1, NAME_X, NAME_WEIGHT, NAME_BIAS, NAME_RUNNING_MEAN, NAME_RUNNING_VAR, NAME_TRAINING, NORM_NAMES,
          MORE_NAMES, MACHINE_NAMES, NAME_OWNER);
const char forward_doc[] =
    "forward($module, /, x, *, weight=None, bias=None, running_mean=None, running_var=None, training=True, " NORM_TEXT
    ", " MORE_TEXT ", " MACHINE_TEXT ", owner=None)\n--\n\n"
    "Returns (z, ctx), z = activation(batch norm of x + residual). In-place strategies write z over x.\n\n"
    "inplace_abn.functional.forward documents it; isa= forces an instruction set for\n"
    "this call; owner=, a str or a function that returns one, names the context in messages and in the ledger.";

SIGNATURE(normalize, 4, 1, NAME_X, NAME_MEAN, NAME_VAR, NAME_COUNT, NAME_WEIGHT, NAME_BIAS, NAME_RUNNING_MEAN,
          NAME_RUNNING_VAR, NORM_NAMES, MORE_NAMES, MACHINE_NAMES, NAME_OWNER);
const char normalize_doc[] =
    "normalize($module, /, x, *, mean, var, count, weight=None, bias=None, running_mean=None, "
    "running_var=None, " NORM_TEXT ", " MORE_TEXT ", " MACHINE_TEXT ", owner=None)\n--\n\n"
    "Returns (z, ctx): forward in training mode with given statistics, over count elements per channel.";

SIGNATURE(backward, 2, 2, NAME_CTX, NAME_DZ, TO_NAMES, GIVEN_NAMES, MACHINE_NAMES);
const char backward_doc[] =
    "backward($module, /, ctx, dz, *, " TO_TEXT ", " GIVEN_TEXT ", " MACHINE_TEXT ")\n--\n\n"
    "Returns (dx, dweight, dbias, dslope, dresidual) from dz, the gradient of z; frees ctx\n"
    "unless keep is True.\n\noverwrite=True writes dx over dz; dresidual is added to residual_grad, if that is given.";

SIGNATURE(backward_reduce, 2, 2, NAME_CTX, NAME_DZ, GIVEN_NAMES, MACHINE_NAMES);
const char backward_reduce_doc[] =
    "backward_reduce($module, /, ctx, dz, *, " GIVEN_TEXT ", " MACHINE_TEXT ")\n--\n\n"
    "The first half of backward: returns (sum_dy, sum_dy_xhat, dslope), float64 per channel. ctx stays usable.";

SIGNATURE(backward_apply, 5, 2, NAME_CTX, NAME_DZ, NAME_SUM_DY, NAME_SUM_DY_XHAT, NAME_COUNT, TO_NAMES, GIVEN_NAMES,
          MACHINE_NAMES);
const char backward_apply_doc[] = "backward_apply($module, /, ctx, dz, *, sum_dy, sum_dy_xhat, count, " TO_TEXT
                                  ", " GIVEN_TEXT ", " MACHINE_TEXT ")\n--\n\n"
                                  "The second half of backward: returns dx, from sums over count elements per channel; "
                                  "frees ctx unless keep is True.\n\n"
                                  "The gradient of the residual is added to residual_grad.";

SIGNATURE(statistics, 1, 1, NAME_X, NAME_CHANNEL_AXIS, NAME_MASK, MACHINE_NAMES);
const char statistics_doc[] = "statistics($module, /, x, *, channel_axis=1, mask=None, " MACHINE_TEXT ")\n--\n\n"
                              "Returns (mean, var, count): float64 mean and biased variance of each channel, and the "
                              "number of elements per channel; with mask, of valid positions only.";

SIGNATURE(stream, 1, 1, NAME_A, NAME_B, NAME_C, NAME_D, NAME_PREFETCH, MACHINE_NAMES);
const char stream_doc[] = "stream($module, /, a, *, b=None, c=1.0, d=0.0, prefetch=0, " MACHINE_TEXT ")\n--\n\n"
                          "a = a*c + d, or with b: b = b*c + a*d, in place. The baseline of the benchmarks.\n\n"
                          "prefetch: how many elements ahead of the loop cache lines are prefetched.";

SIGNATURE(set_num_threads, 1, 1, NAME_N);
const char set_num_threads_doc[] = "set_num_threads($module, /, n)\n--\n\n"
                                   "Sets the number of threads that threads=None means, in this module only.";

const char get_num_threads_doc[] = "get_num_threads($module, /)\n--\n\n"
                                   "The number of threads that threads=None means for large batches.";

const char info_doc[] = "info($module, /)\n--\n\n"
                        "Returns a dict: how this module was built and which settings are active.";

SIGNATURE(recompute, 0, 0, NAME_OUT, NAME_KEPT, NAME_RESIDUAL, MACHINE_NAMES);
const char recompute_doc[] = "recompute($self, /, *, out=None, kept=None, residual=None, " MACHINE_TEXT ")\n--\n\n"
                             "Recomputes z into out or a new array; for strategies that keep x, xhat or y.";

const char release_doc[] =
    "release($self, /)\n--\n\n"
    "Unlocks and drops everything kept, without a backward. Does nothing if it is already freed.";

const char state_doc[] =
    "state($self, /)\n--\n\n"
    "Returns a dict of arrays and plain values, for context_from_state; only after forward(..., hold=False).\n\n"
    "Arrays of the size of x are not among them. `saved` has those that are side arrays; they are not copied.";

SIGNATURE(context_from_state, 1, 1, NAME_STATE);
const char context_from_state_doc[] = "context_from_state($module, /, state)\n--\n\n"
                                      "Returns a Context from what its state() returned. The arrays are copied.";

SIGNATURE(save, 3, 1, NAME_ARRAY, NAME_OWNER, NAME_ROLE);
const char save_doc[] =
    "save($module, /, array, *, owner, role)\n--\n\n"
    "Returns a SavedArray: array, or (address, nbytes) of other memory, must not change until it is released.\n\n"
    "An array is read-only until its last SavedArray or Context is released. owner: a str, or a function that returns\n"
    "one; role: a str, such as 'input'.";

SIGNATURE(saved_by, 1, 1, NAME_ARRAY);
const char saved_by_doc[] = "saved_by($module, /, array)\n--\n\n"
                            "Returns (owner, role) of saved memory that array shares, or None.";

SIGNATURE(refuse_if_saved, 2, 1, NAME_ARRAY, NAME_WRITER);
const char refuse_if_saved_doc[] = "refuse_if_saved($module, /, array, *, writer)\n--\n\n"
                                   "Raises ValueError if array shares saved memory; call it before writing in place.";

SIGNATURE(restore_writeable, 1, 1, NAME_ARRAY);
const char restore_writeable_doc[] =
    "restore_writeable($module, /, array)\n--\n\n"
    "Returns True if this array object is saved; it then becomes writeable when it is saved no longer.";

SIGNATURE(set_recorder, 1, 1, NAME_RECORDER);
const char set_recorder_doc[] = "set_recorder($module, /, recorder)\n--\n\n"
                                "Sets the memory.Ledger that records what contexts keep and free, or None.";

const char saved_release_doc[] = "release($self, /)\n--\n\n"
                                 "Unlocks and drops the array. Does nothing if it is already released.";

const char saved_count_doc[] = "saved_count($module, /)\n--\n\n"
                               "The number of registry entries: an array that two contexts keep counts twice.";
