/* The elements of a batch that cannot be had back from z, gathered by many threads, then put in order. */
#ifndef ABN_ESCAPES_H
#define ABN_ESCAPES_H

#include "abn.h"
#include "bits.h"

typedef struct {
    int64_t index;
    double xhat;
} abn_escape;

/* One thread's list. `failed`: memory ran out, entries are missing. */
typedef struct {
    abn_escape *entries;
    ptrdiff_t count, capacity;
    int failed;
} abn_escape_list;

void abn_escape_push(abn_escape_list *list, abn_escape entry);

/* Sorts all lists' entries, of a batch of so many elements, into `escapes` and frees the lists. */
abn_status abn_escapes_gather(abn_escape_list *lists, int threads, int64_t elements, abn_escapes *escapes);

/* The place of the first escaped element whose index is not below this one. */
ptrdiff_t abn_escapes_from(const abn_escapes *escapes, int64_t index);

#endif
