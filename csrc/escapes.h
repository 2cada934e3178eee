/* Lists of escaped elements (abn_escapes), one per thread, and their merging into one sorted list. */
#ifndef ABN_ESCAPES_H
#define ABN_ESCAPES_H

#include "abn.h"

typedef struct {
    int64_t index;
    double xhat;
} abn_escape;

/* The list of one thread. failed: out of memory, entries are missing. */
typedef struct {
    abn_escape *entries;
    ptrdiff_t count, capacity;
    int failed;
} abn_escape_list;

void abn_escape_push(abn_escape_list *list, abn_escape entry);

/* Moves the entries of all lists into `escapes`, sorted by index, and frees the lists. `elements`: size of the batch.
 * ABN_NO_MEMORY: escapes is empty. */
abn_status abn_escapes_gather(abn_escape_list *lists, int threads, int64_t elements, abn_escapes *escapes);

/* The position in `escapes` of the first element whose index is >= index. */
ptrdiff_t abn_escapes_from(const abn_escapes *escapes, int64_t index);

#endif
