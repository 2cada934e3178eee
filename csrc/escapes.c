#include "escapes.h"

#include <stdlib.h>
#include <string.h>

void abn_escape_push(abn_escape_list *list, abn_escape entry) {
    if (list->count == list->capacity) {
        const ptrdiff_t capacity = list->capacity ? 2 * list->capacity : 64;
        abn_escape *grown = realloc(list->entries, (size_t)capacity * sizeof *grown);
        if (grown == NULL) {
            list->failed = 1;
            return;
        }
        list->entries = grown;
        list->capacity = capacity;
    }
    list->entries[list->count++] = entry;
}

void abn_escapes_free(abn_escapes *escapes) {
    free(escapes->index);
    free(escapes->xhat);
    *escapes = (abn_escapes){0, NULL, NULL};
}

ptrdiff_t abn_escapes_from(const abn_escapes *escapes, int64_t index) {
    ptrdiff_t first = 0, last = escapes->count;
    while (first < last) {
        const ptrdiff_t middle = first + (last - first) / 2;
        if (escapes->index[middle] < index)
            first = middle + 1;
        else
            last = middle;
    }
    return first;
}

enum { PAGE = 4096 }; /* elements whose entries are sorted by insertion: the lists hold them almost in order */

/* Where the pages' entries begin: counted into first[page + 1], then added up. */
static void count_pages(const abn_escape_list *lists, int threads, ptrdiff_t *first, ptrdiff_t pages) {
    for (int t = 0; t < threads; t++)
        for (ptrdiff_t e = 0; e < lists[t].count; e++) first[lists[t].entries[e].index / PAGE + 1]++;
    for (ptrdiff_t p = 0; p < pages; p++) first[p + 1] += first[p];
}

/* The page's entries so far are escapes[begin .. *end). */
static void insert(abn_escapes *escapes, ptrdiff_t begin, ptrdiff_t *end, abn_escape entry) {
    ptrdiff_t at = (*end)++;
    for (; at > begin && escapes->index[at - 1] > entry.index; at--) {
        escapes->index[at] = escapes->index[at - 1];
        escapes->xhat[at] = escapes->xhat[at - 1];
    }
    escapes->index[at] = entry.index;
    escapes->xhat[at] = entry.xhat;
}

static abn_status sort_lists(const abn_escape_list *lists, int threads, int64_t elements, abn_escapes *escapes) {
    const ptrdiff_t pages = (ptrdiff_t)((elements + PAGE - 1) / PAGE);
    ptrdiff_t *first = calloc(2 * (size_t)pages + 1, sizeof *first), *filled = first + pages + 1;
    escapes->index = malloc((size_t)escapes->count * sizeof *escapes->index);
    escapes->xhat = malloc((size_t)escapes->count * sizeof *escapes->xhat);
    if (!first || !escapes->index || !escapes->xhat) {
        free(first);
        abn_escapes_free(escapes);
        return ABN_NO_MEMORY;
    }
    count_pages(lists, threads, first, pages);
    memcpy(filled, first, (size_t)pages * sizeof *filled);
    for (int t = 0; t < threads; t++) {
        for (ptrdiff_t e = 0; e < lists[t].count; e++) {
            const ptrdiff_t page = (ptrdiff_t)(lists[t].entries[e].index / PAGE);
            insert(escapes, first[page], &filled[page], lists[t].entries[e]);
        }
    }
    free(first);
    return ABN_OK;
}

abn_status abn_escapes_gather(abn_escape_list *lists, int threads, int64_t elements, abn_escapes *escapes) {
    abn_status status = ABN_OK;
    *escapes = (abn_escapes){0, NULL, NULL};
    for (int t = 0; t < threads; t++) {
        escapes->count += lists[t].count;
        if (lists[t].failed) status = ABN_NO_MEMORY;
    }
    if (status != ABN_OK) *escapes = (abn_escapes){0, NULL, NULL};
    if (escapes->count > 0) status = sort_lists(lists, threads, elements, escapes);
    for (int t = 0; t < threads; t++) free(lists[t].entries);
    return status;
}
