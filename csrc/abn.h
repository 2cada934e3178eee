/* In-place activated batch normalization: the C interface, free of Python.
 *
 * A batch is N x C x S elements (batch, channels, spatial). Per channel c, over m = N*S elements:
 *
 *     xhat = (x - mean) * inv_std,   y = weight * xhat + bias,   z = activation(y)
 *
 * The caller owns all memory and has checked it: arrays are aligned, lie inside their buffers, and overlap only where a
 * comment says so. Results do not depend on the number of threads.
 *
 * A channel whose constants or sums leave the range of float is computed element by element in double (float_range.h):
 * slower, with the result of float64 batch norm, rounded. No channel's results depend on another channel.
 */
#ifndef ABN_H
#define ABN_H

#include <stddef.h>
#include <stdint.h>

/* Storage types. Half types are computed in float. Statistics and sums per channel are double. */
typedef enum { ABN_FLOAT32, ABN_FLOAT64, ABN_FLOAT16, ABN_BFLOAT16, ABN_DTYPES } abn_dtype;

/* How backward recovers y: not from z, from z, or from z and the side of the activation's minimum that y is on. */
typedef enum { ABN_NO_INVERSE, ABN_FROM_Z_ALONE, ABN_FROM_Z_AND_SIDE } abn_inverse;
/* The parameter of an activation: none; one finite number for all channels; the same, but nonzero; or one number per
 * channel. With ABN_KEEP_Z a number for all channels must be positive. */
typedef enum { ABN_NO_PARAM, ABN_ONE_PARAM, ABN_NONZERO_PARAM, ABN_CHANNEL_PARAM } abn_param;
/* Traits of an activation. ABN_CHEAP: takes few instructions; backward computes y and the slope in both passes instead
 * of storing them. ABN_KINKED: the slope jumps at y = 0. */
enum { ABN_PLAIN = 0, ABN_CHEAP = 1, ABN_KINKED = 2 };

/* The table of activations. A row: ABN_<NAME>, its name, and the fields of abn_activation_info. Its arithmetic is in
 * activations.c (one number at a time) and in kernels/curves.h (vectors). */
#define ABN_EACH_ACTIVATION(ROW)                                                         \
    ROW(IDENTITY, identity, ABN_FROM_Z_ALONE, ABN_NO_PARAM, ABN_CHEAP)                   \
    ROW(LEAKY_RELU, leaky_relu, ABN_FROM_Z_ALONE, ABN_ONE_PARAM, ABN_CHEAP | ABN_KINKED) \
    ROW(PRELU, prelu, ABN_FROM_Z_ALONE, ABN_CHANNEL_PARAM, ABN_CHEAP | ABN_KINKED)       \
    ROW(ELU, elu, ABN_FROM_Z_ALONE, ABN_ONE_PARAM, ABN_KINKED)                           \
    ROW(CELU, celu, ABN_FROM_Z_ALONE, ABN_NONZERO_PARAM, ABN_PLAIN)                      \
    ROW(SELU, selu, ABN_FROM_Z_ALONE, ABN_NO_PARAM, ABN_KINKED)                          \
    ROW(SOFTPLUS, softplus, ABN_FROM_Z_ALONE, ABN_NO_PARAM, ABN_PLAIN)                   \
    ROW(SIGMOID, sigmoid, ABN_FROM_Z_ALONE, ABN_NO_PARAM, ABN_PLAIN)                     \
    ROW(TANH, tanh, ABN_FROM_Z_ALONE, ABN_NO_PARAM, ABN_PLAIN)                           \
    ROW(SILU, silu, ABN_FROM_Z_AND_SIDE, ABN_NO_PARAM, ABN_PLAIN)                        \
    ROW(GELU, gelu, ABN_FROM_Z_AND_SIDE, ABN_NO_PARAM, ABN_PLAIN)                        \
    ROW(GELU_TANH, gelu_tanh, ABN_FROM_Z_AND_SIDE, ABN_NO_PARAM, ABN_PLAIN)              \
    ROW(MISH, mish, ABN_FROM_Z_AND_SIDE, ABN_NO_PARAM, ABN_PLAIN)                        \
    ROW(RELU, relu, ABN_NO_INVERSE, ABN_NO_PARAM, ABN_CHEAP | ABN_KINKED)                \
    ROW(RELU6, relu6, ABN_NO_INVERSE, ABN_NO_PARAM, ABN_CHEAP | ABN_KINKED)              \
    ROW(HARDSIGMOID, hardsigmoid, ABN_NO_INVERSE, ABN_NO_PARAM, ABN_CHEAP)               \
    ROW(HARDSWISH, hardswish, ABN_NO_INVERSE, ABN_NO_PARAM, ABN_CHEAP)
#define ABN_ACTIVATION_(upper, lower, inverse, param, traits) ABN_##upper,
typedef enum { ABN_EACH_ACTIVATION(ABN_ACTIVATION_) ABN_ACTIVATIONS } abn_activation;
#undef ABN_ACTIVATION_

typedef enum { ABN_OK, ABN_NO_MEMORY } abn_status;

size_t abn_dtype_size(abn_dtype dtype);

typedef struct {
    const char *name;
    abn_inverse inverse; /* ABN_NO_INVERSE: not with ABN_KEEP_Z */
    abn_param param;     /* slope of leaky_relu and prelu, alpha of elu and celu */
    unsigned traits;     /* ABN_CHEAP, ABN_KINKED */
} abn_activation_info;
#ifndef __CUDACC_RTC__ /* kernels on a GPU are compiled for one activation */
extern const abn_activation_info abn_activation_table[ABN_ACTIVATIONS];
#endif

/* Element (n, c, s) is at data + n*batch_stride + c*channel_stride + s*spatial_stride (in elements).
 * Channels-first: spatial_stride == 1. Channels-last: channel_stride == 1. Strides are positive. */
typedef struct {
    void *data;
    abn_dtype dtype;
    ptrdiff_t batch, channels, spatial;
    ptrdiff_t batch_stride, channel_stride, spatial_stride;
} abn_batch;

/* The valid positions of a batch: bit p % 64 of words[p / 64] is set if position p = n*S + s is valid. words == NULL:
 * all positions are valid. Bits past the last position are 0. With a mask every operation computes what it would for a
 * batch of the valid positions only; it never reads other positions and writes 0 to them. */
typedef struct {
    const uint64_t *words;
    ptrdiff_t valid; /* number of set bits */
} abn_mask;

/* ---- the machine: which kernels, how many threads ------------------------------------------------- */

/* Detects the processor. Call before anything else, from one thread; further calls do nothing. */
void abn_initialize(void);

typedef struct abn_kernels abn_kernels; /* one instruction set's kernels; kernels/kernels.h */

typedef struct {
    const abn_kernels *kernels;
    int threads; /* at least 1 */
} abn_machine;

/* The instruction sets that were compiled in, best first; NULL past the end. */
const abn_kernels *abn_kernels_at(int index);
const char *abn_kernels_name(const abn_kernels *kernels); /* "v4", "v3", "v2", "neon", "baseline" */
int abn_kernels_usable(const abn_kernels *kernels);       /* nonzero if this CPU and operating system support them */

int abn_has_openmp(void);
int abn_default_threads(void); /* OMP_NUM_THREADS, or the processors this process may use */

/* ---- what one layer saves for its backward ------------------------------------------------------- */

/* Arrays of `channels` doubles. */
typedef struct {
    double eps;
    const double *weight, *bias;
    double *mean, *var, *inv_std; /* var is biased; inv_std = 1 / sqrt(var + eps) */
} abn_norm;

/* Guarded channels: xhat cannot be recovered accurately from y or z and is saved. slot[c] is the channel's index in
 * xhat, or -1. xhat has `count` channels in the layout of the batch, contiguous, in its dtype: (count, N, S)
 * channels-first, (N, S, count) channels-last; with a mask N*S is mask.valid. count == 0: slot and xhat may be NULL. */
typedef struct {
    ptrdiff_t count;
    const ptrdiff_t *slot;
    void *xhat;
} abn_guard;

/* Per-element side data is indexed as if the batch were contiguous: element (n, c, s) has the index
 * (n*C + c)*S + s channels-first, (n*S + s)*C + c channels-last. (The two are equal if C or S is 1.)
 * With a mask, valid positions are numbered from 0 as one image: N = 1 and S = mask.valid; if S is 1, N = mask.valid.
 *
 * Escaped elements: their xhat cannot be recovered accurately from the kept buffer and is saved. These are elements
 * where the activation is flat or near its minimum, or where |residual| is far greater than |weight|; with a residual
 * or given statistics also where z overflows the storage type but y is finite, or a stored xhat overflows. Sorted by
 * index. The library allocates; abn_escapes_free frees. All fields zero: no escaped elements. */
typedef struct {
    ptrdiff_t count;
    int64_t *index;
    double *xhat;
} abn_escapes;

void abn_escapes_free(abn_escapes *escapes);

/* What the kept buffer holds. */
typedef enum { ABN_KEEP_Z, ABN_KEEP_X, ABN_KEEP_XHAT, ABN_KEEP_Y } abn_keep;

/* How backward recovers xhat from y or z (paper, section 3.2): ABN_SCHEME_I divides, w = (y - bias) / weight = xhat;
 * ABN_SCHEME_II does not, w = y - bias = weight * xhat. Equal results up to rounding, different constants. */
typedef enum { ABN_SCHEME_I, ABN_SCHEME_II } abn_scheme;

/* Everything that backward needs. `kept` is the full-size buffer: x, xhat, y or z. */
typedef struct {
    abn_keep keep;
    abn_scheme scheme;
    int statistics_given; /* abn_forward got mean and var as inputs */
    abn_batch kept;
    abn_activation activation;
    double activation_param;     /* ABN_ONE_PARAM, ABN_NONZERO_PARAM */
    const double *channel_param; /* ABN_CHANNEL_PARAM: `channels` doubles, of any sign; else NULL */
    abn_batch residual;          /* y = weight * xhat + bias + residual; read only. data == NULL: none */
    /* Backward with ABN_KEEP_Y: `residual` holds another layer's y; the residual is this activation of it, without a
     * channel_param. ABN_IDENTITY, the value 0, otherwise. */
    abn_activation residual_activation;
    double residual_param;
    abn_mask mask;
    abn_norm norm;
    abn_guard guard;     /* ABN_KEEP_Y and ABN_KEEP_Z only */
    abn_escapes escapes; /* none with ABN_KEEP_X */
    /* ABN_KEEP_Z with ABN_FROM_Z_AND_SIDE: bit index % 8 of byte index / 8 is set if y is left of the minimum.
     * abn_branch_mask_bytes(context) bytes, zeroed before the forward. */
    uint8_t *branch_mask;
} abn_context;

/* Fills slot[0..channels) and returns how many channels must be guarded. Reads context->{keep, kept, activation,
 * activation_param, channel_param, norm.weight, norm.bias, residual, mask}; samples the residual. */
ptrdiff_t abn_guard_channels(const abn_context *context, ptrdiff_t *slot);

/* 0 if no branch mask is needed. */
size_t abn_branch_mask_bytes(const abn_context *context);

/* ---- the operations --------------------------------------------------------------------------------- */

/* Mean and biased variance of every channel. Writes nothing if no position is valid. mask may be NULL. */
abn_status abn_statistics(const abn_machine *machine, const abn_batch *x, const abn_mask *mask, double *mean,
                          double *var);

/* z = activation(batch norm of x). context->keep says which buffer is written:
 *   ABN_KEEP_Z     z is x itself (same data): x is overwritten with z
 *   ABN_KEEP_X     z is another buffer; x is unchanged
 *   ABN_KEEP_XHAT  z is another buffer; x is overwritten with xhat
 *   ABN_KEEP_Y     z is another buffer; x is overwritten with y. z is computed from the stored, rounded y.
 * Inputs of context: keep, scheme, activation, its param, residual, mask, branch_mask, norm.{eps,weight,bias}, guard;
 * without `training` also norm.{mean,var}. Outputs: norm.inv_std, statistics_given, kept, escapes; with `training` also
 * norm.{mean,var}, of the batch itself.
 * ABN_NO_MEMORY: x may be partly overwritten. (Most of the memory, a few hundred KB, is allocated before any write.) */
abn_status abn_forward(const abn_machine *machine, const abn_batch *x, const abn_batch *z, abn_context *context,
                       int training);

/* Recomputes z, bit for bit, from a context that keeps x, xhat or y. */
abn_status abn_recompute(const abn_machine *machine, const abn_context *context, const abn_batch *z);

/* Arrays of `channels` doubles. dy = dz*activation'(y). */
typedef struct {
    double *dy;      /* sum dy, the gradient of bias */
    double *dy_xhat; /* sum dy*xhat, the gradient of weight */
    double *param;   /* the gradient of channel_param; NULL if there is none */
} abn_sums;

/* Outputs of backward, per element. */
typedef struct {
    abn_batch dx;        /* dz itself (same data) or another buffer */
    abn_batch residual;  /* dy, the gradient of the residual; data == NULL: not wanted */
    int add_to_residual; /* residual += dy rather than = dy */
} abn_gradients;

/* First step: writes the sums. Neither dz nor the context is changed. */
abn_status abn_backward_reduce(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                               const abn_sums *sums);

/* Second step: dx = weight*inv_std * (dy - sums.dy/count - xhat*sums.dy_xhat/count). count == 0 drops the last two
 * terms: the backward of evaluation mode. sums->param is ignored. */
abn_status abn_backward_apply(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                              const abn_gradients *to, const abn_sums *sums, double count);

/* Both steps, fused: the second step reads from cache what the first one read from memory, if it fits there. */
abn_status abn_backward(const abn_machine *machine, const abn_context *context, const abn_batch *dz,
                        const abn_gradients *to, const abn_sums *sums, int training);

/* a = a*c + d if b == NULL, else b = b*c + a*d, over contiguous float32: benchmarks.limit measures memory bandwidth.
 * prefetch: how many elements ahead to prefetch, or 0. */
void abn_stream(const abn_machine *machine, float *a, float *b, ptrdiff_t count, float c, float d, ptrdiff_t prefetch);

#endif
