"""The first layer whose result is not finite, watched for inside `watch_nonfinite`."""

import threading
import weakref
from contextlib import contextmanager

import numpy as np


class _Seen(threading.local):
    depth = 0  # of calls inside calls
    last = ()  # weak references to the results of the last outermost call
    first = None  # where the first value that is not finite appeared


_seen = _Seen()

#: Number of `watch_nonfinite` blocks that are open, in all threads.
watching = 0


class NonfiniteWatch:
    """What `watch_nonfinite` has found in this thread."""

    @property
    def first(self):
        """Where the first such value appeared, such as "the result of conv1 (Conv2d)"; or None."""
        return _seen.first


@contextmanager
def watch_nonfinite():
    """Check the inputs and results of all layers called inside for NaN and infinity.

    A `CrossEntropy` or `MSELoss` that is not finite then names the layer where that began. Each check reads
    the array once more, one sample at a time.

    Yields
    ------
    NonfiniteWatch
        Its `first` names the place, for the last network that was called: a call that goes on with the
        result of the one before belongs to the same network.

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
    """Note that a layer is called. An outermost call starts anew unless it takes a result of the last."""
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
    return all(np.isfinite(sample).all() for sample in array) if array.ndim else bool(np.isfinite(array))
