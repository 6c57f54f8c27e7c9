/* Memory pools: allocation in stream order, of device memory and of pinned memory. */
#include "simulator.h"

#include <stdlib.h>

static Pool *make_pool(int device) {
    Pool *pool = calloc(1, sizeof *pool);
    *pool = (Pool){.id = new_id(), .device = device};
    append(&sim.pools, pool);
    return pool;
}

static Pool *find_pool(CUmemoryPool handle) { return find_by_id(&sim.pools, (uintptr_t)handle); }

static CUmemoryPool handle_of(const Pool *pool) { return (CUmemoryPool)(uintptr_t)pool->id; }

static Pool *default_pool(int device) {
    if (!sim.devices[device].pool) sim.devices[device].pool = make_pool(device);
    return sim.devices[device].pool;
}

static Pool *host_pool(void) {
    for (size_t i = 0; i < sim.pools.count; i++)
        if (((Pool *)sim.pools.items[i])->device < 0) return sim.pools.items[i];
    return make_pool(-1);
}

static CUresult pool_at(const CUmemLocation *location, CUmemAllocationType type,
                        CUmemoryPool *pool) {
    if (type != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_NOT_SUPPORTED;
    bool on_device = location->type == CU_MEM_LOCATION_TYPE_DEVICE;
    if (on_device && location->id >= sim.device_count) return CUDA_ERROR_INVALID_DEVICE;
    *pool = handle_of(on_device ? default_pool(location->id) : host_pool());
    return CUDA_SUCCESS;
}

CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *properties) {
    ENTER;
    if (properties->allocType != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_NOT_SUPPORTED;
    bool on_device = properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    *pool = handle_of(make_pool(on_device ? properties->location.id : -1));
    return CUDA_SUCCESS;
}

CUresult cuMemPoolDestroy(CUmemoryPool handle) {
    ENTER;
    return find_pool(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemGetDefaultMemPool(CUmemoryPool *pool, CUmemLocation *location,
                                CUmemAllocationType type) {
    ENTER;
    return pool_at(location, type, pool);
}

CUresult cuMemGetMemPool(CUmemoryPool *pool, CUmemLocation *location, CUmemAllocationType type) {
    ENTER;
    return pool_at(location, type, pool);
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device) {
    ENTER;
    if (device < 0 || device >= sim.device_count) return CUDA_ERROR_INVALID_DEVICE;
    *pool = handle_of(default_pool(device));
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device) {
    return cuDeviceGetDefaultMemPool(pool, device);
}

CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool handle) {
    ENTER;
    Pool *pool = find_pool(handle);
    if (!pool || pool->device != device) return CUDA_ERROR_INVALID_VALUE;
    sim.devices[device].pool = pool;
    return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value) {
    ENTER;
    Pool *pool = find_pool(handle);
    if (!pool) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
        case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: *(cuuint64_t *)value = pool->threshold; break;
        case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
        case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT: *(cuuint64_t *)value = pool->used; break;
        case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: *(cuuint64_t *)value = pool->high; break;
        default: *(int *)value = 1;
    }
    return CUDA_SUCCESS;
}

CUresult cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value) {
    ENTER;
    Pool *pool = find_pool(handle);
    if (!pool) return CUDA_ERROR_INVALID_VALUE;
    if (attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) pool->threshold = *(cuuint64_t *)value;
    return CUDA_SUCCESS;
}

CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t bytes) {
    ENTER;
    (void)bytes;
    return find_pool(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc *access, size_t count) {
    ENTER;
    (void)access;
    (void)count;
    return find_pool(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool handle,
                            CUmemLocation *location) {
    ENTER;
    (void)location;
    *flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return find_pool(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult order_block(Kind kind, Block *block, Stream *stream) {
    Work work = {.kind = kind, .device = stream->device, .block = block, .range_count = 1};
    work.ranges = calloc(1, sizeof *work.ranges);
    work.ranges[0] = (Range){block->start, block->bytes, 1, 0};
    return enqueue(stream, &work, NULL);
}

static CUresult allocate_from(Pool *pool, size_t bytes, Stream *stream, CUdeviceptr *address) {
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    if (stream->capture) return break_capture(stream->capture, "cuMemAllocAsync");
    Block *block;
    if (pool->device < 0) {
        void *memory = pin_block(bytes, pool);
        if (!memory) return CUDA_ERROR_OUT_OF_MEMORY;
        block = find_pinned((uintptr_t)memory);
        sim.devices[stream->device].counters.host_allocations++;
    } else {
        CUresult result = allocate_block(pool->device, bytes, &block);
        if (result == CUDA_ERROR_OUT_OF_MEMORY && !inside_callback) {
            wait_for_device(pool->device); /* what was freed in stream order comes back */
            result = allocate_block(pool->device, bytes, &block);
        }
        if (result) return result;
        block->pool = pool;
        block->from_pool = true;
    }
    pool->used += bytes;
    if (pool->used > pool->high) pool->high = pool->used;
    *address = block->start;
    return order_block(ALLOCATE, block, stream);
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *address, size_t bytes, CUmemoryPool handle,
                                 CUstream stream) {
    ENTER_CONTEXT;
    Pool *pool = find_pool(handle);
    if (!pool) return CUDA_ERROR_INVALID_VALUE;
    return allocate_from(pool, bytes, find_stream(stream), address);
}

CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream stream) {
    ENTER_CONTEXT;
    return allocate_from(default_pool(current_device), bytes, find_stream(stream), address);
}

CUresult cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
    ENTER;
    Block *block = in_device_space(address) ? find_block(address) : find_pinned(address);
    if (block && block->generation != sim.generation) return CUDA_SUCCESS;
    Stream *stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!block || !block->live || block->start != address) return CUDA_ERROR_INVALID_VALUE;
    if (block->device < 0) sim.devices[stream->device].counters.host_frees++;
    return order_block(RELEASE, block, stream);
}
