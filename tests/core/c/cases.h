/* Every operation in every combination, in arrays between forbidden pages, against the twin. */
#ifndef CASES_H
#define CASES_H

#include "twin.h"

typedef struct {
    int every; /* run each every-th case only; 1: all */
    int heavy; /* with the shapes that reach every block and chunk */
} effort;

void test_cases(const abn_kernels *kernels, effort effort);

/* One problem through all operations. Layouts of x, and of z, dz and dx. */
typedef struct {
    const abn_kernels *kernels;
    layout x, others;
    flush_side side;
    abn_scheme scheme;
} setting;

void test_case(const problem *of, const twin *expected, const setting *in);

#endif
