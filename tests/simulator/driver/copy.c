/* Copies and fills. */
#include "simulator.h"

#include <stdlib.h>

static Direction direction_of(uint64_t to, uint64_t from) {
    bool to_device = in_device_space(to), from_device = in_device_space(from);
    if (!to_device && !from_device) return ON_HOST;
    if (!from_device) return HOST_TO_DEVICE;
    if (!to_device) return DEVICE_TO_HOST;
    Block *target = find_block(to), *source = find_block(from);
    return target && source && target->device != source->device ? PEER : ON_DEVICE;
}

static uint64_t extent(uint64_t bytes, uint64_t rows, uint64_t pitch) {
    return rows ? (rows - 1) * pitch + bytes : 0;
}

static CUresult copy_rows(Stream *stream, uint64_t to, uint64_t to_pitch, uint64_t from,
                          uint64_t from_pitch, uint64_t bytes, uint64_t rows, Op **made) {
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!bytes || !rows) return CUDA_SUCCESS;
    if (!to || !from) return CUDA_ERROR_INVALID_VALUE;
    Direction direction = direction_of(to, from);
    uint64_t host = direction == HOST_TO_DEVICE ? from : to;
    Work work = {.kind = COPY,
                 .direction = direction,
                 .device = stream->device,
                 .pageable = (direction == HOST_TO_DEVICE || direction == DEVICE_TO_HOST) &&
                             !find_pinned(host),
                 .waited = made != NULL,
                 .to = to,
                 .from = from,
                 .bytes = bytes,
                 .rows = rows,
                 .to_pitch = to_pitch,
                 .from_pitch = from_pitch};
    bool staged = work.pageable && direction == HOST_TO_DEVICE && !stream->capture;
    work.ranges = calloc(2, sizeof *work.ranges);
    work.ranges[work.range_count++] = (Range){to, extent(bytes, rows, to_pitch), 1, 0};
    if (!staged)
        work.ranges[work.range_count++] = (Range){from, extent(bytes, rows, from_pitch), 0, 0};
    return enqueue(stream, &work, made);
}

static CUresult copy(Stream *stream, uint64_t to, uint64_t from, uint64_t bytes, Op **made) {
    return copy_rows(stream, to, bytes, from, bytes, bytes, 1, made);
}

/* The legacy default stream, and the host waits; but for copies on the device. */
static CUresult copy_and_wait(uint64_t to, uint64_t from, uint64_t bytes) {
    Op *op = NULL;
    Device *device = &sim.devices[current_device];
    CUresult result = forbid_in_capture("a copy that waits");
    if (!result) result = copy(device->legacy, to, from, bytes, &op);
    if (result || !op || op->work.direction == ON_DEVICE) return result;
    device->counters.synchronizations++;
    return wait_for(&op, 1, current_device);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    ENTER_CONTEXT;
    if (!in_device_space(to)) return CUDA_ERROR_INVALID_VALUE;
    if (in_device_space((uintptr_t)from)) return CUDA_ERROR_INVALID_VALUE;
    return copy(find_stream(stream), to, (uintptr_t)from, bytes, NULL);
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER_CONTEXT;
    if (!in_device_space(from)) return CUDA_ERROR_INVALID_VALUE;
    if (in_device_space((uintptr_t)to)) return CUDA_ERROR_INVALID_VALUE;
    return copy(find_stream(stream), (uintptr_t)to, from, bytes, NULL);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER_CONTEXT;
    if (!in_device_space(to) || !in_device_space(from)) return CUDA_ERROR_INVALID_VALUE;
    return copy(find_stream(stream), to, from, bytes, NULL);
}

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER_CONTEXT;
    return copy(find_stream(stream), to, from, bytes, NULL);
}

CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from,
                           CUcontext from_context, size_t bytes, CUstream stream) {
    ENTER_CONTEXT;
    (void)to_context;
    (void)from_context;
    if (!in_device_space(to) || !in_device_space(from)) return CUDA_ERROR_INVALID_VALUE;
    return copy(find_stream(stream), to, from, bytes, NULL);
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t bytes) {
    ENTER_CONTEXT;
    return copy_and_wait(to, (uintptr_t)from, bytes);
}

CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) {
    ENTER_CONTEXT;
    return copy_and_wait((uintptr_t)to, from, bytes);
}

CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTER_CONTEXT;
    return copy_and_wait(to, from, bytes);
}

CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTER_CONTEXT;
    return copy_and_wait(to, from, bytes);
}

static uint64_t side(CUmemorytype type, const void *host, CUdeviceptr device) {
    return type == CU_MEMORYTYPE_HOST ? (uintptr_t)host : device;
}

CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D *c, CUstream stream) {
    ENTER_CONTEXT;
    if (c->dstMemoryType == CU_MEMORYTYPE_ARRAY || c->srcMemoryType == CU_MEMORYTYPE_ARRAY)
        return CUDA_ERROR_NOT_SUPPORTED;
    uint64_t to_pitch = c->dstPitch ? c->dstPitch : c->WidthInBytes;
    uint64_t from_pitch = c->srcPitch ? c->srcPitch : c->WidthInBytes;
    if (to_pitch < c->WidthInBytes || from_pitch < c->WidthInBytes)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t to = side(c->dstMemoryType, c->dstHost, c->dstDevice);
    uint64_t from = side(c->srcMemoryType, c->srcHost, c->srcDevice);
    return copy_rows(find_stream(stream), to + c->dstY * to_pitch + c->dstXInBytes, to_pitch,
                     from + c->srcY * from_pitch + c->srcXInBytes, from_pitch, c->WidthInBytes,
                     c->Height, NULL);
}

/* One operation a slice: between its rows, and between slices, nothing is touched. */
CUresult cuMemcpy3DAsync(const CUDA_MEMCPY3D *c, CUstream stream) {
    ENTER_CONTEXT;
    if (c->dstMemoryType == CU_MEMORYTYPE_ARRAY || c->srcMemoryType == CU_MEMORYTYPE_ARRAY)
        return CUDA_ERROR_NOT_SUPPORTED;
    uint64_t to_pitch = c->dstPitch ? c->dstPitch : c->WidthInBytes;
    uint64_t from_pitch = c->srcPitch ? c->srcPitch : c->WidthInBytes;
    uint64_t to_height = c->dstHeight ? c->dstHeight : c->Height;
    uint64_t from_height = c->srcHeight ? c->srcHeight : c->Height;
    if (to_pitch < c->dstXInBytes + c->WidthInBytes || to_height < c->dstY + c->Height)
        return CUDA_ERROR_INVALID_VALUE;
    if (from_pitch < c->srcXInBytes + c->WidthInBytes || from_height < c->srcY + c->Height)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t to = side(c->dstMemoryType, c->dstHost, c->dstDevice);
    uint64_t from = side(c->srcMemoryType, c->srcHost, c->srcDevice);
    to += (c->dstZ * to_height + c->dstY) * to_pitch + c->dstXInBytes;
    from += (c->srcZ * from_height + c->srcY) * from_pitch + c->srcXInBytes;
    CUresult result = CUDA_SUCCESS;
    for (uint64_t slice = 0; slice < c->Depth && !result; slice++)
        result = copy_rows(find_stream(stream), to + slice * to_height * to_pitch, to_pitch,
                           from + slice * from_height * from_pitch, from_pitch, c->WidthInBytes,
                           c->Height, NULL);
    return result;
}

static CUresult fill(Stream *stream, uint64_t to, uint64_t pitch, uint32_t value, uint32_t width,
                     uint64_t columns, uint64_t rows, Op **made) {
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!columns || !rows) return CUDA_SUCCESS;
    Work work = {.kind = FILL,
                 .device = stream->device,
                 .to = to,
                 .to_pitch = pitch,
                 .bytes = columns * width,
                 .rows = rows,
                 .value = value,
                 .width = width,
                 .range_count = 1};
    work.ranges = calloc(1, sizeof *work.ranges);
    work.ranges[0] = (Range){to, extent(work.bytes, rows, pitch), 1, 0};
    return enqueue(stream, &work, made);
}

#define FILLS(bits, type)                                                                         \
    CUresult cuMemsetD##bits##Async(CUdeviceptr to, type value, size_t count, CUstream stream) {  \
        ENTER_CONTEXT;                                                                            \
        return fill(find_stream(stream), to, 0, value, bits / 8, count, 1, NULL);                 \
    }                                                                                             \
    CUresult cuMemsetD2D##bits##Async(CUdeviceptr to, size_t pitch, type value, size_t width,     \
                                      size_t height, CUstream stream) {                           \
        ENTER_CONTEXT;                                                                            \
        return fill(find_stream(stream), to, pitch, value, bits / 8, width, height, NULL);        \
    }                                                                                             \
    CUresult cuMemsetD##bits(CUdeviceptr to, type value, size_t count) {                          \
        ENTER_CONTEXT;                                                                            \
        CUresult refused = forbid_in_capture("cuMemsetD" #bits);                                  \
        return refused ? refused : fill(device->legacy, to, 0, value, bits / 8, count, 1, NULL);  \
    }

FILLS(8, unsigned char)
FILLS(16, unsigned short)
FILLS(32, unsigned int)
