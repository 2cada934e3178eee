/* The elements of a batch that the activation cannot invert, gathered by many threads, then put in order. */
#ifndef ABN_ESCAPES_H
#define ABN_ESCAPES_H

#include "abn.h"

typedef struct {
    ptrdiff_t channel;
    int64_t position;
    double xhat;
} abn_escape;

/* One thread's list. `failed`: memory ran out, entries are missing. */
typedef struct {
    abn_escape *entries;
    ptrdiff_t count, capacity;
    int failed;
} abn_escape_list;

void abn_escape_push(abn_escape_list *list, abn_escape entry);

/* Sorts all lists' entries into `escapes` and frees the lists. */
abn_status abn_escapes_gather(abn_escape_list *lists, int threads, ptrdiff_t channels, abn_escapes *escapes);

#endif
