/* Streams, events and synchronisation. */
#include "simulator.h"

#include <stdlib.h>

Stream *make_stream(int device, uint32_t flags, int priority) {
    uint32_t lane = take_lane();
    if (lane == MAX_LANES) return NULL;
    Stream *stream = calloc(1, sizeof *stream);
    *stream = (Stream){.id = new_id(),
                       .device = device,
                       .flags = flags,
                       .priority = priority,
                       .lane = lane,
                       .blocking = !(flags & CU_STREAM_NON_BLOCKING)};
    append(&sim.streams, stream);
    return stream;
}

Stream *find_stream(CUstream handle) {
    if (handle == NULL || handle == CU_STREAM_LEGACY)
        return current_device < 0 ? NULL : sim.devices[current_device].legacy;
    if (handle == CU_STREAM_PER_THREAD)
        return current_device < 0 ? NULL : sim.devices[current_device].per_thread;
    return find_by_id(&sim.streams, (uintptr_t)handle);
}

#define ENTER_STREAM                                                                              \
    ENTER;                                                                                        \
    Stream *stream = find_stream(handle);                                                         \
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;                                                \
    Counters *counters = &sim.devices[stream->device].counters;                                   \
    (void)counters;                                                                               \
    if (sim.devices[stream->device].lost) return sim.devices[stream->device].lost

CUresult cuStreamCreateWithPriority(CUstream *handle, unsigned int flags, int priority) {
    ENTER_CONTEXT;
    Stream *stream = make_stream(current_device, flags, priority);
    if (!stream) return CUDA_ERROR_OUT_OF_MEMORY;
    *handle = (CUstream)(uintptr_t)stream->id;
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *handle, unsigned int flags) {
    return cuStreamCreateWithPriority(handle, flags, 0);
}

/* Its work goes on. */
CUresult cuStreamDestroy(CUstream handle) {
    ENTER;
    Stream *stream = find_by_id(&sim.streams, (uintptr_t)handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture && stream->capture->origin == stream)
        break_capture(stream->capture, "cuStreamDestroy");
    else if (stream->capture)
        remove_item(&stream->capture->streams, stream);
    if (stream->last && stream->last->state != DONE) {
        Work work = {.kind = JOIN, .device = stream->device};
        List before = {0};
        append(&before, stream->last);
        append(&before, sim.devices[stream->device].per_thread->last);
        /* so that synchronising the device still waits for it */
        Stream *heir = sim.devices[stream->device].per_thread;
        heir->last = enqueue_after(heir, &work, heir->lane, &before);
        clear_list(&before);
    }
    sim.lane_taken[stream->lane] = false;
    remove_item(&sim.streams, stream);
    clear_list(&stream->waits);
    clear_list(&stream->tips);
    free(stream);
    return CUDA_SUCCESS;
}

static CUresult refuse_capturing(Stream *stream, const char *what) {
    if (!stream->capture) return CUDA_SUCCESS;
    return break_capture(stream->capture, what);
}

CUresult cuStreamSynchronize(CUstream handle) {
    ENTER_STREAM;
    CUresult refused = refuse_capturing(stream, "cuStreamSynchronize");
    if (refused) return refused;
    counters->synchronizations++;
    return wait_for_stream(stream);
}

CUresult cuStreamQuery(CUstream handle) {
    ENTER_STREAM;
    CUresult refused = refuse_capturing(stream, "cuStreamQuery");
    if (refused) return refused;
    bool done = advance_towards(stream->last);
    if (sim.devices[stream->device].lost) return sim.devices[stream->device].lost;
    return done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuStreamGetFlags(CUstream handle, unsigned int *flags) {
    ENTER_STREAM;
    *flags = stream->flags;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetPriority(CUstream handle, int *priority) {
    ENTER_STREAM;
    *priority = stream->priority;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetId(CUstream handle, unsigned long long *id) {
    ENTER_STREAM;
    *id = stream->id;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetDevice(CUstream handle, CUdevice *found) {
    ENTER_STREAM;
    *found = stream->device;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetCtx(CUstream handle, CUcontext *context) {
    ENTER_STREAM;
    *context = (CUcontext)&sim.devices[stream->device];
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void) {
    ENTER_CONTEXT;
    Capture *capture = capture_in_device(current_device);
    if (capture) return break_capture(capture, "cuCtxSynchronize");
    device->counters.synchronizations++;
    return wait_for_device(current_device);
}

CUresult cuEventCreate(CUevent *handle, unsigned int flags) {
    ENTER_CONTEXT;
    Event *event = calloc(1, sizeof *event);
    *event = (Event){.id = new_id(), .device = current_device, .flags = flags};
    append(&sim.events, event);
    *handle = (CUevent)(uintptr_t)event->id;
    return CUDA_SUCCESS;
}

static Event *find_event(CUevent handle) {
    return find_by_id(&sim.events, (uintptr_t)handle);
}

CUresult cuEventDestroy(CUevent handle) {
    ENTER;
    Event *event = find_event(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    remove_item(&sim.events, event);
    clear_list(&event->tips);
    free(event);
    return CUDA_SUCCESS;
}

CUresult cuEventRecordWithFlags(CUevent event_handle, CUstream handle, unsigned int flags) {
    ENTER_STREAM;
    (void)flags;
    Event *event = find_event(event_handle);
    if (!event || event->device != stream->device) return CUDA_ERROR_INVALID_HANDLE;
    counters->event_records++;
    event->capture = stream->capture;
    if (stream->capture) {
        if (stream->capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        copy_list(&event->tips, &stream->tips);
        return CUDA_SUCCESS;
    }
    Work work = {.kind = EVENT, .device = stream->device};
    return enqueue(stream, &work, &event->op);
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    return cuEventRecordWithFlags(event, stream, 0);
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned int flags) {
    ENTER_STREAM;
    (void)flags;
    Event *event = find_event(event_handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    counters->event_waits++;
    if (event->capture) {
        if (stream->capture && stream->capture != event->capture) {
            break_capture(stream->capture, "waiting for an event of another capture");
            return CUDA_ERROR_STREAM_CAPTURE_MERGE;
        }
        if (!stream->capture) { /* the stream joins the capture */
            stream->capture = event->capture;
            append(&event->capture->streams, stream);
        }
        for (size_t i = 0; i < event->tips.count; i++) {
            remove_item(&stream->tips, event->tips.items[i]);
            append(&stream->tips, event->tips.items[i]);
        }
        return CUDA_SUCCESS;
    }
    if (stream->capture) {
        break_capture(stream->capture, "waiting for an event that was not captured");
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (event->op) append(&stream->waits, event->op);
    return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent handle) {
    ENTER;
    Event *event = find_event(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture) return CUDA_ERROR_CAPTURED_EVENT;
    sim.devices[event->device].counters.synchronizations++;
    return wait_for(&event->op, 1, event->device);
}

CUresult cuEventQuery(CUevent handle) {
    ENTER;
    Event *event = find_event(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture) return CUDA_ERROR_CAPTURED_EVENT;
    bool done = advance_towards(event->op);
    if (sim.devices[event->device].lost) return sim.devices[event->device].lost;
    return done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

/* Every executed operation takes a microsecond. */
CUresult cuEventElapsedTime(float *milliseconds, CUevent start_handle, CUevent end_handle) {
    ENTER;
    Event *start = find_event(start_handle), *end = find_event(end_handle);
    if (!start || !end || !start->op || !end->op) return CUDA_ERROR_INVALID_HANDLE;
    if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    if (start->op->state != DONE || end->op->state != DONE) return CUDA_ERROR_NOT_READY;
    *milliseconds = ((float)end->op->order - (float)start->op->order) * 1e-3f;
    return CUDA_SUCCESS;
}
