"""The calls of a layer whose backward has not run: which one ``layer.backward(dz)`` belongs to.

A backward that runs inside the backward of another layer belongs to the last call which the forward of that
layer made. For an outermost backward:

1. The call given as ``call=``.
2. Otherwise, if `dz` was returned by the backward of another layer: the call whose result that layer took.
3. Otherwise the last call whose backward has not run. After `train`, calls in evaluation are skipped if
   their results no longer exist and an earlier call in training is pending; if the results exist, the
   backward is refused.
"""

import threading
import warnings

from ..memory.tables import human
from .producers import producer_of_input

#: Number of pending calls of one layer in evaluation at which a warning is issued.
MANY_PENDING = 8

DROPPED = (
    "; earlier calls in eval() were dropped because their results no longer exist, or because there were "
    "many of them: keep the result, or layer.last_call, until the backward"
)


def find(layer, dz, outer):
    """Return the call of `layer` that ``layer.backward(dz)`` belongs to.

    Parameters
    ----------
    layer : Layer
    dz : ndarray or tuple
    outer : Call or None
        The call whose backward runs.

    Raises
    ------
    RuntimeError
        If no call is pending, if another thread has called the layer since this thread has, or if it is
        ambiguous whether a call in training or a later one in evaluation is meant.
    """
    if outer is not None:
        found = _last_inside(outer, layer)
        if found is not None:
            return found
    pending = list(layer._calls)
    if len(pending) == 1:
        return pending[0]
    pending = [call for call in pending if call.outermost] or pending
    if not pending:
        raise RuntimeError(
            f"backward() was called without a pending forward: {layer._why_no_call}{layer._dropped_note}"
        )
    producer = producer_of_input(dz)
    if producer in pending:
        return producer
    own = threading.get_ident()
    if pending[-1].thread != own and own in (call.thread for call in pending):
        raise RuntimeError(
            "another thread has called this layer since this thread has, and backward() runs the last call; "
            "train in one thread at a time, pass call=, or give each thread a copy.deepcopy of the network"
        )
    if pending[-1].evaluation and layer.training and not all(call.evaluation for call in pending):
        return _last_in_training(pending)
    return pending[-1]


def _last_in_training(pending):
    """Return the last call in training, if no result of the later calls in evaluation exists."""
    last = max(i for i, call in enumerate(pending) if not call.evaluation)
    if not all(call.result_is_gone for call in pending[last + 1 :]):
        raise RuntimeError(
            "it is ambiguous which call this backward belongs to: the last call was made in eval(), an "
            "earlier one in training; make calls without a backward inside layers.no_grad(), or pass call=, "
            "the value of layer.last_call right after the forward"
        )
    return pending[last]


def _last_inside(outer, layer):
    """Return the last pending call of `layer` that the call `outer` made, or None."""
    inner = outer.inner
    while inner and inner[-1].freed:
        inner.pop()
    reference = layer._reference
    for call in reversed(inner):
        if call._layer is reference and not call.freed:
            return call
    return None


def drop_abandoned(layer):
    """Drop earlier calls in evaluation for which no backward can be expected; warn if many remain pending.

    Calls whose results no longer exist are dropped, and all but the last `MANY_PENDING` calls of a loss:
    whether a result that is a number still exists cannot be checked.
    """
    waiting = [call for call in layer._calls if call.outermost and (call.evaluation or not call._results)]
    losses = [call for call in waiting if call.evaluation and not call._results]
    for call in [call for call in waiting[:-1] if call.result_is_gone] + losses[:-MANY_PENDING]:
        waiting.remove(call)
        call.detach()
        vars(layer)["_dropped_note"] = DROPPED
    if len(waiting) >= MANY_PENDING and not vars(layer).get("_warned"):
        vars(layer)["_warned"] = True
        nbytes = human(sum(call.nbytes for call in waiting))
        warnings.warn(
            f"{layer.label}: {len(waiting)} calls wait for their backward and keep {nbytes}; make calls "
            "without a backward inside layers.no_grad(), or drop what they keep with layer.release()",
            stacklevel=4,
        )
