/* Executable graphs, and the objects that graphs keep alive. */
#include "simulator.h"

#include <stdlib.h>

void count_work(const Work *work, bool from_graph);

static Graph *find_graph(CUgraph handle) { return find_by_id(&sim.graphs, (uintptr_t)handle); }

static Executable *find_executable(CUgraphExec handle) {
    return find_by_id(&sim.executables, (uintptr_t)handle);
}

static void hold_objects(List *to, const List *from) {
    for (size_t i = 0; i < from->count; i++) {
        ((UserObject *)from->items[i])->references++;
        append(to, from->items[i]);
    }
}

/* Let go of an object; its destructor runs without the lock. */
static void let_go(UserObject *object) {
    if (--object->references) return;
    remove_item(&sim.user_objects, object);
    int locked = 1;
    unlock_simulator(&locked);
    object->destroy(object->object);
    lock_simulator();
    free(object);
}

static void let_go_of_all(List *objects) {
    List held = *objects;
    *objects = (List){0};
    for (size_t i = 0; i < held.count; i++) let_go(held.items[i]);
    clear_list(&held);
}

static CUresult take_nodes(Executable *executable, const Graph *graph) {
    executable->nodes.count = 0;
    for (size_t i = 0; i < graph->nodes.count; i++) {
        Node *from = graph->nodes.items[i], *node = calloc(1, sizeof *node);
        *node = (Node){.id = from->id, .lane = from->lane, .work = copy_of_work(&from->work)};
        for (size_t j = 0; j < from->before.count; j++)
            for (size_t k = 0; k < i; k++)
                if (graph->nodes.items[k] == from->before.items[j])
                    append(&node->before, executable->nodes.items[k]);
        append(&executable->nodes, node);
    }
    while (executable->lane_count < graph->lanes.count) {
        uint32_t lane = executable->lane_count < MAX_LANES ? take_lane() : MAX_LANES;
        if (lane == MAX_LANES) return CUDA_ERROR_OUT_OF_MEMORY;
        executable->lanes[executable->lane_count++] = lane;
    }
    return CUDA_SUCCESS;
}

static CUresult instantiate(CUgraphExec *made, CUgraph handle) {
    Graph *graph = find_graph(handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    Executable *executable = calloc(1, sizeof *executable);
    executable->id = new_id();
    executable->device = current_device;
    append(&sim.executables, executable);
    CUresult result = take_nodes(executable, graph);
    hold_objects(&executable->user_objects, &graph->user_objects);
    *made = (CUgraphExec)(uintptr_t)executable->id;
    return result;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *made, CUgraph graph, unsigned long long flags) {
    ENTER_CONTEXT;
    (void)flags;
    return instantiate(made, graph);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec *made, CUgraph graph,
                                      CUDA_GRAPH_INSTANTIATE_PARAMS *parameters) {
    ENTER_CONTEXT;
    CUresult result = instantiate(made, graph);
    parameters->result_out = result ? CUDA_GRAPH_INSTANTIATE_ERROR : CUDA_GRAPH_INSTANTIATE_SUCCESS;
    parameters->hErrNode_out = NULL;
    return result;
}

CUresult cuGraphUpload(CUgraphExec handle, CUstream stream) {
    ENTER_CONTEXT;
    return find_executable(handle) && find_stream(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* One launch: a start, the nodes in the order of their edges, an end. */
CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    ENTER_CONTEXT;
    Executable *executable = find_executable(handle);
    Stream *stream = find_stream(stream_handle);
    if (!executable) return CUDA_ERROR_INVALID_VALUE;
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return break_capture(stream->capture, "cuGraphLaunch");
    device->counters.graph_launches++;
    if (executable->last) append(&stream->waits, executable->last); /* one launch at a time */
    Work join = {.kind = JOIN, .device = stream->device};
    Op *start = NULL;
    CUresult result = enqueue(stream, &join, &start);
    if (result) return result;
    List all = {0}, before = {0};
    append(&all, start);
    for (size_t i = 0; i < executable->nodes.count; i++) {
        Node *node = executable->nodes.items[i];
        before.count = 0;
        append(&before, start);
        for (size_t j = 0; j < node->before.count; j++)
            append(&before, ((Node *)node->before.items[j])->op);
        Work work = copy_of_work(&node->work);
        node->op = enqueue_after(stream, &work, executable->lanes[node->lane], &before);
        node->op->from_graph = true;
        count_work(&work, true);
        append(&all, node->op);
    }
    executable->last = stream->last = enqueue_after(stream, &join, stream->lane, &all);
    clear_list(&all);
    clear_list(&before);
    return CUDA_SUCCESS;
}

CUresult cuGraphExecUpdate(CUgraphExec handle, CUgraph graph_handle,
                           CUgraphExecUpdateResultInfo *information) {
    ENTER_CONTEXT;
    Executable *executable = find_executable(handle);
    Graph *graph = find_graph(graph_handle);
    if (!executable || !graph) return CUDA_ERROR_INVALID_VALUE;
    bool same = executable->nodes.count == graph->nodes.count;
    for (size_t i = 0; same && i < graph->nodes.count; i++)
        same = ((Node *)executable->nodes.items[i])->work.kind ==
               ((Node *)graph->nodes.items[i])->work.kind;
    information->result =
        same ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    return same ? take_nodes(executable, graph) : CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
}

CUresult cuGraphExecDestroy(CUgraphExec handle) {
    ENTER;
    Executable *executable = find_executable(handle);
    if (!executable) return CUDA_ERROR_INVALID_VALUE;
    for (uint32_t i = 0; i < executable->lane_count; i++)
        sim.lane_taken[executable->lanes[i]] = false;
    remove_item(&sim.executables, executable);
    let_go_of_all(&executable->user_objects);
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph handle) {
    ENTER;
    Graph *graph = find_graph(handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    remove_item(&sim.graphs, graph);
    let_go_of_all(&graph->user_objects);
    return CUDA_SUCCESS;
}

static UserObject *find_object(CUuserObject handle) {
    return find_by_id(&sim.user_objects, (uintptr_t)handle);
}

CUresult cuUserObjectCreate(CUuserObject *made, void *pointer, CUhostFn destroy,
                            unsigned int references, unsigned int flags) {
    ENTER;
    (void)flags;
    UserObject *object = calloc(1, sizeof *object);
    *object = (UserObject){
        .id = new_id(), .references = references, .object = pointer, .destroy = destroy};
    append(&sim.user_objects, object);
    *made = (CUuserObject)(uintptr_t)object->id;
    return CUDA_SUCCESS;
}

CUresult cuUserObjectRetain(CUuserObject handle, unsigned int count) {
    ENTER;
    UserObject *object = find_object(handle);
    if (!object) return CUDA_ERROR_INVALID_VALUE;
    object->references += count;
    return CUDA_SUCCESS;
}

CUresult cuUserObjectRelease(CUuserObject handle, unsigned int count) {
    ENTER;
    for (unsigned int i = 0; i < count; i++) {
        UserObject *object = find_object(handle);
        if (!object) return CUDA_ERROR_INVALID_VALUE;
        let_go(object);
    }
    return CUDA_SUCCESS;
}

CUresult cuGraphRetainUserObject(CUgraph graph_handle, CUuserObject handle, unsigned int count,
                                 unsigned int flags) {
    ENTER;
    Graph *graph = find_graph(graph_handle);
    UserObject *object = find_object(handle);
    if (!graph || !object) return CUDA_ERROR_INVALID_VALUE;
    for (unsigned int i = 0; i < count; i++) append(&graph->user_objects, object);
    if (!(flags & CU_GRAPH_USER_OBJECT_MOVE)) object->references += count;
    return CUDA_SUCCESS;
}

CUresult cuGraphReleaseUserObject(CUgraph graph_handle, CUuserObject handle, unsigned int count) {
    ENTER;
    Graph *graph = find_graph(graph_handle);
    for (unsigned int i = 0; i < count; i++) {
        UserObject *object = find_object(handle);
        if (!graph || !object || !remove_item(&graph->user_objects, object))
            return CUDA_ERROR_INVALID_VALUE;
        let_go(object);
    }
    return CUDA_SUCCESS;
}
