/* Names of errors, and where the driver's entries are. */
#include "simulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ERRORS(each)                                                                              \
    each(CUDA_SUCCESS) each(CUDA_ERROR_INVALID_VALUE) each(CUDA_ERROR_OUT_OF_MEMORY)              \
    each(CUDA_ERROR_NOT_INITIALIZED) each(CUDA_ERROR_NO_DEVICE)                                   \
    each(CUDA_ERROR_INVALID_DEVICE) each(CUDA_ERROR_INVALID_CONTEXT)                              \
    each(CUDA_ERROR_INVALID_HANDLE) each(CUDA_ERROR_ILLEGAL_STATE) each(CUDA_ERROR_NOT_FOUND)     \
    each(CUDA_ERROR_NOT_READY) each(CUDA_ERROR_ILLEGAL_ADDRESS) each(CUDA_ERROR_LAUNCH_FAILED)    \
    each(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED)                                               \
    each(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED) each(CUDA_ERROR_NOT_PERMITTED)                    \
    each(CUDA_ERROR_NOT_SUPPORTED) each(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)                    \
    each(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) each(CUDA_ERROR_STREAM_CAPTURE_MERGE)             \
    each(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED) each(CUDA_ERROR_STREAM_CAPTURE_UNJOINED)            \
    each(CUDA_ERROR_STREAM_CAPTURE_ISOLATION) each(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)            \
    each(CUDA_ERROR_CAPTURED_EVENT) each(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)                  \
    each(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE) each(CUDA_ERROR_DEVICE_UNAVAILABLE)                \
    each(CUDA_ERROR_ECC_UNCORRECTABLE) each(CUDA_ERROR_HARDWARE_STACK_ERROR)                      \
    each(CUDA_ERROR_UNKNOWN)

CUresult cuGetErrorName(CUresult error, const char **name) {
    switch (error) {
#define NAME(value)                                                                               \
    case value: *name = #value; return CUDA_SUCCESS;
        ERRORS(NAME)
        default: *name = NULL; return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    CUresult result = cuGetErrorName(error, text);
    if (!result) *text += strlen("CUDA_");
    return result;
}

#define ENTRIES(each)                                                                             \
    each(cuInit) each(cuDriverGetVersion) each(cuGetErrorName) each(cuGetErrorString)             \
    each(cuGetProcAddress)                                                                        \
    each(cuDeviceGetCount) each(cuDeviceGet) each(cuDeviceGetName) each(cuDeviceGetUuid)          \
    each(cuDeviceGetPCIBusId) each(cuDeviceTotalMem) each(cuDeviceGetAttribute)                   \
    each(cuDeviceCanAccessPeer) each(cuCtxEnablePeerAccess)                                       \
    each(cuDevicePrimaryCtxRetain) each(cuDevicePrimaryCtxRelease)                                \
    each(cuDevicePrimaryCtxGetState) each(cuCtxSetCurrent) each(cuCtxGetCurrent)                  \
    each(cuCtxPushCurrent) each(cuCtxPopCurrent) each(cuCtxGetDevice) each(cuCtxGetFlags)         \
    each(cuCtxGetId) each(cuCtxGetApiVersion) each(cuCtxGetStreamPriorityRange)                   \
    each(cuCtxSynchronize) each(cuPointerGetAttribute) each(cuPointerGetAttributes)               \
    each(cuMemAlloc) each(cuMemFree) each(cuMemGetInfo) each(cuMemGetAddressRange)                \
    each(cuMemHostAlloc) each(cuMemAllocHost) each(cuMemFreeHost) each(cuMemHostRegister)         \
    each(cuMemHostUnregister) each(cuMemHostGetDevicePointer) each(cuMemHostGetFlags)             \
    each(cuMemcpyHtoDAsync) each(cuMemcpyDtoHAsync) each(cuMemcpyDtoDAsync) each(cuMemcpyAsync)   \
    each(cuMemcpyPeerAsync) each(cuMemcpyHtoD) each(cuMemcpyDtoH) each(cuMemcpyDtoD)              \
    each(cuMemcpy) each(cuMemcpy2DAsync) each(cuMemcpy3DAsync)                                    \
    each(cuMemsetD8Async) each(cuMemsetD16Async) each(cuMemsetD32Async)                           \
    each(cuMemsetD2D8Async) each(cuMemsetD2D16Async) each(cuMemsetD2D32Async)                     \
    each(cuMemsetD8) each(cuMemsetD16) each(cuMemsetD32)                                          \
    each(cuMemPoolCreate) each(cuMemPoolDestroy) each(cuMemGetDefaultMemPool)                     \
    each(cuMemGetMemPool) each(cuDeviceGetDefaultMemPool) each(cuDeviceGetMemPool)                \
    each(cuDeviceSetMemPool) each(cuMemPoolGetAttribute) each(cuMemPoolSetAttribute)              \
    each(cuMemPoolTrimTo) each(cuMemPoolSetAccess) each(cuMemPoolGetAccess)                       \
    each(cuMemAllocFromPoolAsync) each(cuMemAllocAsync) each(cuMemFreeAsync)                      \
    each(cuStreamCreateWithPriority) each(cuStreamCreate) each(cuStreamDestroy)                   \
    each(cuStreamSynchronize) each(cuStreamQuery) each(cuStreamGetFlags)                          \
    each(cuStreamGetPriority) each(cuStreamGetId) each(cuStreamGetDevice) each(cuStreamGetCtx)    \
    each(cuStreamWaitEvent) each(cuEventCreate) each(cuEventDestroy) each(cuEventRecord)          \
    each(cuEventRecordWithFlags) each(cuEventSynchronize) each(cuEventQuery)                      \
    each(cuEventElapsedTime)                                                                      \
    each(cuStreamBeginCapture) each(cuStreamEndCapture) each(cuStreamIsCapturing)                 \
    each(cuStreamGetCaptureInfo) each(cuStreamUpdateCaptureDependencies)                          \
    each(cuThreadExchangeStreamCaptureMode)                                                       \
    each(cuGraphCreate) each(cuGraphAddHostNode) each(cuGraphAddEmptyNode) each(cuGraphGetNodes)  \
    each(cuGraphNodeGetType) each(cuGraphDebugDotPrint) each(cuGraphInstantiateWithFlags)         \
    each(cuGraphInstantiateWithParams) each(cuGraphUpload) each(cuGraphLaunch)                    \
    each(cuGraphExecUpdate) each(cuGraphExecDestroy) each(cuGraphDestroy)                         \
    each(cuUserObjectCreate) each(cuUserObjectRetain) each(cuUserObjectRelease)                   \
    each(cuGraphRetainUserObject) each(cuGraphReleaseUserObject)                                  \
    each(cuLaunchHostFunc) each(cuModuleLoadData) each(cuLibraryLoadData) each(cuLaunchKernel)    \
    each(cuLaunchKernelEx)

typedef struct {
    const char *name; /* with its version, as the library exports it: cuMemAlloc_v2 */
    void *address;
} Entry;

/* Two steps, so that the header's macros turn names into those of the newest version. */
#define TEXT(name) #name
#define ENTRY(name) {TEXT(name), (void *)name},

static const Entry entries[] = {ENTRIES(ENTRY)};

/* A name as asked for is that of an entry, or that of an entry without its version. */
static bool matches(const char *asked, const char *name) {
    size_t length = strlen(asked);
    if (strncmp(asked, name, length)) return false;
    const char *rest = name + length;
    return !*rest || (rest[0] == '_' && rest[1] == 'v' && rest[2] >= '2' && rest[2] <= '9');
}

CUresult cuGetProcAddress(const char *symbol, void **found, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *status) {
    (void)version;
    (void)flags;
    *found = NULL;
    if (status) *status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        if (matches(symbol, entries[i].name)) {
            *found = entries[i].address;
            if (status) *status = CU_GET_PROC_ADDRESS_SUCCESS;
            return CUDA_SUCCESS;
        }
    if (getenv("LTX2RT_SIMULATOR_TRACE")) fprintf(stderr, "not simulated: %s\n", symbol);
    return CUDA_ERROR_NOT_FOUND;
}
