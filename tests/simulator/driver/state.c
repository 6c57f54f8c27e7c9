/* The one state of the simulator: lists, lanes, problems. */
#include "simulator.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

Simulator sim;
__thread int current_device = -1;
__thread bool inside_callback;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

int lock_simulator(void) {
    pthread_mutex_lock(&mutex);
    return 1;
}

void unlock_simulator(int *locked) {
    (void)locked;
    pthread_mutex_unlock(&mutex);
}

void problem(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    append(&sim.problems, strdup(text));
}

void append(List *list, void *item) {
    if (list->count == list->room) {
        list->room = list->room ? 2 * list->room : 8;
        list->items = realloc(list->items, list->room * sizeof *list->items);
        if (!list->items) abort();
    }
    list->items[list->count++] = item;
}

bool remove_item(List *list, const void *item) {
    for (size_t i = 0; i < list->count; i++)
        if (list->items[i] == item) {
            memmove(&list->items[i], &list->items[i + 1],
                    (list->count - i - 1) * sizeof *list->items);
            list->count--;
            return true;
        }
    return false;
}

void copy_list(List *to, const List *from) {
    to->count = 0;
    for (size_t i = 0; i < from->count; i++) append(to, from->items[i]);
}

void clear_list(List *list) {
    free(list->items);
    *list = (List){0};
}

void *find_by_id(const List *list, uint64_t id) {
    size_t low = 0, high = list->count; /* ids only grow */
    while (low < high) {
        size_t middle = (low + high) / 2;
        uint64_t found = *(uint64_t *)list->items[middle];
        if (found == id) return list->items[middle];
        if (found < id)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

uint64_t new_id(void) { return ++sim.next_id; }

uint32_t take_lane(void) {
    for (uint32_t lane = 0; lane < MAX_LANES; lane++)
        if (!sim.lane_taken[lane]) {
            sim.lane_taken[lane] = true;
            return lane;
        }
    problem("more than %d streams and graph branches are alive at once", MAX_LANES);
    return MAX_LANES;
}
