/* The kernels of one instruction set (ABN_ISA) for one storage type (ABN_DTYPE), as a table. Compiled once for each
 * pair; these two names, and ABN_ISA_<NAME> and ABN_DTYPE_<NAME> as macros, come from the build. */
#include "columns.h"
#include "rows.h"

/* Tiles and constants go by value from here on: stores of vectors may alias anything that is reached by a pointer. */
#define DEFINE_LAYOUT(layout, name, activation)                                                    \
    static void layout##_apply_##name(const abn_tile *t, const abn_constants *c) {                 \
        layout##_apply(activation, *t, *c);                                                        \
    }                                                                                              \
    static void layout##_sums_z_##name(const abn_tile *t, const abn_constants *c, void *partial) { \
        layout##_gradient_sums(ABN_FROM_Z, activation, *t, *c, partial);                           \
    }                                                                                              \
    static void layout##_sums_x_##name(const abn_tile *t, const abn_constants *c, void *partial) { \
        layout##_gradient_sums(ABN_FROM_X, activation, *t, *c, partial);                           \
    }                                                                                              \
    static void layout##_gradient_z_##name(const abn_tile *t, const abn_constants *c) {            \
        layout##_gradient_apply(ABN_FROM_Z, activation, *t, *c);                                   \
    }                                                                                              \
    static void layout##_gradient_x_##name(const abn_tile *t, const abn_constants *c) {            \
        layout##_gradient_apply(ABN_FROM_X, activation, *t, *c);                                   \
    }
#define DEFINE_SHARED(layout)                                                                              \
    static void layout##_moments_(const abn_tile *t, const abn_constants *c, void *partial) {              \
        layout##_moments(*t, *c, partial);                                                                 \
    }                                                                                                      \
    static int layout##_any_outside_(const abn_tile *t, const abn_constants *c, double low, double high) { \
        return layout##_any_outside(*t, *c, low, high);                                                    \
    }
DEFINE_SHARED(rows)
DEFINE_SHARED(columns)

#define DEFINE(upper, name, invertible, has_param) \
    DEFINE_LAYOUT(rows, name, ABN_##upper)         \
    DEFINE_LAYOUT(columns, name, ABN_##upper)

#define ENTRY(layout, name, activation)                               \
    [activation] = {layout##_apply_##name,                            \
                    {layout##_sums_z_##name, layout##_sums_x_##name}, \
                    {layout##_gradient_z_##name, layout##_gradient_x_##name}},
#define ROWS_ENTRY(upper, name, invertible, has_param) ENTRY(rows, name, ABN_##upper)
#define COLUMNS_ENTRY(upper, name, invertible, has_param) ENTRY(columns, name, ABN_##upper)

ABN_EACH_ACTIVATION(DEFINE)

/* a = a*c + d, or b = b*c + a*d: what an in-place pass over memory costs at least. */
static void stream(void *a, void *b, ptrdiff_t count, double c, double d) {
    storage *first = a, *second = b;
    const vec factor = v_set1((real)c), other = v_set1((real)d);
    for (ptrdiff_t i = 0; i < count; i += W) {
        const ptrdiff_t n = count - i;
        const vec x = v_load_upto(first + i, n);
        if (second)
            v_store_upto(second + i, v_fma(v_load_upto(second + i, n), factor, v_mul(x, other)), n);
        else
            v_store_upto(first + i, v_fma(x, factor, other), n);
    }
}

const abn_kernel_set JOIN3(JOIN3(abn_kernels_, ABN_ISA, _), ABN_DTYPE, ) = {
    .layout =
        {
            [ABN_ROWS] = {rows_moments_, rows_any_outside_, rows_fold, {ABN_EACH_ACTIVATION(ROWS_ENTRY)}},
            [ABN_COLUMNS] =
                {columns_moments_, columns_any_outside_, columns_fold, {ABN_EACH_ACTIVATION(COLUMNS_ENTRY)}},
        },
    .expand = columns_expand,
    .stream = stream,
};
