#ifndef LARGE_H
#define LARGE_H

#include "abn.h"

/* More than 2^31 elements and 2^32 bytes. One megabyte of memory, seen over and over through the page tables, stands
 * for each array: an index that is cut to 32 bits finds, or writes, another element, since the megabyte is a prime
 * number of pages. */
void test_large(const abn_kernels *kernels);

/* A forward in place, in 4.3 GB of memory, and its backward. Returns 0 when there is not twice that much. */
int test_large_in_place(const abn_kernels *kernels);

#endif
