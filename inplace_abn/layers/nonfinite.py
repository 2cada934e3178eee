"""`watch_nonfinite`: find the first layer with a non-finite result."""

import threading
import weakref
from contextlib import contextmanager

import numpy as np


class _Seen(threading.local):
    depth = 0  # number of nested calls that run
    last = ()  # weak references to the results of the last outermost call
    first = None  # description of the first non-finite array


_seen = _Seen()

#: Number of open `watch_nonfinite` blocks of all threads.
watching = 0


class NonfiniteWatch:
    """The result of `watch_nonfinite` in this thread."""

    @property
    def first(self):
        """Description of the first non-finite array, such as "the result of conv1 (Conv2d)", or None."""
        return _seen.first


@contextmanager
def watch_nonfinite():
    """Check the inputs and results of all layers called inside for NaN and infinity.

    If a `CrossEntropy` or `MSELoss` is not finite, its error message then names the first layer with such a
    result. Each check reads the whole array, one sample at a time.

    Yields
    ------
    NonfiniteWatch
        Its `first` describes the first non-finite array of the last network that was called. A call belongs
        to the same network as the call before if it takes the result of that call.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import layers
    >>> net = layers.Sequential(layers.Linear(2, 2, bias=False), layers.Activation("relu"))
    >>> net[0].weight.data[0] = np.inf
    >>> with layers.watch_nonfinite() as watch:
    ...     z = net(np.ones((1, 2), np.float32))
    >>> watch.first
    'the result of 0 (Linear)'
    """
    global watching
    watching += 1
    _seen.first, _seen.last = None, ()
    try:
        yield NonfiniteWatch()
    finally:
        watching -= 1


def begin(layer, inputs):
    """Check the inputs of a call; an outermost call resets `first` unless it takes a result of the last."""
    _seen.depth += 1
    last = {id(array) for array in (reference() for reference in _seen.last) if array is not None}
    if _seen.depth > 1 or any(id(array) in last for array in inputs):
        return
    _seen.first = None
    if not all(map(_is_finite, inputs)):
        _seen.first = f"the input of {layer.label}"


def end(layer, result):
    """Check the result of a call, which is None if the call failed."""
    _seen.depth -= 1
    results = result if isinstance(result, tuple) else (result,)
    if _seen.first is None and not all(map(_is_finite, results)):
        _seen.first = f"the result of {layer.label}"
    _seen.last = [weakref.ref(array) for array in results if isinstance(array, np.ndarray)]


def report():
    """Return a clause of an error message that names the first non-finite array."""
    if _seen.first is None:
        return "all layers before the loss returned finite results"
    return f"the first value that is not finite appeared in {_seen.first}"


def _is_finite(array):
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fV":
        return True
    # One sample at a time: no temporary of the size of the batch.
    return all(np.isfinite(sample).all() for sample in array) if array.ndim else bool(np.isfinite(array))
