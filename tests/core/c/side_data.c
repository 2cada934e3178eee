/* Checks the side data of every element: branch mask and escapes. */
#include <math.h>

#include "check.h"
#include "guard.h"
#include "run.h"

/* The index in per-element side data (abn.h) of an element of the twin. */
static int64_t index_of(const run *r, ptrdiff_t element) {
    const shape s = r->of->of;
    const ptrdiff_t image = element / (s.channels * s.spatial), position = element % s.spatial;
    return r->in->x.channels_last ? (image * s.spatial + position) * s.channels + channel_of(s, element) : element;
}

static void check_branch(const run *r, ptrdiff_t element, abn_escape_rule rule) {
    const double y = r->expected->y[element];
    const int64_t index = index_of(r, element);
    const int left = r->context.branch_mask[index / 8] >> index % 8 & 1;
    if (fabs(y - rule.minimum) > r->expected->y_error[element])
        check(left == (y < rule.minimum), "branch bit of element %td, y %g, is %d", element, y, left);
}

/* The position of an element in the list of escapes, or -1. */
static ptrdiff_t escape_of(const abn_escapes *escapes, int64_t index) {
    ptrdiff_t first = 0, end = escapes->count;
    while (first < end) {
        const ptrdiff_t middle = (first + end) / 2;
        if (escapes->index[middle] < index)
            first = middle + 1;
        else
            end = middle;
    }
    return first < escapes->count && escapes->index[first] == index ? first : -1;
}

/* Returns true if the element is in the list of escapes. */
static int check_escape(const run *r, ptrdiff_t element) {
    const twin *t = r->expected;
    const abn_escapes *escapes = &r->context.escapes;
    const ptrdiff_t at = escape_of(escapes, index_of(r, element));
    const recovery found = twin_recovery(t, r->of, channel_of(r->of->of, element), element);
    check(at < 0 || found != RECOVERED, "element %td, y %g, residual %g, is escaped without need", element,
          t->y[element], t->residual[element]);
    check(at >= 0 || found != ESCAPED, "element %td, y %g, residual %g, is not escaped", element, t->y[element],
          t->residual[element]);
    if (at >= 0)
        check(fabs(escapes->xhat[at] - t->xhat[element]) <= t->xhat_error[element], "escaped xhat is %g, expected %g",
              escapes->xhat[at], t->xhat[element]);
    return at >= 0;
}

void check_side_data(const run *r) {
    const ptrdiff_t elements = elements_of(r->of->of);
    const abn_escape_rule rule = abn_escape_rule_of(r->of->activation, param_of(r->of->activation), r->of->dtype);
    ptrdiff_t escaped = 0;
    if (!recovers_xhat(r->of)) {
        check(r->context.escapes.count == 0 && r->branch_mask.bytes == 0, "side data with x or xhat kept");
        return;
    }
    for (ptrdiff_t i = 0; i < elements; i++) {
        if (r->expected->slot[channel_of(r->of->of, i)] >= 0) continue;
        if (!isfinite(r->expected->y[i])) { /* its residual may escape it */
            escaped += escape_of(&r->context.escapes, index_of(r, i)) >= 0;
            continue;
        }
        if (r->context.branch_mask) check_branch(r, i, rule);
        escaped += check_escape(r, i);
    }
    /* Then each escape belongs to one element: none to a guarded channel, and none occurs twice. */
    check(escaped == r->context.escapes.count, "%td of %td escapes belong to an element", escaped,
          r->context.escapes.count);
    if (r->context.branch_mask && elements % 8)
        check(r->context.branch_mask[elements / 8] >> elements % 8 == 0, "branch mask past the last element");
}
