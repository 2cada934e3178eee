#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <windows.h>
#define DRIVER_LIBRARY "nvcuda.dll"
static void *open_library(const char *path) { return (void *)LoadLibraryA(path); }
static void *find_symbol(void *library, const char *name) { return (void *)GetProcAddress((HMODULE)library, name); }
#else
#include <dlfcn.h>
#define DRIVER_LIBRARY "libcuda.so.1"
static void *open_library(const char *path) { return dlopen(path, RTLD_NOW | RTLD_GLOBAL); }
static void *find_symbol(void *library, const char *name) { return dlsym(library, name); }
#endif

/* ---- the functions of CUDA, declared here: its headers are not needed ------------------------------------------- */

typedef int status; /* CUresult, nvrtcResult: 0 is success */

/* Rows: the member of `driver`, the exported name, the parameters. _v2 is the interface since CUDA 4. */
#define EACH_DRIVER_FUNCTION(ROW)                                                                                    \
    ROW(init, "cuInit", (unsigned flags))                                                                            \
    ROW(version, "cuDriverGetVersion", (int *version))                                                               \
    ROW(error_text, "cuGetErrorString", (status error, const char **text))                                           \
    ROW(device_count, "cuDeviceGetCount", (int *count))                                                              \
    ROW(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, int device))                           \
    ROW(device_name, "cuDeviceGetName", (char *name, int length, int device))                                        \
    ROW(context_retain, "cuDevicePrimaryCtxRetain", (void **context, int device))                                    \
    ROW(context_current, "cuCtxGetCurrent", (void **context))                                                        \
    ROW(context_push, "cuCtxPushCurrent_v2", (void *context))                                                        \
    ROW(context_pop, "cuCtxPopCurrent_v2", (void **context))                                                         \
    ROW(module_load, "cuModuleLoadData", (void **module, const void *image))                                         \
    ROW(module_unload, "cuModuleUnload", (void *module))                                                             \
    ROW(module_function, "cuModuleGetFunction", (void **function, void *module, const char *name))                   \
    ROW(launch, "cuLaunchKernel",                                                                                    \
        (void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,      \
         unsigned block_z, unsigned shared_bytes, void *stream, void **parameters, void **extra))                    \
    ROW(set_words, "cuMemsetD32Async", (unsigned long long at, unsigned value, size_t count, void *stream))          \
    ROW(is_capturing, "cuStreamIsCapturing", (void *stream, int *capturing))                                         \
    ROW(wait, "cuStreamSynchronize", (void *stream))                                                                 \
    ROW(host_allocate, "cuMemHostAlloc", (void **host, size_t bytes, unsigned flags))                                \
    ROW(host_on_device, "cuMemHostGetDevicePointer_v2", (unsigned long long *on_device, void *host, unsigned flags)) \
    ROW(copy_to_host, "cuMemcpyDtoH_v2", (void *to, unsigned long long from, size_t bytes))

/* Functions of newer drivers. */
#define EACH_OPTIONAL_FUNCTION(ROW)      \
    ROW(launch_with, "cuLaunchKernelEx", \
        (const launch_settings *settings, void *function, void **parameters, void **extra))

/* CUlaunchConfig with one attribute: CUlaunchAttribute has 8 bytes for its id and 64 for its value. */
typedef struct {
    unsigned id, padding;
    union {
        int number;
        char bytes[64];
    } value;
} launch_attribute;
typedef struct {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    void *stream;
    launch_attribute *attributes;
    unsigned count;
} launch_settings;

#define EACH_COMPILER_FUNCTION(ROW)                                                                   \
    ROW(version, "nvrtcVersion", (int *major, int *minor))                                            \
    ROW(create, "nvrtcCreateProgram",                                                                 \
        (void **program, const char *source, const char *name, int headers, const char *const *texts, \
         const char *const *names))                                                                   \
    ROW(destroy, "nvrtcDestroyProgram", (void **program))                                             \
    ROW(compile, "nvrtcCompileProgram", (void *program, int count, const char *const *options))       \
    ROW(log_bytes, "nvrtcGetProgramLogSize", (void *program, size_t *bytes))                          \
    ROW(log, "nvrtcGetProgramLog", (void *program, char *log))                                        \
    ROW(cubin_bytes, "nvrtcGetCUBINSize", (void *program, size_t *bytes))                             \
    ROW(cubin, "nvrtcGetCUBIN", (void *program, char *image))                                         \
    ROW(ptx_bytes, "nvrtcGetPTXSize", (void *program, size_t *bytes))                                 \
    ROW(ptx, "nvrtcGetPTX", (void *program, char *image))                                             \
    ROW(architectures_count, "nvrtcGetNumSupportedArchs", (int *count))                               \
    ROW(architectures, "nvrtcGetSupportedArchs", (int *architectures))

#define MEMBER(member, name, parameters) status(*member) parameters;
static struct {
    EACH_DRIVER_FUNCTION(MEMBER)
    EACH_OPTIONAL_FUNCTION(MEMBER)
} driver;
static struct {
    EACH_COMPILER_FUNCTION(MEMBER)
} compiler;
#undef MEMBER

static int driver_is_open, compiler_is_open, devices;

enum { MAJOR = 75, MINOR = 76, MULTIPROCESSORS = 16 }; /* CUdevice_attribute */
enum { MOST_DEVICES = 64 };
enum { OVERLAP = 6 };                               /* CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION */
enum { OVERLAP_MAJOR = 9, OVERLAP_DRIVER = 12040 }; /* since which device, and which driver records it into graphs */
enum { HOST_PORTABLE = 1, HOST_MAPPED = 2 };

static int fail(char *error, const char *what, const char *why) {
    if (error) snprintf(error, ABN_CUDA_ERROR, "%s: %s", what, why);
    return -1;
}

static int check(status result, const char *what, char *error) {
    const char *text = NULL;
    if (result == 0) return 0;
    if (driver.error_text(result, &text) != 0 || !text) text = "unknown error";
    return fail(error, what, text);
}

/* Fills a table of functions; 0, or -1 if one is missing. A pointer to a function is copied as bytes: C has no cast. */
#define FIND(member, name, parameters)                                                   \
    if (!(symbol = find_symbol(library, name))) return fail(error, file, "lacks " name); \
    memcpy(&table.member, &symbol, sizeof symbol);

#define FIND_OPTIONAL(member, name, parameters) \
    if ((symbol = find_symbol(library, name))) memcpy(&table.member, &symbol, sizeof symbol);

static int find_driver_functions(void *library, const char *file, char *error) {
    void *symbol;
#define table driver
    EACH_DRIVER_FUNCTION(FIND)
    EACH_OPTIONAL_FUNCTION(FIND_OPTIONAL)
#undef table
    return 0;
}

static int find_compiler_functions(void *library, const char *file, char *error) {
    void *symbol;
#define table compiler
    EACH_COMPILER_FUNCTION(FIND)
#undef table
    return 0;
}

int abn_cuda_open_driver(const char *path, char *error) {
    if (driver_is_open) return 0;
    if (!path) path = DRIVER_LIBRARY;
    void *library = open_library(path);
    if (!library) return fail(error, path, "not found: no NVIDIA driver is installed");
    if (find_driver_functions(library, path, error) < 0) return -1;
    if (check(driver.init(0), "cuInit", error) < 0) return -1;
    if (check(driver.device_count(&devices), "cuDeviceGetCount", error) < 0) return -1;
    if (devices == 0) return fail(error, path, "no device");
    driver_is_open = 1;
    return 0;
}

int abn_cuda_open_compiler(const char *path, const char *builtins, char *error) {
    if (compiler_is_open) return 0;
    if (builtins) open_library(builtins);
    void *library = open_library(path);
    if (!library) return fail(error, path, "not found");
    if (find_compiler_functions(library, path, error) < 0) return -1;
    compiler_is_open = 1;
    return 0;
}

int abn_cuda_driver_version(void) {
    int version = 0;
    if (driver_is_open) driver.version(&version);
    return version;
}

int abn_cuda_compiler_version(void) {
    int major = 0, minor = 0;
    if (compiler_is_open) compiler.version(&major, &minor);
    return major * 1000 + minor * 10;
}

int abn_cuda_compiler_newest(void) {
    int count = 0, newest = 0, architectures[256] = {0};
    if (!compiler_is_open || compiler.architectures_count(&count) != 0 || count > 256) return 0;
    compiler.architectures(architectures);
    for (int i = 0; i < count; i++)
        if (architectures[i] > newest) newest = architectures[i];
    return newest;
}

int abn_cuda_device_count(void) { return driver_is_open ? devices : 0; }

int abn_cuda_describe(int device, abn_cuda_device *to, char *error) {
    if (!driver_is_open) return fail(error, DRIVER_LIBRARY, "not open");
    if (device < 0 || device >= devices || device >= MOST_DEVICES) return fail(error, "device", "no such device");
    if (check(driver.device_attribute(&to->major, MAJOR, device), "cuDeviceGetAttribute", error) < 0) return -1;
    driver.device_attribute(&to->minor, MINOR, device);
    driver.device_attribute(&to->multiprocessors, MULTIPROCESSORS, device);
    to->name[0] = 0;
    driver.device_name(to->name, sizeof to->name, device);
    return 0;
}

/* ---- compilation ------------------------------------------------------------------------------------------- */

static char *joined_source(void) {
    size_t bytes = 1;
    for (const char *const *line = abn_cuda_source; *line; line++) bytes += strlen(*line);
    char *text = malloc(bytes), *at = text;
    for (const char *const *line = abn_cuda_source; text && *line; line++) {
        const size_t length = strlen(*line);
        memcpy(at, *line, length);
        at += length;
    }
    if (text) *at = 0;
    return text;
}

static int wants_machine_code(const char *const *options, int count) {
    for (int i = 0; i < count; i++)
        if (strstr(options[i], "sm_")) return 1;
    return 0;
}

int abn_cuda_compile(const char *const *options, int count, void **image, size_t *bytes, char **log, char *error) {
    void *program = NULL;
    char *source = joined_source();
    const int machine_code = wants_machine_code(options, count);
    size_t log_bytes = 0;
    int result = -1;
    *image = *log = NULL;
    if (!compiler_is_open) {
        fail(error, "NVRTC", "not open");
    } else if (!source || compiler.create(&program, source, "inplace_abn.cu", 0, NULL, NULL) != 0) {
        fail(error, "nvrtcCreateProgram", "out of memory");
    } else if (compiler.compile(program, count, options) != 0) {
        fail(error, "nvrtcCompileProgram", "the kernels do not compile");
    } else if ((machine_code ? compiler.cubin_bytes : compiler.ptx_bytes)(program, bytes) != 0 ||
               !(*image = malloc(*bytes)) || (machine_code ? compiler.cubin : compiler.ptx)(program, *image) != 0) {
        fail(error, "NVRTC", "no image");
    } else {
        result = 0;
    }
    if (program && compiler.log_bytes(program, &log_bytes) == 0 && log_bytes > 1 && (*log = malloc(log_bytes)))
        compiler.log(program, *log);
    if (program) compiler.destroy(&program);
    free(source);
    return result;
}

/* ---- devices ----------------------------------------------------------------------------------------------- */

/* Makes the primary context of a device current, which is the one that PyTorch and CuPy use. *pushed: leave() must be
 * called. */
static int enter(int device, int *pushed, char *error) {
    static void *contexts[MOST_DEVICES];
    void *current = NULL;
    *pushed = 0;
    if (!driver_is_open) return fail(error, DRIVER_LIBRARY, "not open");
    if (device < 0 || device >= devices || device >= MOST_DEVICES) return fail(error, "device", "no such device");
    if (!contexts[device] &&
        check(driver.context_retain(&contexts[device], device), "cuDevicePrimaryCtxRetain", error) < 0)
        return -1;
    driver.context_current(&current);
    if (current == contexts[device]) return 0;
    if (check(driver.context_push(contexts[device]), "cuCtxPushCurrent", error) < 0) return -1;
    *pushed = 1;
    return 0;
}

static void leave(int pushed) {
    void *context;
    if (pushed) driver.context_pop(&context);
}

int abn_cuda_load(int device, const void *image, abn_cuda_kernels *to, char *error) {
    static const char *const names[2][ABN_CUDA_STEPS] = {
        {"cuda_forward_sums", "cuda_forward_finish", "cuda_forward_apply"},
        {"cuda_backward_sums", "cuda_backward_finish", "cuda_backward_apply"}};
    int pushed;
    to->device = device;
    to->module = NULL;
    if (enter(device, &pushed, error) < 0) return -1;
    abn_cuda_device described;
    to->overlaps = driver.launch_with && abn_cuda_driver_version() >= OVERLAP_DRIVER &&
                   abn_cuda_describe(device, &described, NULL) == 0 && described.major >= OVERLAP_MAJOR;
    int result = check(driver.module_load(&to->module, image), "cuModuleLoadData", error);
    for (int i = 0; result == 0 && i < 2 * ABN_CUDA_STEPS; i++)
        result = check(driver.module_function(&to->functions[i / ABN_CUDA_STEPS][i % ABN_CUDA_STEPS], to->module,
                                              names[i / ABN_CUDA_STEPS][i % ABN_CUDA_STEPS]),
                       "cuModuleGetFunction", error);
    leave(pushed);
    return result;
}

void abn_cuda_unload(abn_cuda_kernels *kernels) {
    int pushed;
    if (!kernels->module || enter(kernels->device, &pushed, NULL) < 0) return;
    driver.module_unload(kernels->module);
    kernels->module = NULL;
    leave(pushed);
}

/* overlaps: the kernel may start before the one before has ended; it waits for it where it must (machine.h). */
static int launch(void *function, int64_t blocks, int threads, void *stream, abn_cuda_pass *pass, int overlaps,
                  char *error) {
    void *parameters[] = {pass};
    if (overlaps) {
        launch_attribute attribute = {.id = OVERLAP, .value.number = 1};
        const launch_settings settings = {(unsigned)blocks, 1, 1, (unsigned)threads, 1, 1, 0, stream, &attribute, 1};
        return check(driver.launch_with(&settings, function, parameters, NULL), "cuLaunchKernelEx", error);
    }
    return check(driver.launch(function, (unsigned)blocks, 1, 1, (unsigned)threads, 1, 1, 0, stream, parameters, NULL),
                 "cuLaunchKernel", error);
}

int abn_cuda_run(const abn_cuda_kernels *kernels, const abn_cuda_plan *plan, abn_cuda_pass *pass, void *scratch,
                 void *stream, int backward, char *error) {
    void *const *functions = kernels->functions[backward];
    const int has_sums = (backward || pass->training) && pass->exchange != ABN_READ_TOTAL;
    int pushed, result = 0;
    if (pass->exchange == ABN_ALONE) pass->count = (double)(pass->images * pass->positions);
    pass->guarded = (int32_t *)((char *)scratch + plan->guarded_at);
    pass->constants = (char *)scratch + plan->constants_at;
    pass->partial = (char *)scratch + plan->partial_at;
    if (enter(kernels->device, &pushed, error) < 0) return -1;
    if (has_sums)
        result = launch(functions[ABN_CUDA_SUMS], plan->sums_blocks, plan->threads, stream, pass, 0, error);
    else if (!backward) /* the sums would have done it */
        result = check(driver.set_words((uintptr_t)pass->guarded, 0, ABN_COUNTERS, stream), "cuMemsetD32Async", error);
    if (result == 0)
        result = launch(functions[ABN_CUDA_FINISH], plan->finish_blocks, plan->finish_threads, stream, pass,
                        kernels->overlaps && has_sums, error);
    if (result == 0 && pass->exchange != ABN_STORE_OWN)
        result = launch(functions[ABN_CUDA_APPLY], plan->apply_blocks, plan->threads, stream, pass, kernels->overlaps,
                        error);
    leave(pushed);
    return result;
}

int abn_cuda_is_capturing(int device, void *stream) {
    int pushed, capturing = 0;
    if (enter(device, &pushed, NULL) < 0) return 0;
    if (driver.is_capturing(stream, &capturing) != 0) capturing = 1; /* it fails if another stream captures globally */
    leave(pushed);
    return capturing != 0;
}

int abn_cuda_host_allocate(int device, size_t bytes, void **host, void **on_device, char *error) {
    int pushed;
    unsigned long long address = 0;
    if (enter(device, &pushed, error) < 0) return -1;
    int result = check(driver.host_allocate(host, bytes, HOST_PORTABLE | HOST_MAPPED), "cuMemHostAlloc", error);
    if (result == 0) result = check(driver.host_on_device(&address, *host, 0), "cuMemHostGetDevicePointer", error);
    leave(pushed);
    *on_device = (void *)(uintptr_t)address;
    return result;
}

int abn_cuda_read(int device, void *to, const void *from, size_t bytes, void *stream, char *error) {
    int pushed;
    if (enter(device, &pushed, error) < 0) return -1;
    int result = check(driver.wait(stream), "cuStreamSynchronize", error);
    if (result == 0) result = check(driver.copy_to_host(to, (uintptr_t)from, bytes), "cuMemcpyDtoH", error);
    leave(pushed);
    return result;
}
