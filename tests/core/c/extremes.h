#ifndef EXTREMES_H
#define EXTREMES_H

#include "abn.h"

/* Channels that are constant, far from zero, denormal or have one outlier; weights and biases from 0 to 1e30. */
void test_extremes(const abn_kernels *kernels, int every);

#endif
