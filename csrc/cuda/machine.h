/* The few things that differ between a GPU (NVRTC) and the host, where tests run the same kernels one thread at a
 * time. */
#ifndef ABN_CUDA_MACHINE_H
#define ABN_CUDA_MACHINE_H

#ifdef __CUDACC_RTC__
/* 1, the fewest blocks per multiprocessor: without it, the assembler spills registers for the sake of more blocks. */
#define KERNEL(name) \
    extern "C" __global__ void __launch_bounds__(ABN_THREADS, 1) name(const __grid_constant__ abn_cuda_pass pass)
#define FINISH_KERNEL(name) \
    extern "C" __global__ void __launch_bounds__(FINISH_THREADS, 1) name(const __grid_constant__ abn_cuda_pass pass)
#define FOUR_AT_ONCE _Pragma("unroll 4")
#define SHARED(type, name, count) __shared__ type name[count]
#define THREAD ((int)threadIdx.x)
#define THREADS ((int)blockDim.x)
#define BLOCK ((int64_t)blockIdx.x)
#define BLOCKS ((int64_t)gridDim.x)
#define BARRIER() __syncthreads()
#define ALIGNED(bytes) __align__(bytes)
INLINE int32_t fetch_and_increment(int32_t *counter) { return atomicAdd(counter, 1); }
/* The kernels of a call overlap at their ends: a kernel may start once every block of the one before has called
 * LET_NEXT_START, and waits for that one's results in AWAIT_PREVIOUS. The driver launches them so on these devices. */
#if __CUDA_ARCH__ >= 900
#define LET_NEXT_START() asm volatile("griddepcontrol.launch_dependents;" ::: "memory")
#define AWAIT_PREVIOUS() asm volatile("griddepcontrol.wait;" ::: "memory")
#else
#define LET_NEXT_START() (void)0
#define AWAIT_PREVIOUS() (void)0
#endif

#else /* tests/cuda/simulated_kernels.c defines these */
#define KERNEL(name) void name(const abn_cuda_pass pass)
#define FINISH_KERNEL(name) KERNEL(name)
#define FOUR_AT_ONCE
#define SHARED(type, name, count) static type name[count] /* blocks run one after the other */
extern int host_thread, host_threads;
extern int64_t host_block, host_blocks;
void host_barrier(void);
#define THREAD host_thread
#define THREADS host_threads
#define BLOCK host_block
#define BLOCKS host_blocks
#define BARRIER() host_barrier()
#define ALIGNED(bytes) __attribute__((aligned(bytes)))
#define LET_NEXT_START() (void)0
#define AWAIT_PREVIOUS() (void)0
INLINE int32_t fetch_and_increment(int32_t *counter) { return (*counter)++; }
#endif

#endif
