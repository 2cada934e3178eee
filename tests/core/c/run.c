#include "run.h"

#include <string.h>

#include "check.h"

/* Allocates guard and branch mask, as the context requires. */
static void open_side_data(run *r) {
    const problem *of = r->of;
    const flush_side side = r->in->side;
    const ptrdiff_t channels = of->of.channels, per_channel = of->of.batch * of->of.spatial;
    ptrdiff_t guarded = 0, *slot = r->slot.data;
    if (recovers_xhat(of)) guarded = abn_guard_channels(&r->context, slot);
    for (ptrdiff_t c = 0; of->keep == ABN_KEEP_Z && of->activation == ABN_PRELU && c < channels; c++)
        check(r->expected->param[c] > 0 || slot[c] >= 0, "slope %g of channel %td is not guarded",
              r->expected->param[c], c);
    if (recovers_xhat(of) && per_channel > 0)
        check(memcmp(slot, r->expected->slot, r->slot.bytes) == 0, "guarded channels depend on the layout");
    r->guarded_xhat = array_open((size_t)(guarded * per_channel) * abn_dtype_size(of->dtype), side);
    r->context.guard = (abn_guard){guarded, guarded ? slot : NULL, guarded ? r->guarded_xhat.data : NULL};
    r->branch_mask = array_open(abn_branch_mask_bytes(&r->context), side);
    memset(r->branch_mask.data, 0, r->branch_mask.bytes);
    if (r->branch_mask.bytes) r->context.branch_mask = r->branch_mask.data;
}

run run_open(const problem *of, const twin *expected, const setting *in, int threads) {
    const flush_side side = in->side;
    const ptrdiff_t channels = of->of.channels;
    run opened = {.of = of, .expected = expected, .in = in, .machine = {in->kernels, threads}};
    run *r = &opened;
    r->x = tensor_open(of->dtype, of->of, in->x, side);
    tensor_write(&r->x, expected->x);
    r->z = of->keep == ABN_KEEP_Z ? r->x : tensor_open(of->dtype, of->of, in->others, side);
    r->residual = tensor_open(of->dtype, of->of, in->others, side);
    tensor_write(&r->residual, expected->residual);
    array_freeze(&r->residual.memory);
    r->weight = array_of_doubles(expected->weight, channels, side);
    r->bias = array_of_doubles(expected->bias, channels, side);
    r->param = array_of_doubles(expected->param, channels, side);
    r->mean = array_of_doubles(of->training ? NULL : expected->mean, channels, side);
    r->var = array_of_doubles(of->training ? NULL : expected->var, channels, side);
    r->inv_std = array_of_doubles(NULL, channels, side);
    r->slot = array_open((size_t)channels * sizeof(ptrdiff_t), side);
    array *given[] = {&r->weight, &r->bias, &r->param};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) array_freeze(given[i]);
    r->context = twin_context(expected, of, &r->x.batch, &r->residual.batch);
    r->context.scheme = in->scheme;
    r->context.norm =
        (abn_norm){eps_of_variance, r->weight.data, r->bias.data, r->mean.data, r->var.data, r->inv_std.data};
    if (r->context.channel_param) r->context.channel_param = r->param.data;
    open_side_data(r);
    return opened;
}

void run_close(run *r) {
    abn_escapes_free(&r->context.escapes);
    if (r->of->keep != ABN_KEEP_Z) tensor_close(&r->z);
    tensor_close(&r->x);
    tensor_close(&r->residual);
    array *arrays[] = {&r->weight,  &r->bias, &r->param,        &r->mean,       &r->var,
                       &r->inv_std, &r->slot, &r->guarded_xhat, &r->branch_mask};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) array_close(arrays[i]);
}
