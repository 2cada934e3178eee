#ifndef LARGE_H
#define LARGE_H

#include "abn.h"

/* Arrays of more than 2^31 elements and 2^32 bytes. Each is one megabyte of memory, mapped at successive addresses. An
 * index truncated to 32 bits reads or writes another element, because the megabyte is a prime number of pages. */
void test_large(const abn_kernels *kernels);

/* A forward in place, in 4.3 GB of memory, and its backward. Returns 0, without a test, if less than twice that is
 * free. */
int test_large_in_place(const abn_kernels *kernels);

#endif
