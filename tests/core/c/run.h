/* A layer's arrays, all of them between forbidden pages, before its forward. */
#ifndef RUN_H
#define RUN_H

#include "cases.h"

/* All that a run works on. */
typedef struct {
    const problem *of;
    const twin *expected;
    const setting *in;
    abn_machine machine;
    tensor x, z; /* one and the same where z is kept */
    tensor residual;
    array weight, bias, param, mean, var, inv_std, slot, beside, branch_mask;
    abn_context context;
} run;

run run_open(const problem *of, const twin *expected, const setting *in, int threads);
void run_close(run *r);

/* Are sides and escapes those that the twin's y asks for? After the forward. */
void check_what_is_kept_beside(const run *r);

#endif
