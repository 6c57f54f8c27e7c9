/* Device memory and pinned host memory: allocation, addresses, poison. */
#include "simulator.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 512, PAGE = 4096 };

bool in_device_space(uint64_t address) {
    return address >= DEVICE_SPACE && address < DEVICE_SPACE + MAX_DEVICES * DEVICE_SPAN;
}

/* The last block that starts at or before an address and holds it. Addresses are never given out
 * again, so a freed block stays known. */
Block *find_block(uint64_t address) {
    Block *found = NULL;
    size_t low = 0, high = sim.blocks.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        Block *block = sim.blocks.items[middle];
        if (block->start <= address) {
            found = block;
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return found && address - found->start < (found->bytes ? found->bytes : 1) ? found : NULL;
}

Block *find_pinned(uint64_t address) {
    for (size_t i = 0; i < sim.pinned.count; i++) {
        Block *block = sim.pinned.items[i];
        if (block->live && address >= block->start && address - block->start < block->bytes)
            return block;
    }
    return NULL;
}

static Block *freed_pinned(uint64_t address) {
    for (size_t i = 0; i < sim.pinned.count; i++) {
        Block *block = sim.pinned.items[i];
        if (!block->live && !block->registered && address >= block->start &&
            address - block->start < block->bytes)
            return block;
    }
    return NULL;
}

/* Where bytes lie in this process; NULL with a reason where a GPU would fault. */
void *translate(uint64_t address, uint64_t bytes, int device, const char **reason) {
    *reason = "";
    if (!in_device_space(address)) {
        Block *pinned = find_pinned(address);
        if (!pinned && freed_pinned(address)) {
            *reason = "host memory that was freed";
            return NULL;
        }
        if (pinned && address - pinned->start + bytes > pinned->bytes) {
            *reason = "past the end of pinned memory";
            return NULL;
        }
        return (void *)(uintptr_t)address;
    }
    Block *block = find_block(address);
    if (!block) {
        *reason = "memory that was never allocated";
    } else if (!block->live) {
        *reason = "memory that was freed";
    } else if (address - block->start + bytes > block->bytes) {
        *reason = "past the end of its allocation";
    } else if (device >= 0 && block->device != device) {
        *reason = "memory of another device";
    } else {
        if (!block->memory) *reason = "memory without contents";
        return block->memory ? (char *)block->memory + (address - block->start) : NULL;
    }
    return NULL;
}

static void *map_poisoned(uint64_t bytes) {
    uint64_t size = (bytes + PAGE - 1) / PAGE * PAGE;
    void *memory = mmap(NULL, size ? size : PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    memset(memory, POISON, bytes);
    return memory;
}

static void unmap(void *memory, uint64_t bytes) {
    if (memory) munmap(memory, bytes ? (bytes + PAGE - 1) / PAGE * PAGE : PAGE);
}

CUresult allocate_block(int index, uint64_t bytes, Block **made) {
    Device *device = &sim.devices[index];
    if (device->counters.live_bytes + bytes > device->capacity) return CUDA_ERROR_OUT_OF_MEMORY;
    Block *block = calloc(1, sizeof *block);
    *block = (Block){.start = device->next_address,
                     .bytes = bytes,
                     .device = index,
                     .live = true,
                     .generation = sim.generation};
    if (sim.has_contents && !(block->memory = map_poisoned(bytes))) {
        free(block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    /* a gap after every block: a read past its end finds nothing */
    device->next_address += (bytes + 2 * ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    size_t at = sim.blocks.count;
    append(&sim.blocks, block);
    while (at > 0 && ((Block *)sim.blocks.items[at - 1])->start > block->start) {
        sim.blocks.items[at] = sim.blocks.items[at - 1];
        sim.blocks.items[--at] = block;
    }
    Counters *counters = &device->counters;
    counters->allocations++;
    counters->live_bytes += bytes;
    if (counters->live_bytes > counters->peak_bytes) counters->peak_bytes = counters->live_bytes;
    *made = block;
    return CUDA_SUCCESS;
}

CUresult free_block(Block *block) {
    block->live = false;
    unmap(block->memory, block->bytes);
    block->memory = NULL;
    if (block->generation != sim.generation) return CUDA_SUCCESS; /* of a simulation that ended */
    sim.devices[block->device].counters.frees++;
    sim.devices[block->device].counters.live_bytes -= block->bytes;
    return CUDA_SUCCESS;
}

void *pin_block(uint64_t bytes, Pool *pool) {
    void *memory = map_poisoned(bytes);
    if (!memory) return NULL;
    Block *block = calloc(1, sizeof *block);
    *block = (Block){.start = (uintptr_t)memory,
                     .bytes = bytes,
                     .device = -1,
                     .live = true,
                     .generation = sim.generation,
                     .memory = memory,
                     .pool = pool,
                     .from_pool = pool != NULL};
    append(&sim.pinned, block);
    return memory;
}

/* Freed pinned memory stays mapped, poisoned: an array that still looks at it reads NaN. */
void unpin_block(Block *block) {
    block->live = false;
    if (!block->registered) memset(block->memory, POISON, block->bytes);
}

/* Captured streams: what allocates or waits is refused by the driver in the modes that watch for
 * it, and is a mistake in the relaxed one. */
CUresult forbid_in_capture(const char *name) {
    for (size_t i = 0; i < sim.captures.count; i++) {
        Capture *capture = sim.captures.items[i];
        bool here = pthread_equal(capture->thread, pthread_self());
        if (capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) {
            if (here) problem("%s while a stream is being captured", name);
        } else if (here || capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL) {
            return break_capture(capture, name);
        }
    }
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr *address, size_t bytes) {
    ENTER_CONTEXT;
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    CUresult refused = forbid_in_capture("cuMemAlloc");
    if (refused) return refused;
    Block *block;
    CUresult result = allocate_block(current_device, bytes, &block);
    if (!result) *address = block->start;
    return result;
}

CUresult cuMemFree(CUdeviceptr address) {
    ENTER;
    Block *block = find_block(address);
    if (!address) return CUDA_SUCCESS;
    if (!block || block->start != address || !block->live) {
        if (block && block->generation != sim.generation) return CUDA_SUCCESS;
        problem("cuMemFree of %#llx, which is no live allocation", (unsigned long long)address);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (block->generation == sim.generation) {
        CUresult refused = forbid_in_capture("cuMemFree");
        if (refused) return refused;
        if (sim.free_waits && !inside_callback) wait_for_users(block);
    }
    return free_block(block);
}

CUresult cuMemGetInfo(size_t *free_bytes, size_t *total) {
    ENTER_CONTEXT;
    *total = device->capacity;
    *free_bytes = device->capacity - device->counters.live_bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange(CUdeviceptr *base, size_t *bytes, CUdeviceptr address) {
    ENTER_CONTEXT;
    Block *block = in_device_space(address) ? find_block(address) : find_pinned(address);
    if (!block || !block->live) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = block->start;
    if (bytes) *bytes = block->bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void **memory, size_t bytes, unsigned int flags) {
    ENTER_CONTEXT;
    (void)flags;
    CUresult refused = forbid_in_capture("cuMemHostAlloc");
    if (refused) return refused;
    *memory = pin_block(bytes, NULL);
    device->counters.host_allocations++;
    return *memory ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemAllocHost(void **memory, size_t bytes) { return cuMemHostAlloc(memory, bytes, 0); }

CUresult cuMemFreeHost(void *memory) {
    ENTER;
    Block *block = find_pinned((uintptr_t)memory);
    if (!block || block->start != (uintptr_t)memory || block->registered)
        return CUDA_ERROR_INVALID_VALUE;
    if (block->generation == sim.generation) {
        if (sim.free_waits && !inside_callback) wait_for_users(block);
        if (current_device >= 0) sim.devices[current_device].counters.host_frees++;
    }
    unpin_block(block);
    return CUDA_SUCCESS;
}

CUresult cuMemHostRegister(void *memory, size_t bytes, unsigned int flags) {
    ENTER_CONTEXT;
    (void)flags;
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    if (find_pinned((uintptr_t)memory)) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    Block *block = calloc(1, sizeof *block);
    *block = (Block){.start = (uintptr_t)memory,
                     .bytes = bytes,
                     .device = -1,
                     .live = true,
                     .registered = true,
                     .generation = sim.generation,
                     .memory = memory};
    append(&sim.pinned, block);
    device->counters.host_allocations++;
    return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void *memory) {
    ENTER;
    Block *block = find_pinned((uintptr_t)memory);
    if (!block || !block->registered) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    if (sim.free_waits && !inside_callback) wait_for_users(block);
    if (current_device >= 0) sim.devices[current_device].counters.host_frees++;
    unpin_block(block);
    return CUDA_SUCCESS;
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr *address, void *memory, unsigned int flags) {
    ENTER_CONTEXT;
    (void)flags;
    if (!find_pinned((uintptr_t)memory)) return CUDA_ERROR_INVALID_VALUE;
    *address = (uintptr_t)memory;
    return CUDA_SUCCESS;
}

CUresult cuMemHostGetFlags(unsigned int *flags, void *memory) {
    ENTER_CONTEXT;
    if (!find_pinned((uintptr_t)memory)) return CUDA_ERROR_INVALID_VALUE;
    *flags = CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE;
    return CUDA_SUCCESS;
}
