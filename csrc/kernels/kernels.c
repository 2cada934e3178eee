/* The kernels of one instruction set (ABN_ISA) for one storage type (ABN_DTYPE), as a table. Compiled once for each
 * pair; these two names, and ABN_ISA_<NAME> and ABN_DTYPE_<NAME> as macros, come from the build. */
#include "columns.h"
#include "pre_activation.h"
#include "segments.h"
#include "rows.h"

/* Tiles and constants by value: behind a pointer, the compiler would have to reload them after each vector store. */
#define DEFINE_FROM_X(layout, name, activation)                                                    \
    static void layout##_apply_##name(const abn_tile *t, const abn_constants *c) {                 \
        layout##_apply(activation, 0, *t, *c);                                                     \
    }                                                                                              \
    static ptrdiff_t layout##_apply_residual_##name(const abn_tile *t, const abn_constants *c) {   \
        return layout##_apply(activation, 1, *t, *c);                                              \
    }                                                                                              \
    static void layout##_sums_x_##name(const abn_tile *t, const abn_constants *c, void *partial) { \
        layout##_gradient_sums(ABN_FROM_X, activation, 0, *t, *c, partial);                        \
    }                                                                                              \
    static void layout##_gradient_x_##name(const abn_tile *t, const abn_constants *c) {            \
        layout##_gradient_apply(ABN_FROM_X, activation, 0, *t, *c);                                \
    }
#define DEFINE_GRADIENT(layout, from, letter, name, activation)                                             \
    static void layout##_sums_##letter##_##name(const abn_tile *t, const abn_constants *c, void *partial) { \
        if (t->residual.data)                                                                               \
            layout##_gradient_sums(from, activation, 1, *t, *c, partial);                                   \
        else                                                                                                \
            layout##_gradient_sums(from, activation, 0, *t, *c, partial);                                   \
    }                                                                                                       \
    static void layout##_gradient_##letter##_##name(const abn_tile *t, const abn_constants *c) {            \
        if (t->residual.data)                                                                               \
            layout##_gradient_apply(from, activation, 1, *t, *c);                                           \
        else                                                                                                \
            layout##_gradient_apply(from, activation, 0, *t, *c);                                           \
    }
#define DEFINE_FROM_Z(layout, name, activation) DEFINE_GRADIENT(layout, ABN_FROM_Z, z, name, activation)
#define DEFINE_FROM_Y(layout, name, activation) DEFINE_GRADIENT(layout, ABN_FROM_Y, y, name, activation)
#define DEFINE_MOMENTS(layout)                                                                \
    static void layout##_moments_(const abn_tile *t, const abn_constants *c, void *partial) { \
        layout##_moments(*t, *c, partial);                                                    \
    }
DEFINE_MOMENTS(rows)
DEFINE_MOMENTS(columns)

/* The cheap activations with kernels for whole tiles, those that can be inverted and those that cannot. */
#define EACH_INVERTIBLE(ROW, layout)    \
    ROW(layout, identity, ABN_IDENTITY) \
    ROW(layout, leaky_relu, ABN_LEAKY_RELU)
#define EACH_OTHER(ROW, layout)               \
    ROW(layout, relu, ABN_RELU)               \
    ROW(layout, relu6, ABN_RELU6)             \
    ROW(layout, hardsigmoid, ABN_HARDSIGMOID) \
    ROW(layout, hardswish, ABN_HARDSWISH)

EACH_INVERTIBLE(DEFINE_FROM_X, rows)
EACH_INVERTIBLE(DEFINE_FROM_Z, rows)
EACH_OTHER(DEFINE_FROM_X, rows)
EACH_INVERTIBLE(DEFINE_FROM_X, columns)
EACH_INVERTIBLE(DEFINE_FROM_Z, columns)
EACH_OTHER(DEFINE_FROM_X, columns)

EACH_OTHER(DEFINE_FROM_Y, rows)
EACH_OTHER(DEFINE_FROM_Y, columns)

#define DEFINE_KEEP_Y_ROWS(layout, name, activation) DEFINE_KEEP_Y(rows, ABN_ROWS, name, activation)
#define DEFINE_KEEP_Y_COLUMNS(layout, name, activation) DEFINE_KEEP_Y(columns, ABN_COLUMNS, name, activation)
EACH_OTHER(DEFINE_KEEP_Y_ROWS, )
EACH_OTHER(DEFINE_KEEP_Y_COLUMNS, )

#define ENTRY(layout, name, activation)                                       \
    [activation] = {layout##_apply_##name,                                    \
                    layout##_apply_residual_##name,                           \
                    {layout##_sums_z_##name, layout##_sums_x_##name},         \
                    {layout##_gradient_z_##name, layout##_gradient_x_##name}, \
                    NULL},
#define ENTRY_WITHOUT_INVERSE(layout, name, activation)                             \
    [activation] = {layout##_apply_##name,                                          \
                    layout##_apply_residual_##name,                                 \
                    {NULL, layout##_sums_x_##name, layout##_sums_y_##name},         \
                    {NULL, layout##_gradient_x_##name, layout##_gradient_y_##name}, \
                    layout##_keep_y_##name},
#define LAYOUT_KERNELS(layout)                                                            \
    {                                                                                     \
        .moments = layout##_moments_,                                                     \
        .fold = layout##_fold,                                                            \
        .of = {EACH_INVERTIBLE(ENTRY, layout) EACH_OTHER(ENTRY_WITHOUT_INVERSE, layout)}, \
        .segment = SEGMENT_KERNELS(layout),                                               \
    }

INLINE void stream_loop(storage *a, storage *b, ptrdiff_t count, vec c, vec d, ptrdiff_t prefetch) {
    for (ptrdiff_t i = 0; i < count; i += W) {
        const ptrdiff_t n = count - i;
        const vec x = v_load_upto(a + i, n);
        if (prefetch && prefetch < n) {
            prefetch_line(a + i + prefetch, 1);
            if (b) prefetch_line(b + i + prefetch, 1);
        }
        if (b)
            v_store_upto(b + i, v_fma(v_load_upto(b + i, n), c, v_mul(x, d)), n);
        else
            v_store_upto(a + i, v_fma(x, c, d), n);
    }
}

/* a = a*c + d, or b = b*c + a*d: the benchmarks' lower bound for the time of an in-place pass over memory. */
static void stream(void *a, void *b, ptrdiff_t count, double c, double d, ptrdiff_t prefetch) {
    const vec factor = v_set1((real)c), other = v_set1((real)d);
    if (prefetch)
        stream_loop(a, b, count, factor, other, prefetch);
    else
        stream_loop(a, b, count, factor, other, 0);
}

#ifdef ABN_DTYPE_FLOAT64
#define ACTIVATION_KERNELS JOIN3(JOIN3(abn_activation_kernels_, ABN_ISA, _), float64, )
#else
#define ACTIVATION_KERNELS JOIN3(JOIN3(abn_activation_kernels_, ABN_ISA, _), float32, )
#endif
extern const abn_activation_kernels ACTIVATION_KERNELS;

const abn_kernel_set JOIN3(JOIN3(abn_kernels_, ABN_ISA, _), ABN_DTYPE, ) = {
    .layout = {[ABN_ROWS] = LAYOUT_KERNELS(rows), [ABN_COLUMNS] = LAYOUT_KERNELS(columns)},
    .expand = columns_expand,
    .stream = stream,
    .activations = &ACTIVATION_KERNELS,
};
