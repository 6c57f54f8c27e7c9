/* Callbacks in stream order, and the kernels that are not simulated. */
#include "simulator.h"

#include <stdlib.h>
#include <string.h>

CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *argument) {
    ENTER;
    Stream *stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    Work work = {.kind = CALL,
                 .device = stream->device,
                 .host_function = function,
                 .argument = argument};
    return enqueue(stream, &work, NULL);
}

/* A kernel that is a callback: it reads and writes the ranges that it names. */
CUresult simulator_launch(CUstream handle, Callback callback, void *argument, const char *label,
                          const Range *ranges, size_t count) {
    ENTER;
    Stream *stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    Work work = {.kind = CALL,
                 .device = stream->device,
                 .callback = callback,
                 .argument = argument,
                 .range_count = count};
    strncpy(work.label, label, LABEL - 1);
    work.ranges = calloc(count ? count : 1, sizeof *work.ranges);
    memcpy(work.ranges, ranges, count * sizeof *ranges);
    return enqueue(stream, &work, NULL);
}

static CUresult no_kernels(void) {
    ENTER;
    problem("compiled kernels are not simulated: use simulator_launch with a callback");
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    (void)module;
    (void)image;
    return no_kernels();
}

CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *options,
                           void **values, unsigned int count, CUlibraryOption *library_options,
                           void **library_values, unsigned int library_count) {
    (void)library, (void)code, (void)options, (void)values, (void)count;
    (void)library_options, (void)library_values, (void)library_count;
    return no_kernels();
}

CUresult cuLaunchKernel(CUfunction function, unsigned int gx, unsigned int gy, unsigned int gz,
                        unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
                        CUstream stream, void **parameters, void **extra) {
    (void)function, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared;
    (void)stream, (void)parameters, (void)extra;
    return no_kernels();
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters,
                          void **extra) {
    (void)config, (void)function, (void)parameters, (void)extra;
    return no_kernels();
}
