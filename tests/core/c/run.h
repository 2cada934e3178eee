/* All arrays of a layer before its forward, between inaccessible pages. */
#ifndef RUN_H
#define RUN_H

#include "cases.h"

/* The arrays and settings of one run. */
typedef struct {
    const problem *of;
    const twin *expected;
    const setting *in;
    abn_machine machine;
    tensor x, z; /* the same array if z is kept */
    tensor residual;
    array weight, bias, param, mean, var, inv_std, slot, guarded_xhat, branch_mask;
    abn_context context;
} run;

run run_open(const problem *of, const twin *expected, const setting *in, int threads);
void run_close(run *r);

/* After the forward: checks that branch mask and escapes agree with the y of the twin. */
void check_side_data(const run *r);

#endif
