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
    free(escapes->first);
    free(escapes->position);
    free(escapes->xhat);
    *escapes = (abn_escapes){0, NULL, NULL, NULL};
}

static int by_channel_and_position(const void *a, const void *b) {
    const abn_escape *one = a, *other = b;
    if (one->channel != other->channel) return one->channel < other->channel ? -1 : 1;
    return (one->position > other->position) - (one->position < other->position);
}

static abn_status arrange(const abn_escape *sorted, ptrdiff_t count, ptrdiff_t channels, abn_escapes *escapes) {
    escapes->first = calloc((size_t)channels + 1, sizeof *escapes->first);
    escapes->position = malloc((size_t)count * sizeof *escapes->position);
    escapes->xhat = malloc((size_t)count * sizeof *escapes->xhat);
    if (!escapes->first || !escapes->position || !escapes->xhat) {
        abn_escapes_free(escapes);
        return ABN_NO_MEMORY;
    }
    for (ptrdiff_t e = 0; e < count; e++) {
        escapes->first[sorted[e].channel + 1]++;
        escapes->position[e] = sorted[e].position;
        escapes->xhat[e] = sorted[e].xhat;
    }
    for (ptrdiff_t c = 0; c < channels; c++) escapes->first[c + 1] += escapes->first[c];
    escapes->count = count;
    return ABN_OK;
}

abn_status abn_escapes_gather(abn_escape_list *lists, int threads, ptrdiff_t channels, abn_escapes *escapes) {
    abn_status status = ABN_OK;
    ptrdiff_t count = 0;
    *escapes = (abn_escapes){0, NULL, NULL, NULL};
    for (int t = 0; t < threads; t++) {
        count += lists[t].count;
        if (lists[t].failed) status = ABN_NO_MEMORY;
    }
    if (status == ABN_OK && count > 0) {
        abn_escape *all = malloc((size_t)count * sizeof *all);
        if (all == NULL)
            status = ABN_NO_MEMORY;
        else {
            ptrdiff_t filled = 0;
            for (int t = 0; t < threads; t++) {
                if (lists[t].count == 0) continue;
                memcpy(all + filled, lists[t].entries, (size_t)lists[t].count * sizeof *all);
                filled += lists[t].count;
            }
            qsort(all, (size_t)count, sizeof *all, by_channel_and_position);
            status = arrange(all, count, channels, escapes);
            free(all);
        }
    }
    for (int t = 0; t < threads; t++) free(lists[t].entries);
    return status;
}
