/* The functions of CUDA's driver that csrc/cuda/driver.c uses, for one device whose memory is the host's. An image is
 * the path of a library, simulated_kernels.c. Launches run at once. Tests set the variables. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int simulated_reverse;      /* the order of blocks and threads */
int simulated_is_capturing; /* what cuStreamIsCapturing returns; a launch then runs nothing */
int simulated_launches;

enum { SUCCESS, INVALID_VALUE, NOT_FOUND = 500 };
enum { MAJOR = 75, MINOR = 76, MULTIPROCESSORS = 16 };

typedef void run_kernel(void *kernel, const void *pass, int64_t blocks, int threads, int reverse);
typedef struct {
    run_kernel *run;
    void *kernel;
} function;

static int context;

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuGetErrorString(int error, const char **text) {
    *text = error == INVALID_VALUE ? "invalid argument" : "not found";
    return SUCCESS;
}
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == MAJOR ? 9 : attribute == MINOR ? 0 : attribute == MULTIPROCESSORS ? 2 : -1;
    return device || *value < 0 ? INVALID_VALUE : SUCCESS;
}
int cuDeviceGetName(char *name, int length, int device) {
    return strncpy(name, "simulated", (size_t)length), device ? INVALID_VALUE : SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **to, int device) { return *to = &context, device ? INVALID_VALUE : SUCCESS; }
int cuCtxGetCurrent(void **to) { return *to = NULL, SUCCESS; }
int cuCtxPushCurrent_v2(void *pushed) { return pushed == &context ? SUCCESS : INVALID_VALUE; }
int cuCtxPopCurrent_v2(void **to) { return *to = &context, SUCCESS; }

int cuModuleLoadData(void **module, const void *image) {
    *module = dlopen(image, RTLD_NOW | RTLD_LOCAL);
    return *module ? SUCCESS : NOT_FOUND;
}
int cuModuleUnload(void *module) { return dlclose(module) ? INVALID_VALUE : SUCCESS; }
int cuModuleGetFunction(void **to, void *module, const char *name) {
    function *found = malloc(sizeof *found);
    void *run = dlsym(module, "host_launch");
    found->kernel = dlsym(module, name);
    memcpy(&found->run, &run, sizeof run);
    *to = found;
    return run && found->kernel ? SUCCESS : NOT_FOUND;
}

int cuLaunchKernel(void *of, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void *stream, void **parameters, void **extra) {
    const function *f = of;
    (void)stream;
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || shared_bytes || extra) return INVALID_VALUE;
    if (block_x == 0 || block_x > 1024 || grid_x == 0) return INVALID_VALUE;
    simulated_launches++;
    if (!simulated_is_capturing) f->run(f->kernel, parameters[0], grid_x, (int)block_x, simulated_reverse);
    return SUCCESS;
}

/* CUlaunchConfig */
typedef struct {
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    const void *attributes;
    unsigned count;
} settings;
int cuLaunchKernelEx(const settings *s, void *of, void **parameters, void **extra) {
    if (s->count != 1 || !s->attributes) return INVALID_VALUE;
    return cuLaunchKernel(of, s->grid[0], s->grid[1], s->grid[2], s->block[0], s->block[1], s->block[2],
                          s->shared_bytes, s->stream, parameters, extra);
}

int cuMemsetD32Async(unsigned long long at, unsigned value, size_t count, void *stream) {
    (void)stream;
    for (size_t i = 0; i < count; i++) ((unsigned *)(uintptr_t)at)[i] = value;
    return SUCCESS;
}
int cuStreamIsCapturing(void *stream, int *capturing) {
    (void)stream;
    return *capturing = simulated_is_capturing, SUCCESS;
}
int cuStreamSynchronize(void *stream) {
    (void)stream;
    return SUCCESS;
}
int cuMemHostAlloc(void **host, size_t bytes, unsigned flags) {
    (void)flags;
    return (*host = calloc(1, bytes)) ? SUCCESS : NOT_FOUND;
}
int cuMemHostGetDevicePointer_v2(unsigned long long *to, void *host, unsigned flags) {
    (void)flags;
    return *to = (uintptr_t)host, SUCCESS;
}
int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t bytes) {
    return memcpy(to, (const void *)(uintptr_t)from, bytes), SUCCESS;
}
