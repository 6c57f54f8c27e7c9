/* What one piece of work does: check it, count it, carry it out. */
#define _GNU_SOURCE
#include "simulator.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

CUresult carry_out(Op *op);
CUresult check_work(const Work *work);
void stage(Op *op);
void count_work(const Work *work, bool from_graph);

/* The pointers of a copy are looked at when it is enqueued. */
CUresult check_work(const Work *work) {
    for (size_t i = 0; i < work->range_count && work->kind != CALL; i++) {
        const Range *range = &work->ranges[i];
        if (!range->start) return CUDA_ERROR_INVALID_VALUE;
        if (!in_device_space(range->start)) continue;
        Block *block = find_block(range->start);
        if (!block || !block->live || range->start - block->start + range->bytes > block->bytes)
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

void count_work(const Work *work, bool from_graph) {
    Counters *counters = &sim.devices[work->device].counters;
    uint64_t bytes = work->bytes * work->rows;
    if (from_graph) counters->graph_operations++;
    if (work->kind == FILL) counters->fills++;
    if (work->kind == CALL && work->callback) counters->launches++;
    if (work->kind == CALL && work->host_function) counters->host_functions++;
    if (work->kind != COPY) return;
    switch (work->direction) {
        case HOST_TO_DEVICE: counters->htod_calls++, counters->htod_bytes += bytes; break;
        case DEVICE_TO_HOST: counters->dtoh_calls++, counters->dtoh_bytes += bytes; break;
        case ON_DEVICE: counters->dtod_calls++, counters->dtod_bytes += bytes; break;
        case PEER: counters->peer_calls++, counters->peer_bytes += bytes; break;
        case ON_HOST: break;
    }
    if (!work->pageable) return;
    counters->pageable_calls++;
    counters->pageable_bytes += bytes;
    if (!work->waited && (work->direction == DEVICE_TO_HOST || bytes > STAGING_BYTES))
        counters->hidden_synchronizations++;
}

/* Pageable memory: what goes up is read now, and where something comes down must not be read before
 * it is there. */
void stage(Op *op) {
    Work *work = &op->work;
    if (work->kind != COPY || !work->pageable || op->from_graph) return;
    if (work->direction == HOST_TO_DEVICE) {
        op->staged = malloc(work->bytes * work->rows);
        for (uint64_t row = 0; row < work->rows; row++)
            memcpy((char *)op->staged + row * work->bytes,
                   (const char *)(uintptr_t)(work->from + row * work->from_pitch), work->bytes);
    } else if (work->direction == DEVICE_TO_HOST) {
        for (uint64_t row = 0; row < work->rows; row++)
            memset((char *)(uintptr_t)(work->to + row * work->to_pitch), POISON, work->bytes);
    }
}

static CUresult fault(const Op *op, uint64_t address, const char *reason) {
    problem("operation #%llu (%s) touches %#llx, %s", (unsigned long long)op->id,
            op->work.label[0] ? op->work.label : op->work.kind == COPY ? "copy" : "fill",
            (unsigned long long)address, reason);
    return CUDA_ERROR_ILLEGAL_ADDRESS;
}

/* Copy to an array that may be gone by now: without a crash if its pages are. */
static bool write_pageable(void *target, void *source, uint64_t bytes) {
    struct iovec from = {source, bytes}, to = {target, bytes};
    ssize_t written = process_vm_writev(getpid(), &from, 1, &to, 1, 0);
    if (written < 0 && errno != EFAULT) {
        memmove(target, source, bytes); /* not allowed here */
        return true;
    }
    return written == (ssize_t)bytes;
}

static CUresult carry_out_copy(Op *op) {
    Work *work = &op->work;
    const char *reason;
    if (!sim.has_contents && work->direction != ON_HOST) return CUDA_SUCCESS;
    for (uint64_t row = 0; row < work->rows; row++) {
        uint64_t to = work->to + row * work->to_pitch, from = work->from + row * work->from_pitch;
        void *target = translate(to, work->bytes, -1, &reason);
        if (!target) return fault(op, to, reason);
        void *source = op->staged ? (char *)op->staged + row * work->bytes
                                  : translate(from, work->bytes, -1, &reason);
        if (!source) return fault(op, from, reason);
        if (work->pageable && work->direction == DEVICE_TO_HOST) {
            if (!write_pageable(target, source, work->bytes))
                return fault(op, to, "host memory that is gone");
        } else {
            memmove(target, source, work->bytes);
        }
    }
    return CUDA_SUCCESS;
}

static CUresult carry_out_fill(Op *op) {
    Work *work = &op->work;
    const char *reason;
    if (!sim.has_contents) return CUDA_SUCCESS;
    for (uint64_t row = 0; row < work->rows; row++) {
        uint64_t to = work->to + row * work->to_pitch;
        char *target = translate(to, work->bytes, -1, &reason);
        if (!target) return fault(op, to, reason);
        for (uint64_t i = 0; i < work->bytes; i += work->width)
            memcpy(target + i, &work->value, work->width);
    }
    return CUDA_SUCCESS;
}

static CUresult carry_out_call(Op *op) {
    const char *reason;
    for (size_t i = 0; sim.has_contents && i < op->work.range_count; i++) {
        Range *range = &op->work.ranges[i];
        if (!translate(range->start, range->bytes, op->work.device, &reason))
            return fault(op, range->start, reason);
    }
    int locked = 1, failed = 0;
    unlock_simulator(&locked);
    inside_callback = true;
    if (op->work.callback)
        failed = op->work.callback(op->work.argument);
    else
        op->work.host_function(op->work.argument);
    inside_callback = false;
    lock_simulator();
    if (failed == 1) problem("operation #%llu (%s) failed", (unsigned long long)op->id, op->work.label);
    return failed == 1 ? CUDA_ERROR_LAUNCH_FAILED : (CUresult)failed; /* others: a test wants it */
}

CUresult carry_out(Op *op) {
    Block *block = op->work.block;
    switch (op->work.kind) {
        case COPY: return carry_out_copy(op);
        case FILL: return carry_out_fill(op);
        case CALL: return carry_out_call(op);
        case RELEASE:
            if (block->pool && block->pool->used >= block->bytes) block->pool->used -= block->bytes;
            if (block->device < 0)
                unpin_block(block);
            else
                free_block(block);
            return CUDA_SUCCESS;
        default: return CUDA_SUCCESS;
    }
}
