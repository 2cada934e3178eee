#include "planted.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../csrc/threads.h"
#include "arrays.h"

static volatile int sink;
static volatile int one = 1; /* volatile: hides the errors from the compiler */

static int over(void) {
    array a = array_open(12, FLUSH_END);
    return ((volatile char *)a.data)[11 + one];
}

static int under(void) {
    array a = array_open(12, FLUSH_START);
    return ((volatile char *)a.data)[-one];
}

static int heap(void) {
    char *volatile memory = malloc(12);
    memory[0] = 0;
    sink = memory[11 + one];
    free(memory);
    return 0;
}

static int leak(void) {
    char *volatile memory = malloc(12);
    memory[0] = 0;
    memory = NULL;
    return 0;
}

static int undefined(void) { return INT_MAX - 1 + 2 * one; }

static int uninitialised(void) {
    char *volatile memory = malloc(12);
    if (memory[one] == 12) puts("twelve");
    free(memory);
    return 0;
}

static void write_unprotected(void *argument, int thread, int threads) {
    int *shared = argument;
    for (int i = 0; i < 1000; i++) *shared += thread * threads;
}

static int race(void) {
    int shared = 0;
    abn_parallel(4, write_unprotected, &shared);
    return shared;
}

int planted(const char *error) {
    static const struct {
        const char *name;
        int (*commit)(void);
    } errors[] = {{"over", over}, {"under", under},         {"heap", heap},
                  {"leak", leak}, {"undefined", undefined}, {"uninitialised", uninitialised},
                  {"race", race}};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (strcmp(error, errors[i].name)) continue;
        sink = errors[i].commit();
        return 0; /* the error was not detected */
    }
    return 3;
}
