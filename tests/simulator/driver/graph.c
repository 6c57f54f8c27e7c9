/* Stream capture and graphs. */
#include "simulator.h"

#include <stdio.h>
#include <stdlib.h>

void count_work(const Work *work, bool from_graph);

Capture *capture_in_device(int device) {
    for (size_t i = 0; i < sim.captures.count; i++) {
        Capture *capture = sim.captures.items[i];
        if (capture->origin->device == device) return capture;
    }
    return NULL;
}

CUresult break_capture(Capture *capture, const char *what) {
    problem("%s while a stream is being captured", what);
    CUresult result = capture->broken ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
                                      : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    capture->broken = true;
    return result;
}

static Node *add_node(Graph *graph, const Work *work, uint32_t lane, void *const *before,
                      size_t count) {
    Node *node = calloc(1, sizeof *node);
    *node = (Node){.id = new_id(), .work = *work, .lane = lane};
    for (size_t i = 0; i < count; i++) append(&node->before, before[i]);
    append(&graph->nodes, node);
    return node;
}

static uint32_t add_lane(Graph *graph, const Stream *stream) {
    append(&graph->lanes, (void *)(uintptr_t)(stream ? stream->id : 0));
    return (uint32_t)graph->lanes.count - 1;
}

/* A stream's branch of the graph. */
static uint32_t lane_of(Graph *graph, const Stream *stream) {
    for (size_t i = graph->lanes.count; i-- > 0;)
        if ((uintptr_t)graph->lanes.items[i] == stream->id) return (uint32_t)i;
    return add_lane(graph, stream);
}

CUresult capture_work(Stream *stream, Work *work) {
    Capture *capture = stream->capture;
    if (capture->broken || work->kind == ALLOCATE || work->kind == RELEASE) {
        free_work(work);
        if (capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        return break_capture(capture, "stream-ordered allocation");
    }
    Node *node = add_node(capture->graph, work, lane_of(capture->graph, stream),
                          stream->tips.items, stream->tips.count);
    stream->tips.count = 0;
    append(&stream->tips, node);
    return CUDA_SUCCESS;
}

static Graph *make_graph(void) {
    Graph *graph = calloc(1, sizeof *graph);
    graph->id = new_id();
    append(&sim.graphs, graph);
    return graph;
}

static Graph *find_graph(CUgraph handle) { return find_by_id(&sim.graphs, (uintptr_t)handle); }

static CUgraph handle_of(const Graph *graph) { return (CUgraph)(uintptr_t)graph->id; }

CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
    ENTER_CONTEXT;
    Stream *stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream == device->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    Capture *capture = calloc(1, sizeof *capture);
    *capture = (Capture){
        .graph = make_graph(), .mode = mode, .origin = stream, .thread = pthread_self()};
    append(&capture->streams, stream);
    append(&sim.captures, capture);
    stream->capture = capture;
    stream->tips.count = 0;
    return CUDA_SUCCESS;
}

static void reach(Node *node, List *reached) {
    for (size_t i = 0; i < reached->count; i++)
        if (reached->items[i] == node) return;
    append(reached, node);
    for (size_t i = 0; i < node->before.count; i++) reach(node->before.items[i], reached);
}

static void leave(Capture *capture) {
    for (size_t i = 0; i < capture->streams.count; i++) {
        Stream *stream = capture->streams.items[i];
        stream->capture = NULL;
        stream->tips.count = 0;
    }
    for (size_t i = 0; i < sim.events.count; i++) {
        Event *event = sim.events.items[i];
        if (event->capture == capture) {
            event->capture = NULL;
            event->tips.count = 0;
        }
    }
    remove_item(&sim.captures, capture);
    clear_list(&capture->streams);
    free(capture);
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph *made) {
    ENTER_CONTEXT;
    if (made) *made = NULL;
    Stream *stream = find_stream(handle);
    if (!stream || !stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    Capture *capture = stream->capture;
    if (capture->origin != stream) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
        !pthread_equal(capture->thread, pthread_self()))
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    CUresult result = capture->broken ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    List reached = {0};
    for (size_t i = 0; i < stream->tips.count; i++) reach(stream->tips.items[i], &reached);
    if (!result && reached.count != capture->graph->nodes.count) {
        problem("captured work on another stream is not joined before the capture ends");
        result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    }
    clear_list(&reached);
    if (!result && made) *made = handle_of(capture->graph);
    leave(capture);
    return result;
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    ENTER;
    Stream *stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *status = !stream->capture          ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->capture->broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                        : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id,
                                CUgraph *graph, const CUgraphNode **before,
                                const CUgraphEdgeData **edges, size_t *count) {
    CUstreamCaptureStatus found;
    CUresult result = cuStreamIsCapturing(handle, &found);
    if (status) *status = found;
    if (result || found != CU_STREAM_CAPTURE_STATUS_ACTIVE) return result;
    LOCKED;
    Stream *stream = find_stream(handle);
    if (id) *id = stream->capture->graph->id;
    if (graph) *graph = handle_of(stream->capture->graph);
    if (before) *before = (const CUgraphNode *)stream->tips.items;
    if (edges) *edges = NULL;
    if (count) *count = stream->tips.count;
    return CUDA_SUCCESS;
}

CUresult cuStreamUpdateCaptureDependencies(CUstream handle, CUgraphNode *before,
                                           const CUgraphEdgeData *edges, size_t count,
                                           unsigned int flags) {
    ENTER;
    (void)edges;
    Stream *stream = find_stream(handle);
    if (!stream || !stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES) stream->tips.count = 0;
    for (size_t i = 0; i < count; i++) append(&stream->tips, before[i]);
    add_lane(stream->capture->graph, stream);
    return CUDA_SUCCESS;
}

static __thread CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    ENTER;
    CUstreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

CUresult cuGraphCreate(CUgraph *graph, unsigned int flags) {
    ENTER_CONTEXT;
    (void)flags;
    *graph = handle_of(make_graph());
    return CUDA_SUCCESS;
}

CUresult cuGraphAddHostNode(CUgraphNode *made, CUgraph handle, const CUgraphNode *before,
                            size_t count, const CUDA_HOST_NODE_PARAMS *parameters) {
    ENTER_CONTEXT;
    Graph *graph = find_graph(handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    Work work = {.kind = CALL,
                 .device = current_device,
                 .host_function = parameters->fn,
                 .argument = parameters->userData};
    *made = (CUgraphNode)add_node(graph, &work, add_lane(graph, NULL), (void *const *)before,
                                  count);
    return CUDA_SUCCESS;
}

CUresult cuGraphAddEmptyNode(CUgraphNode *made, CUgraph handle, const CUgraphNode *before,
                             size_t count) {
    ENTER_CONTEXT;
    Graph *graph = find_graph(handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    Work work = {.kind = JOIN, .device = current_device};
    *made = (CUgraphNode)add_node(graph, &work, add_lane(graph, NULL), (void *const *)before,
                                  count);
    return CUDA_SUCCESS;
}

CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode *nodes, size_t *count) {
    ENTER;
    Graph *graph = find_graph(handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; nodes && i < graph->nodes.count && i < *count; i++)
        nodes[i] = (CUgraphNode)graph->nodes.items[i];
    if (!nodes || *count > graph->nodes.count) *count = graph->nodes.count;
    return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType *type) {
    ENTER;
    static const CUgraphNodeType types[] = {
        [COPY] = CU_GRAPH_NODE_TYPE_MEMCPY, [FILL] = CU_GRAPH_NODE_TYPE_MEMSET,
        [CALL] = CU_GRAPH_NODE_TYPE_HOST,   [EVENT] = CU_GRAPH_NODE_TYPE_EMPTY,
        [JOIN] = CU_GRAPH_NODE_TYPE_EMPTY};
    const Work *work = &((Node *)handle)->work;
    *type = work->callback ? CU_GRAPH_NODE_TYPE_KERNEL : types[work->kind];
    return CUDA_SUCCESS;
}

CUresult cuGraphDebugDotPrint(CUgraph handle, const char *path, unsigned int flags) {
    ENTER;
    (void)flags;
    Graph *graph = find_graph(handle);
    FILE *file = graph ? fopen(path, "w") : NULL;
    if (!file) return CUDA_ERROR_INVALID_VALUE;
    fputs("digraph {\n", file);
    for (size_t i = 0; i < graph->nodes.count; i++) {
        Node *node = graph->nodes.items[i];
        fprintf(file, "  n%llu [label=\"%d %s\"];\n", (unsigned long long)node->id,
                (int)node->work.kind, node->work.label);
        for (size_t j = 0; j < node->before.count; j++)
            fprintf(file, "  n%llu -> n%llu;\n",
                    (unsigned long long)((Node *)node->before.items[j])->id,
                    (unsigned long long)node->id);
    }
    fputs("}\n", file);
    fclose(file);
    return CUDA_SUCCESS;
}
