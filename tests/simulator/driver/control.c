/* What tests call through ctypes: set up, look, end. */
#include "simulator.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    int32_t device_count, driver_version, schedule, has_contents, free_waits, unused;
    uint64_t seed;
    uint64_t capacity[MAX_DEVICES];
    int32_t major[MAX_DEVICES], minor[MAX_DEVICES];
} Setup;

typedef struct {
    uint64_t id, order, stream, bytes, to, from;
    int32_t kind, direction, device, from_graph, pageable, state;
    char label[LABEL];
} Line;

static void forget(void) {
    for (size_t i = 0; i < sim.blocks.count; i++) {
        Block *block = sim.blocks.items[i];
        if (block->live) free_block(block);
    }
    for (size_t i = 0; i < sim.pinned.count; i++) {
        Block *block = sim.pinned.items[i];
        if (block->registered) block->live = false;
    }
    for (size_t i = 0; i < sim.ops.count; i++) {
        Op *op = sim.ops.items[i];
        free_work(&op->work);
        free(op->staged);
        clear_list(&op->before);
        clear_list(&op->racers);
        free(op);
    }
    for (size_t i = 0; i < sim.problems.count; i++) free(sim.problems.items[i]);
    sim.ops.count = sim.unobserved.count = sim.problems.count = 0;
    sim.streams.count = sim.events.count = sim.pools.count = 0;
    sim.graphs.count = sim.executables.count = sim.captures.count = 0;
    sim.oldest = sim.newest = NULL;
}

/* Begin a new simulation. What an earlier one made may still be freed, with no effect. */
void simulator_start(const Setup *setup) {
    LOCKED;
    sim.generation++;
    forget();
    sim.on = true;
    sim.device_count = setup->device_count;
    sim.driver_version = setup->driver_version;
    sim.schedule = (Schedule)setup->schedule;
    sim.has_contents = setup->has_contents;
    sim.free_waits = setup->free_waits;
    sim.random = setup->seed * 2654435769u + 88172645463325252ull;
    sim.calls = sim.executed = 0;
    memset(sim.lane_taken, 0, sizeof sim.lane_taken);
    memset(sim.sequences, 0, sizeof sim.sequences);
    for (int i = 0; i < MAX_DEVICES; i++) {
        Device *device = &sim.devices[i];
        device->capacity = setup->capacity[i];
        device->major = setup->major[i];
        device->minor = setup->minor[i];
        device->lost = CUDA_SUCCESS;
        device->counters = (Counters){0};
        device->pool = NULL;
        if (!device->next_address) device->next_address = DEVICE_SPACE + (uint64_t)i * DEVICE_SPAN;
        device->legacy = make_stream(i, CU_STREAM_DEFAULT, 0);
        device->per_thread = make_stream(i, CU_STREAM_DEFAULT, 0);
    }
}

/* No device until the next start. */
void simulator_stop(void) {
    LOCKED;
    sim.generation++;
    forget();
    sim.on = false;
}

void simulator_counters(int device, Counters *counters) {
    LOCKED;
    *counters = sim.devices[device].counters;
}

uint64_t simulator_calls(void) {
    LOCKED;
    return sim.calls;
}

void simulator_reset_counters(void) {
    LOCKED;
    sim.calls = 0;
    for (int i = 0; i < MAX_DEVICES; i++) {
        Counters *counters = &sim.devices[i].counters;
        uint64_t live = counters->live_bytes;
        *counters = (Counters){.live_bytes = live, .peak_bytes = live};
    }
}

size_t simulator_problem_count(void) {
    LOCKED;
    return sim.problems.count;
}

const char *simulator_problem(size_t index) {
    LOCKED;
    return index < sim.problems.count ? sim.problems.items[index] : "";
}

void simulator_clear_problems(void) {
    LOCKED;
    for (size_t i = 0; i < sim.problems.count; i++) free(sim.problems.items[i]);
    sim.problems.count = 0;
}

size_t simulator_op_count(void) {
    LOCKED;
    return sim.ops.count;
}

int simulator_op(size_t index, Line *line) {
    LOCKED;
    if (index >= sim.ops.count) return 0;
    const Op *op = sim.ops.items[index];
    *line = (Line){.id = op->id,
                   .order = op->order,
                   .stream = op->stream,
                   .bytes = op->work.bytes * op->work.rows,
                   .to = op->work.to,
                   .from = op->work.from,
                   .kind = op->work.kind,
                   .direction = op->work.direction,
                   .device = op->work.device,
                   .from_graph = op->from_graph,
                   .pageable = op->work.pageable,
                   .state = op->state};
    memcpy(line->label, op->work.label, LABEL);
    return 1;
}

/* Whether streams and events make the first op come before the second. */
int simulator_ordered(uint64_t first, uint64_t second) {
    LOCKED;
    const Op *a = find_by_id(&sim.ops, first), *b = find_by_id(&sim.ops, second);
    return a && b && a != b && comes_before(a, b);
}

/* Where device memory lies in this process, for callbacks and for looking in from tests. */
void *simulator_pointer(uint64_t address, uint64_t bytes, int device) {
    LOCKED;
    const char *reason;
    return translate(address, bytes, device, &reason);
}

/* Whether an address belongs to this simulation and how far its allocation goes on from there. */
uint64_t simulator_extent(uint64_t address) {
    LOCKED;
    Block *block = in_device_space(address) ? find_block(address) : find_pinned(address);
    return block && block->live ? block->bytes - (address - block->start) : 0;
}

int simulator_stream_device(CUstream handle) {
    LOCKED;
    Stream *stream = find_stream(handle);
    return stream ? stream->device : -1;
}

int simulator_stream_captures(CUstream handle) {
    LOCKED;
    Stream *stream = find_stream(handle);
    return stream && stream->capture != NULL;
}

void simulator_report(const char *text) {
    LOCKED;
    problem("%s", text);
}
