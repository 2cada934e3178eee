#ifndef ALLOCATIONS_H
#define ALLOCATIONS_H

#include "abn.h"

/* Each operation with each of its allocations failing: it says so, leaks nothing and leaves its arrays alone. */
void test_allocations(const abn_kernels *kernels);

#endif
