/* Validates input arrays and allocates outputs. */
#ifndef ABN_PYTHON_BATCH_H
#define ABN_PYTHON_BATCH_H

#include "overlap.h"

typedef enum { CHANNELS_FIRST, CHANNELS_LAST } layout;

/* An array viewed as (N, C, S), as channel_axis says. `array` and `dtype` are borrowed. */
typedef struct {
    PyArrayObject *array;
    PyArray_Descr *dtype;
    const char *name;
    const char *remedy; /* for messages: what to pass instead of a layout that no kernel takes */
    int channel_axis;   /* 1 or -1 */
    int ndim;
    npy_intp shape[ABN_MAX_DIMS];
    layout layout;
    abn_batch core;
    footprint bytes;
} batch;

/* An array of one element per channel. `array` is borrowed, and NULL for None and for a missing argument. */
typedef struct {
    PyArrayObject *array;
    const char *name;
    const char *data;
    npy_intp stride; /* bytes */
    int is_double;
    footprint bytes;
} vector;

/* Which positions of a batch are valid. `array` is borrowed; NULL: all are. */
typedef struct {
    PyArrayObject *array;
    npy_intp valid; /* the number of valid positions */
    footprint bytes;
} mask;

static inline npy_intp batch_elements(const batch *b) { return b->core.batch * b->core.channels * b->core.spatial; }

static inline npy_intp batch_per_channel(const batch *b) { return b->core.batch * b->core.spatial; }

static inline int is_provided(PyObject *got) { return got && got != Py_None; }

/* Every array passes both checks: the type of the object; byte order, alignment and, with a writer, the writeable flag.
 * `array` is borrowed; `writer` is the function that writes into it, or NULL. They return 0, or -1 with an
 * exception. */
int check_kind(const binding_state *state, PyObject *got, const char *name, PyArrayObject **array);
int check_memory(const binding_state *state, PyArrayObject *array, const char *name, const char *writer);

/* The functions below return 0, or -1 with a TypeError or ValueError that names the argument. They run no Python code
 * unless they fail, so what they have checked stays true until the interpreter lock is released. */

/* channel_axis=: 1 or -1. */
int channel_axis_arg(PyObject *got, int *channel_axis);

/* A batch of any dtype and layout that the kernels take; with `like`, one of its shape, dtype and layout. */
int batch_open(binding_state *state, PyObject *got, name_id name, int channel_axis, const batch *like,
               const char *writer, batch *b);

/* A vector of `channels` elements; `type` is NPY_FLOAT or NPY_DOUBLE. For None and a missing argument v->array is
 * NULL. */
int vector_open(binding_state *state, PyObject *got, name_id name, npy_intp channels, int type, const char *writer,
                vector *v);

/* Like vector_open, for slope=: a vector of `channels` elements or of one for all channels: then v->stride is 0. */
int slope_open(binding_state *state, PyObject *got, npy_intp channels, int type, vector *v);

/* mask= for x: a bool array of shape (N, *spatial), with any strides. None: all positions are valid. */
int mask_open(binding_state *state, PyObject *got, const batch *x, mask *m);

/* The number of words that hold one bit for each position of x. */
npy_intp mask_words(const batch *x);

/* Sets the bits of valid positions in `words`, zeroed by the caller. Returns their number; words == NULL:
 * only counts. */
npy_intp mask_pack(const mask *m, uint64_t *words);

/* A contiguous one-dimensional float32 array, of `count` elements unless that is -1. */
int stream_open(binding_state *state, PyObject *got, name_id name, npy_intp count, const char *writer,
                PyArrayObject **array);

/* The type number of the parameters for a batch of this dtype: NPY_DOUBLE for float64, else NPY_FLOAT. */
int weight_type(abn_dtype dtype);

void vector_read(const vector *v, npy_intp channels, double *values);

/* v = (1 - momentum) * v + momentum * factor * values. */
void vector_blend(const vector *v, npy_intp channels, double momentum, const double *values, double factor);

/* vector_new allocates an uninitialized array of NPY_FLOAT or NPY_DOUBLE; vector_fill writes its elements. */
PyObject *vector_new(int type, npy_intp channels);
void vector_fill(PyObject *array, npy_intp channels, const double *values);

/* Returns a new array of b's shape, dtype and layout. *fresh describes it and owns nothing. */
PyArrayObject *batch_like(const batch *b, batch *fresh);

#endif
