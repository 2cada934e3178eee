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

/* Bucket sort: a bucket is BUCKET consecutive indices, sorted by insertion, since lists are almost in order. */
enum { BUCKET = 4096 };

/* first[b] = the position of the first entry of bucket b. On entry first[0 .. buckets] are 0. */
static void count_buckets(const abn_escape_list *lists, int threads, ptrdiff_t *first, ptrdiff_t buckets) {
    for (int t = 0; t < threads; t++)
        for (ptrdiff_t e = 0; e < lists[t].count; e++) first[lists[t].entries[e].index / BUCKET + 1]++;
    for (ptrdiff_t b = 0; b < buckets; b++) first[b + 1] += first[b];
}

/* Inserts an entry into its bucket, which occupies [begin, *end), and increments *end. */
static void insert(abn_escapes *escapes, ptrdiff_t begin, ptrdiff_t *end, abn_escape entry) {
    ptrdiff_t position = (*end)++;
    for (; position > begin && escapes->index[position - 1] > entry.index; position--) {
        escapes->index[position] = escapes->index[position - 1];
        escapes->xhat[position] = escapes->xhat[position - 1];
    }
    escapes->index[position] = entry.index;
    escapes->xhat[position] = entry.xhat;
}

static abn_status sort_lists(const abn_escape_list *lists, int threads, int64_t elements, abn_escapes *escapes) {
    const ptrdiff_t buckets = (ptrdiff_t)((elements + BUCKET - 1) / BUCKET);
    ptrdiff_t *first = calloc(2 * (size_t)buckets + 1, sizeof *first);
    escapes->index = malloc((size_t)escapes->count * sizeof *escapes->index);
    escapes->xhat = malloc((size_t)escapes->count * sizeof *escapes->xhat);
    if (!first || !escapes->index || !escapes->xhat) {
        free(first);
        abn_escapes_free(escapes);
        return ABN_NO_MEMORY;
    }
    ptrdiff_t *filled = first + buckets + 1;
    count_buckets(lists, threads, first, buckets);
    memcpy(filled, first, (size_t)buckets * sizeof *filled);
    for (int t = 0; t < threads; t++) {
        for (ptrdiff_t e = 0; e < lists[t].count; e++) {
            const ptrdiff_t bucket = (ptrdiff_t)(lists[t].entries[e].index / BUCKET);
            insert(escapes, first[bucket], &filled[bucket], lists[t].entries[e]);
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
