/* Every operation in every combination, in arrays between inaccessible pages, compared with the twin (twin.h). */
#ifndef CASES_H
#define CASES_H

#include "twin.h"

typedef struct {
    int every; /* run each every-th case only; 1: all */
    int heavy; /* True: also large shapes, which span several blocks and chunks */
} effort;

void test_cases(const abn_kernels *kernels, effort effort);

/* How to run a problem. `others` is the layout of z, dz and dx. */
typedef struct {
    const abn_kernels *kernels;
    layout x, others;
    flush_side side;
    abn_scheme scheme;
} setting;

void test_case(const problem *of, const twin *expected, const setting *in);

#endif
