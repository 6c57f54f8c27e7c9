/* When work runs, and in which order: as late and as unhelpfully as streams and events allow. */
#include "simulator.h"

#include <stdlib.h>
#include <string.h>

static pthread_cond_t finished = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t finished_mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t finished_count;

CUresult carry_out(Op *op);  /* work.c */
CUresult check_work(const Work *work);
void stage(Op *op);
void count_work(const Work *work, bool from_graph);

bool comes_before(const Op *first, const Op *second) {
    return second->clock[first->lane] >= first->sequence;
}

static bool overlap(const Range *a, const Range *b) {
    return a->start < b->start + b->bytes && b->start < a->start + a->bytes;
}

static const Range *conflict(const Work *a, const Work *b) {
    for (size_t i = 0; i < a->range_count; i++)
        for (size_t j = 0; j < b->range_count; j++)
            if ((a->ranges[i].written || b->ranges[j].written) &&
                overlap(&a->ranges[i], &b->ranges[j]))
                return &a->ranges[i];
    return NULL;
}

static const char *kind_name(const Work *work) {
    static const char *const copies[] = {"upload", "download", "copy", "peer copy", "host copy"};
    switch (work->kind) {
        case COPY: return copies[work->direction];
        case FILL: return "fill";
        case CALL: return work->label[0] ? work->label : "host function";
        case ALLOCATE: return "allocation";
        case RELEASE: return "free";
        default: return "event";
    }
}

/* Earlier work on the same memory that the host has not seen finished and that this op is not
 * ordered after: a real device may run the two in either order, or at once. */
static void find_races(Op *op) {
    for (size_t i = 0; i < sim.unobserved.count; i++) {
        Op *other = sim.unobserved.items[i];
        if (comes_before(other, op)) continue;
        const Range *range = conflict(&op->work, &other->work);
        if (!range) continue;
        append(&other->racers, op);
        problem("race: %s #%llu on stream %llu and %s #%llu on stream %llu both touch %#llx "
                "and nothing orders them",
                kind_name(&other->work), (unsigned long long)other->id,
                (unsigned long long)other->stream, kind_name(&op->work),
                (unsigned long long)op->id, (unsigned long long)op->stream,
                (unsigned long long)range->start);
    }
}

void free_work(Work *work) {
    free(work->ranges);
    work->ranges = NULL;
    work->range_count = 0;
}

Work copy_of_work(const Work *work) {
    Work copy = *work;
    if (work->range_count) {
        copy.ranges = malloc(work->range_count * sizeof *copy.ranges);
        memcpy(copy.ranges, work->ranges, work->range_count * sizeof *copy.ranges);
    }
    return copy;
}

static void add_before(Op *op, Op *other) {
    if (!other) return;
    for (uint32_t lane = 0; lane < MAX_LANES; lane++)
        if (other->clock[lane] > op->clock[lane]) op->clock[lane] = other->clock[lane];
    if (other->state != DONE) append(&op->before, other);
}

/* Add work, whose ranges the op then owns, after `before` and what came last on the lane. */
Op *enqueue_after(Stream *stream, Work *work, uint32_t lane, const List *before) {
    Op *op = calloc(1, sizeof *op);
    op->id = new_id();
    op->work = *work;
    op->stream = stream->id;
    op->lane = lane;
    for (size_t i = 0; i < before->count; i++) add_before(op, before->items[i]);
    op->sequence = ++sim.sequences[lane];
    op->clock[lane] = op->sequence;
    op->previous = sim.newest;
    if (sim.newest)
        sim.newest->next = op;
    else
        sim.oldest = op;
    sim.newest = op;
    append(&sim.ops, op);
    if (op->work.range_count) {
        find_races(op);
        append(&sim.unobserved, op);
    }
    return op;
}

/* What must come before the next op of a stream. Blocking streams and the legacy default stream
 * wait for one another. */
static void collect_before(Stream *stream, List *before) {
    append(before, stream->last);
    for (size_t i = 0; i < stream->waits.count; i++) append(before, stream->waits.items[i]);
    stream->waits.count = 0;
    Stream *legacy = sim.devices[stream->device].legacy;
    if (stream == legacy) {
        for (size_t i = 0; i < sim.streams.count; i++) {
            Stream *other = sim.streams.items[i];
            if (other->blocking && other != stream && other->device == stream->device)
                append(before, other->last);
        }
    } else if (stream->blocking) {
        append(before, legacy->last);
    }
}

/* Check work and add it to a stream, or to the graph that the stream is captured into. The ranges
 * of `work` belong to the callee. */
CUresult enqueue(Stream *stream, Work *work, Op **made) {
    CUresult result = sim.devices[stream->device].lost;
    if (!result) result = check_work(work);
    if (result) {
        free_work(work);
        return result;
    }
    if (stream->capture) return capture_work(stream, work);
    if (stream == sim.devices[stream->device].legacy) {
        Capture *capture = capture_in_device(stream->device);
        if (capture && capture->origin->blocking) {
            free_work(work);
            break_capture(capture, "work on the default stream");
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    }
    List before = {0};
    collect_before(stream, &before);
    Op *op = enqueue_after(stream, work, stream->lane, &before);
    clear_list(&before);
    stream->last = op;
    stage(op);
    count_work(&op->work, false);
    if (made) *made = op;
    return CUDA_SUCCESS;
}

void observe(const Op *op) {
    size_t kept = 0;
    for (size_t i = 0; i < sim.unobserved.count; i++) {
        Op *other = sim.unobserved.items[i];
        if (other->state == DONE && comes_before(other, op))
            other->observed = true;
        else
            sim.unobserved.items[kept++] = other;
    }
    sim.unobserved.count = kept;
}

static bool is_ready(const Op *op) {
    if (op->state != WAITING) return false;
    for (size_t i = 0; i < op->before.count; i++)
        if (((Op *)op->before.items[i])->state != DONE) return false;
    return true;
}

/* A later op races with this one and is not done: running it first does the most harm. */
static bool is_held(const Op *op) {
    for (size_t i = 0; i < op->racers.count; i++)
        if (((Op *)op->racers.items[i])->state != DONE) return true;
    return false;
}

static void mark(Op *op, bool with_racers) {
    if (op->marked || op->state == DONE) return;
    op->marked = true;
    for (size_t i = 0; i < op->before.count; i++) mark(op->before.items[i], with_racers);
    if (with_racers)
        for (size_t i = 0; i < op->racers.count; i++) mark(op->racers.items[i], with_racers);
}

static uint64_t next_random(void) {
    sim.random ^= sim.random << 13;
    sim.random ^= sim.random >> 7;
    sim.random ^= sim.random << 17;
    return sim.random;
}

static Op *choose(void) {
    Op *found = NULL;
    uint64_t candidates = 0;
    if (sim.schedule == IN_ORDER) {
        for (Op *op = sim.oldest; op; op = op->next)
            if (is_ready(op)) return op;
        return NULL;
    }
    for (Op *op = sim.newest; op; op = op->previous) {
        if (!is_ready(op)) continue;
        if (sim.schedule == NEWEST_FIRST) return op;
        if (sim.schedule == RANDOM) {
            if (next_random() % ++candidates == 0) found = op;
        } else if (op->marked) {
            if (!is_held(op)) return op;
            if (!found) found = op;
        }
    }
    return found;
}

static void unlink_op(Op *op) {
    *(op->previous ? &op->previous->next : &sim.oldest) = op->next;
    *(op->next ? &op->next->previous : &sim.newest) = op->previous;
}

static void run(Op *op) {
    op->state = RUNNING;
    op->order = ++sim.executed;
    Device *device = &sim.devices[op->work.device];
    if (!device->lost) {
        uint32_t generation = sim.generation;
        CUresult result = carry_out(op);
        if (generation != sim.generation) return; /* the simulation ended meanwhile */
        if (result && !device->lost) device->lost = result;
    }
    free(op->staged);
    op->staged = NULL;
    op->state = DONE;
    unlink_op(op);
    pthread_mutex_lock(&finished_mutex);
    finished_count++;
    pthread_cond_broadcast(&finished);
    pthread_mutex_unlock(&finished_mutex);
}

/* Another thread runs a callback that is needed. */
static void wait_for_other_thread(void) {
    int locked = 1;
    pthread_mutex_lock(&finished_mutex);
    uint64_t seen = finished_count;
    unlock_simulator(&locked);
    while (seen == finished_count) pthread_cond_wait(&finished, &finished_mutex);
    pthread_mutex_unlock(&finished_mutex);
    lock_simulator();
}

static bool all_done(Op **targets, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (targets[i] && targets[i]->state != DONE) return false;
    return true;
}

static bool something_runs(void) {
    for (Op *op = sim.oldest; op; op = op->next)
        if (op->state == RUNNING) return true;
    return false;
}

static void run_until_done(Op **targets, size_t count) {
    uint32_t generation = sim.generation;
    while (generation == sim.generation && !all_done(targets, count)) {
        for (Op *op = sim.oldest; op; op = op->next) op->marked = false;
        for (size_t i = 0; i < count; i++)
            if (targets[i]) mark(targets[i], true);
        Op *op = choose();
        if (op) {
            run(op);
        } else if (something_runs()) {
            wait_for_other_thread();
        } else {
            problem("nothing that is waited for can run: streams wait for each other");
            return;
        }
    }
}

/* Run what the targets need and take it as seen by the host. */
CUresult wait_for(Op **targets, size_t count, int device) {
    if (inside_callback) {
        problem("a callback waits for the device");
        return CUDA_ERROR_NOT_PERMITTED;
    }
    run_until_done(targets, count);
    for (size_t i = 0; i < count; i++)
        if (targets[i]) observe(targets[i]);
    return sim.devices[device].lost;
}

CUresult wait_for_stream(Stream *stream) {
    List targets = {0};
    append(&targets, stream->last);
    for (size_t i = 0; i < stream->waits.count; i++) append(&targets, stream->waits.items[i]);
    CUresult result = wait_for((Op **)targets.items, targets.count, stream->device);
    clear_list(&targets);
    return result;
}

CUresult wait_for_device(int device) {
    List targets = {0};
    for (size_t i = 0; i < sim.streams.count; i++) {
        Stream *stream = sim.streams.items[i];
        if (stream->device == device && stream->last) append(&targets, stream->last);
    }
    CUresult result = wait_for((Op **)targets.items, targets.count, device);
    clear_list(&targets);
    return result;
}

/* Freeing memory waits for the device; here for the work that uses it, and nothing is seen. */
void wait_for_users(const Block *block) {
    Range whole = {block->start, block->bytes, 1, 0};
    List targets = {0};
    bool busy = false;
    for (Op *op = sim.oldest; op; op = op->next) {
        busy = true;
        for (size_t i = 0; i < op->work.range_count; i++)
            if (overlap(&whole, &op->work.ranges[i])) {
                append(&targets, op);
                break;
            }
    }
    if (busy && current_device >= 0) sim.devices[current_device].counters.hidden_synchronizations++;
    if (targets.count) run_until_done((Op **)targets.items, targets.count);
    clear_list(&targets);
}

/* A query makes one op of progress. */
bool advance_towards(Op *target) {
    if (!target) return true;
    if (target->state == DONE) {
        observe(target);
        return true;
    }
    if (inside_callback) return false;
    for (Op *op = sim.oldest; op; op = op->next) op->marked = false;
    mark(target, true);
    Op *op = choose();
    if (op) run(op);
    return false;
}
