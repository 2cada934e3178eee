#ifndef ALLOCATIONS_H
#define ALLOCATIONS_H

#include "abn.h"

/* Each operation, with each of its allocations failing: it returns ABN_NO_MEMORY, leaks nothing, changes no array. */
void test_allocations(const abn_kernels *kernels);

#endif
