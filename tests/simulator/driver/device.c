/* Devices, contexts and what a program asks about pointers. */
#include "simulator.h"

#include <stdio.h>
#include <string.h>

static __thread int context_stack[64];
static __thread int context_depth;

static int index_of(CUcontext context) {
    for (int i = 0; i < MAX_DEVICES; i++)
        if (context == (CUcontext)&sim.devices[i]) return i;
    return -1;
}

static CUcontext context_of(int index) {
    return index < 0 ? NULL : (CUcontext)&sim.devices[index];
}

#define CHECK_DEVICE(index)                                                                       \
    if ((index) < 0 || (index) >= sim.device_count) return CUDA_ERROR_INVALID_DEVICE

CUresult cuInit(unsigned int flags) {
    LOCKED;
    sim.calls++;
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (!sim.on) return CUDA_ERROR_NO_DEVICE;
    sim.initialised = true;
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    LOCKED;
    sim.calls++;
    if (!sim.on) return CUDA_ERROR_NO_DEVICE;
    *version = sim.driver_version;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    ENTER;
    *count = sim.device_count;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER;
    CHECK_DEVICE(ordinal);
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER;
    CHECK_DEVICE(device);
    snprintf(name, (size_t)length, "Simulated GPU %d", device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    ENTER;
    CHECK_DEVICE(device);
    memset(uuid->bytes, 0x51, UUID_BYTES);
    uuid->bytes[UUID_BYTES - 1] = (char)device;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device) {
    ENTER;
    CHECK_DEVICE(device);
    snprintf(id, (size_t)length, "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
    ENTER;
    CHECK_DEVICE(device);
    *bytes = sim.devices[device].capacity;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    ENTER;
    CHECK_DEVICE(device);
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = sim.devices[device].major; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = sim.devices[device].minor; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 4; break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
        case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: *value = 2; break;
        case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
        case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
        case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
        case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
        case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_HOST_MEMORY_POOLS_SUPPORTED: *value = 1; break;
        default: *value = 0;
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    ENTER;
    CHECK_DEVICE(device);
    CHECK_DEVICE(peer);
    *can = device != peer;
    return CUDA_SUCCESS;
}

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags) {
    ENTER_CONTEXT;
    (void)flags;
    return index_of(peer) < 0 ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER;
    CHECK_DEVICE(device);
    sim.devices[device].retained++;
    *context = context_of(device);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    ENTER;
    CHECK_DEVICE(device);
    if (!sim.devices[device].retained) return CUDA_ERROR_INVALID_CONTEXT;
    sim.devices[device].retained--;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active) {
    ENTER;
    CHECK_DEVICE(device);
    *flags = 0;
    *active = sim.devices[device].retained > 0;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    ENTER;
    int index = index_of(context);
    if (context && (index < 0 || index >= sim.device_count || !sim.devices[index].retained))
        return CUDA_ERROR_INVALID_CONTEXT;
    current_device = index;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    ENTER;
    *context = context_of(current_device);
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
    if (context_depth == 64) return CUDA_ERROR_OUT_OF_MEMORY;
    int before = current_device;
    CUresult result = cuCtxSetCurrent(context);
    if (!result) context_stack[context_depth++] = before;
    return result;
}

CUresult cuCtxPopCurrent(CUcontext *context) {
    ENTER;
    if (current_device < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (context) *context = context_of(current_device);
    current_device = context_depth ? context_stack[--context_depth] : -1;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *found) {
    ENTER_CONTEXT;
    *found = current_device;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetFlags(unsigned int *flags) {
    ENTER_CONTEXT;
    *flags = 0;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetId(CUcontext context, unsigned long long *id) {
    ENTER;
    int index = context ? index_of(context) : current_device;
    if (index < 0) return CUDA_ERROR_INVALID_CONTEXT;
    *id = (unsigned long long)index + 1;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetApiVersion(CUcontext context, unsigned int *version) {
    ENTER;
    (void)context;
    *version = (unsigned int)sim.driver_version;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    ENTER_CONTEXT;
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return CUDA_SUCCESS;
}

static CUresult describe(CUpointer_attribute attribute, CUdeviceptr address, void *value) {
    Block *block = in_device_space(address) ? find_block(address) : find_pinned(address);
    bool known = block && block->live;
    switch (attribute) {
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
            if (!known) return CUDA_ERROR_INVALID_VALUE;
            *(CUmemorytype *)value =
                block->device < 0 ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
            return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
            *(int *)value = !known ? -2 : block->device < 0 ? 0 : block->device;
            return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_CONTEXT:
            if (!known) return CUDA_ERROR_INVALID_VALUE;
            *(CUcontext *)value = context_of(block->device < 0 ? 0 : block->device);
            return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
            if (!known) return CUDA_ERROR_INVALID_VALUE;
            *(CUdeviceptr *)value = address;
            return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_HOST_POINTER:
            if (!known || block->device >= 0) return CUDA_ERROR_INVALID_VALUE;
            *(void **)value = (void *)(uintptr_t)address;
            return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
            if (!known) return CUDA_ERROR_INVALID_VALUE;
            *(CUdeviceptr *)value = block->start;
            return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
            if (!known) return CUDA_ERROR_INVALID_VALUE;
            *(size_t *)value = block->bytes;
            return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_MAPPED: *(unsigned int *)value = known; return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(unsigned int *)value = 0; return CUDA_SUCCESS;
        default: return CUDA_ERROR_NOT_SUPPORTED;
    }
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
    ENTER_CONTEXT;
    return describe(attribute, address, value);
}

/* What does not apply to a pointer becomes zero, as the driver has it. */
CUresult cuPointerGetAttributes(unsigned int count, CUpointer_attribute *attributes, void **values,
                                CUdeviceptr address) {
    ENTER_CONTEXT;
    for (unsigned int i = 0; i < count; i++) {
        CUresult result = describe(attributes[i], address, values[i]);
        if (result == CUDA_ERROR_NOT_SUPPORTED) return result;
        bool wide = attributes[i] != CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        if (result) memset(values[i], 0, wide ? sizeof(void *) : sizeof(unsigned int));
    }
    return CUDA_SUCCESS;
}
