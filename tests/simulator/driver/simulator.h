/* A CUDA driver in host memory: what its parts share.
 *
 * Asynchronous work becomes an `Op` with the ops that it must wait for. Nothing runs before somebody
 * synchronises; then `schedule.c` runs what is needed, in the least helpful order that is allowed.
 * Everything is guarded by one lock, which is let go while a callback runs.
 */
#ifndef LTX2RT_SIMULATOR_H
#define LTX2RT_SIMULATOR_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda.h>

enum { MAX_DEVICES = 4, MAX_LANES = 128, LABEL = 64, UUID_BYTES = 16 };

/* Device addresses are numbers of their own: host code that follows one crashes, as it should. */
#define DEVICE_SPACE 0x100000000000ull
#define DEVICE_SPAN 0x040000000000ull

/* Copies of pageable memory up to this size are staged without waiting for the stream. */
#define STAGING_BYTES (64ull << 10)

#define POISON 0xFF /* a NaN in bfloat16, float16 and float32 */

typedef enum { ADVERSARIAL, IN_ORDER, RANDOM, NEWEST_FIRST } Schedule;

typedef enum { COPY, FILL, CALL, EVENT, JOIN, ALLOCATE, RELEASE } Kind;

typedef enum { HOST_TO_DEVICE, DEVICE_TO_HOST, ON_DEVICE, PEER, ON_HOST } Direction;

typedef enum { WAITING, RUNNING, DONE } State;

typedef struct {
    uint64_t start, bytes;
    int32_t written, unused;
} Range;

/* Returns 0, 1 where it failed, or the error that the GPU is lost with; 1 loses it too. */
typedef int (*Callback)(void *argument);

typedef struct Op Op;
typedef struct Block Block;
typedef struct Capture Capture;
typedef struct Node Node;

typedef struct {
    void **items;
    size_t count, room;
} List;

/* What to do, without when: what a graph keeps and an op carries out. */
typedef struct {
    Kind kind;
    Direction direction;
    int device;
    bool pageable, waited; /* COPY; waited: the caller waits for it */
    uint64_t to, from, bytes, rows, to_pitch, from_pitch; /* COPY and FILL; bytes of one row */
    uint32_t value, width;                                /* FILL */
    Callback callback;                                    /* CALL */
    CUhostFn host_function;
    void *argument;
    Block *block; /* ALLOCATE and RELEASE */
    Range *ranges;
    size_t range_count;
    char label[LABEL];
} Work;

struct Op {
    uint64_t id, order; /* enqueued and executed as the how manieth, from 1 */
    Work work;
    uint32_t lane, sequence;
    uint32_t clock[MAX_LANES]; /* of every lane, the last op that comes before this one */
    State state;
    bool observed; /* the host knows that it is done */
    bool marked;
    bool from_graph;
    uint64_t stream;
    void *staged;
    List before; /* ops that must be done */
    List racers; /* later ops that touch the same memory without being ordered after this one */
    Op *previous, *next;
};

struct Block {
    uint64_t start, bytes;
    int device; /* -1: pinned host memory */
    bool live, registered, from_pool;
    uint32_t generation;
    void *memory; /* NULL: contents are not simulated */
    struct Pool *pool;
};

typedef struct Pool {
    uint64_t id, used, high, threshold;
    int device; /* -1: of the host */
} Pool;

typedef struct {
    uint64_t id;
    int device, priority;
    uint32_t lane, flags;
    bool blocking;
    Op *last;
    List waits; /* what the next op waits for beside `last` */
    Capture *capture;
    List tips; /* nodes that the next captured node comes after */
} Stream;

typedef struct {
    uint64_t id;
    int device;
    uint32_t flags;
    Op *op; /* the last record; NULL: never recorded */
    Capture *capture;
    List tips;
} Event;

struct Capture {
    struct Graph *graph;
    CUstreamCaptureMode mode;
    bool broken;
    Stream *origin;
    pthread_t thread;
    List streams;
};

struct Node {
    uint64_t id;
    Work work;
    uint32_t lane; /* in the graph: one a captured stream */
    List before;
    Op *op; /* of the launch that is being made */
};

typedef struct Graph {
    uint64_t id;
    List nodes, lanes; /* lanes: ids of the streams that were captured; 0: of a single node */
    List user_objects;
    uint64_t references;
} Graph;

typedef struct {
    uint64_t id;
    int device;
    List nodes, user_objects;
    uint32_t lane_count;
    uint32_t lanes[MAX_LANES];
    Op *last;
} Executable;

typedef struct {
    uint64_t id, references;
    void *object;
    CUhostFn destroy;
} UserObject;

/* Read by the tests through ctypes: 64-bit numbers only, in the order of `driver.Counters`. */
typedef struct {
    uint64_t htod_calls, htod_bytes, dtoh_calls, dtoh_bytes, dtod_calls, dtod_bytes;
    uint64_t peer_calls, peer_bytes, pageable_calls, pageable_bytes, fills;
    uint64_t allocations, frees, host_allocations, host_frees;
    uint64_t synchronizations, hidden_synchronizations;
    uint64_t launches, host_functions, graph_launches, graph_operations;
    uint64_t event_records, event_waits;
    uint64_t live_bytes, peak_bytes;
} Counters;

typedef struct {
    uint64_t capacity, next_address;
    int major, minor;
    CUresult lost; /* a sticky error */
    int retained;
    Counters counters;
    Stream *legacy, *per_thread;
    Pool *pool;
} Device;

typedef struct {
    bool on, initialised, has_contents, free_waits;
    int device_count, driver_version;
    Schedule schedule;
    uint64_t random;
    uint32_t generation;
    uint64_t next_id, calls, executed;
    Device devices[MAX_DEVICES];
    uint32_t sequences[MAX_LANES];
    bool lane_taken[MAX_LANES];
    List blocks, pinned, ops, unobserved, problems, streams, events, pools, graphs, executables;
    List user_objects, captures;
    Op *oldest, *newest; /* not done */
} Simulator;

extern Simulator sim;

/* state.c */
int lock_simulator(void);
void unlock_simulator(int *locked);
void problem(const char *format, ...) __attribute__((format(printf, 1, 2)));
void append(List *list, void *item);
bool remove_item(List *list, const void *item);
void copy_list(List *to, const List *from);
void clear_list(List *list);
void *find_by_id(const List *list, uint64_t id); /* items whose first field is their id */
uint64_t new_id(void);
uint32_t take_lane(void);
extern __thread int current_device;     /* -1: no context */
extern __thread bool inside_callback;

/* Every entry of the driver starts with one of these. */
#define LOCKED __attribute__((cleanup(unlock_simulator), unused)) int locked_ = lock_simulator()
#define ENTER                                                                                     \
    LOCKED;                                                                                       \
    sim.calls++;                                                                                  \
    if (!sim.on) return CUDA_ERROR_NO_DEVICE;                                                     \
    if (!sim.initialised) return CUDA_ERROR_NOT_INITIALIZED
#define ENTER_CONTEXT                                                                             \
    ENTER;                                                                                        \
    if (current_device < 0) return CUDA_ERROR_INVALID_CONTEXT;                                    \
    Device *device = &sim.devices[current_device];                                                \
    (void)device;                                                                                 \
    if (device->lost) return device->lost

/* memory.c */
Block *find_block(uint64_t address);   /* device memory, live or freed */
Block *find_pinned(uint64_t address);  /* live pinned memory of the host */
bool in_device_space(uint64_t address);
void *translate(uint64_t address, uint64_t bytes, int device, const char **reason);
CUresult allocate_block(int device, uint64_t bytes, Block **made);
void *pin_block(uint64_t bytes, Pool *pool);
CUresult free_block(Block *block);
void unpin_block(Block *block);
CUresult forbid_in_capture(const char *name);

/* schedule.c */
CUresult enqueue(Stream *stream, Work *work, Op **made);
Op *enqueue_after(Stream *stream, Work *work, uint32_t lane, const List *before);
CUresult wait_for(Op **targets, size_t count, int device);
CUresult wait_for_stream(Stream *stream);
CUresult wait_for_device(int device);
void wait_for_users(const Block *block);
bool advance_towards(Op *op);
void observe(const Op *op);
bool comes_before(const Op *first, const Op *second);
void free_work(Work *work);
Work copy_of_work(const Work *work);

/* stream.c */
Stream *find_stream(CUstream handle);
Stream *make_stream(int device, uint32_t flags, int priority);

/* graph.c */
CUresult capture_work(Stream *stream, Work *work);
CUresult break_capture(Capture *capture, const char *what);
Capture *capture_in_device(int device);

#endif
