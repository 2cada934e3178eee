"""The first layer whose result is not finite: watched for while a ledger is on."""

import threading
import weakref

import numpy as np


class _Seen(threading.local):
    depth = 0  # of calls inside of calls
    last = ()  # weak references to the results of the last outermost call
    first = None  # where the first value appeared that is not finite


_seen = _Seen()


def begin(layer, inputs):
    """Note that a layer is called. An outermost call starts anew, unless it goes on with the last result."""
    _seen.depth += 1
    last = {id(array) for array in (reference() for reference in _seen.last) if array is not None}
    if _seen.depth > 1 or any(id(array) in last for array in inputs):
        return
    _seen.first = None
    if not all(map(_is_finite, inputs)):
        _seen.first = f"the input of {layer.label}"


def end(layer, result):
    """Note the result of the call; None if it failed."""
    _seen.depth -= 1
    results = result if isinstance(result, tuple) else (result,)
    if _seen.first is None and not all(map(_is_finite, results)):
        _seen.first = f"the result of {layer.label}"
    _seen.last = [weakref.ref(array) for array in results if isinstance(array, np.ndarray)]


def report():
    """Return where the first value that is not finite appeared, as a clause of a message."""
    if _seen.first is None:
        return "all layers before gave finite results"
    return f"the first value that is not finite appeared in {_seen.first}"


def _is_finite(array):
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fV":
        return True
    # One sample at a time: no temporary of the size of the batch.
    return all(np.isfinite(sample).all() for sample in array)
