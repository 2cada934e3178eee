/* CudaPlan: the kernels for batches of one shape on one device, and their launches. */
#ifndef ABN_PYTHON_CUDA_PLAN_H
#define ABN_PYTHON_CUDA_PLAN_H

#define CUDA_KERNELS "inplace_abn._core.cuda_kernels" /* the name of the capsule that cuda_load returns */

#endif
