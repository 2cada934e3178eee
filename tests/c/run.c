#include "run.h"

run run_open(const problem *of, const twin *expected, const setting *in, int threads) {
    const flush_side side = in->side;
    const ptrdiff_t channels = of->of.channels, per_channel = of->of.batch * of->of.spatial;
    run opened = {.of = of, .expected = expected, .in = in, .machine = {in->kernels, threads}};
    run *r = &opened;
    r->x = tensor_open(of->dtype, of->of, in->x, side);
    tensor_write(&r->x, expected->x);
    r->z = of->keep == ABN_KEEP_Z ? r->x : tensor_open(of->dtype, of->of, in->others, side);
    r->weight = array_of_doubles(expected->weight, channels, side);
    r->bias = array_of_doubles(expected->bias, channels, side);
    r->mean = array_of_doubles(of->training ? NULL : expected->mean, channels, side);
    r->var = array_of_doubles(of->training ? NULL : expected->var, channels, side);
    r->inv_std = array_of_doubles(NULL, channels, side);
    r->slot = array_open((size_t)channels * sizeof(ptrdiff_t), side);
    array_freeze(&r->weight);
    array_freeze(&r->bias);
    r->context = (abn_context){
        .keep = of->keep,
        .scheme = in->scheme,
        .activation = of->activation,
        .activation_param = param_of(of->activation),
        .norm = {eps_of_variance, r->weight.data, r->bias.data, r->mean.data, r->var.data, r->inv_std.data},
    };
    ptrdiff_t guarded = 0;
    if (of->keep == ABN_KEEP_Z)
        guarded = abn_guard_channels(of->dtype, of->activation, param_of(of->activation), r->weight.data, r->bias.data,
                                     channels, per_channel, r->slot.data);
    r->beside = array_open((size_t)(guarded * per_channel) * abn_dtype_size(of->dtype), side);
    r->context.guard = (abn_guard){guarded, guarded ? r->slot.data : NULL, guarded ? r->beside.data : NULL};
    return opened;
}

void run_close(run *r) {
    abn_escapes_free(&r->context.escapes);
    if (r->of->keep != ABN_KEEP_Z) tensor_close(&r->z);
    tensor_close(&r->x);
    array *arrays[] = {&r->weight, &r->bias, &r->mean, &r->var, &r->inv_std, &r->slot, &r->beside};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) array_close(arrays[i]);
}
