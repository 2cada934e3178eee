"""The context of a call: the arrays that a forward keeps for its backward.

An operation is a pair of functions. Forward and backward share one `LayerContext`:

>>> import numpy as np
>>> def forward(ctx, x):
...     ctx.save_for_backward(input=x)
...     return x * x
>>> def backward(ctx, dz, *, overwrite=False):
...     return 2 * ctx.saved["input"] * dz
>>> ctx, x = LayerContext("square"), np.array([1.0, 3.0])
>>> z = forward(ctx, x)
>>> x.flags.writeable  # read-only until the context is released
False
>>> backward(ctx, np.ones(2))
array([2., 6.])
>>> ctx.release()
>>> x.flags.writeable
True
"""

import itertools
import threading
import weakref
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np

from .. import _arguments as arguments
from .. import _core, functional, memory
from .._shape_arrays import ShapeArray
from . import saved_arrays
from . import shape_normalization as normalization

#: Ends of error messages about a backward without a context.
RUN_FORWARD_AGAIN = "every backward needs a forward of its own, so run the forward again"
IN_NO_GRAD = "inside no_grad(), where nothing is kept for a backward; run the forward outside of it"


class _Mode(threading.local):
    grad = True
    recomputing = False


_mode = _Mode()
_ids = itertools.count()


def is_grad_enabled():
    """Return whether calls of layers are recorded for a backward: False inside `no_grad`, in this thread.

    Examples
    --------
    >>> with no_grad():
    ...     is_grad_enabled()
    False
    """
    return _mode.grad


@contextmanager
def no_grad():
    """Keep nothing for a backward in calls of layers inside the block, as for predictions.

    In-place layers still overwrite their input. The mode belongs to the thread.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import ABN
    >>> layer, x = ABN(1).eval(), np.ones((2, 1), np.float32)
    >>> with no_grad():
    ...     z = layer(x)
    >>> x.flags.writeable  # not kept
    True
    """
    before = is_grad_enabled()
    _mode.grad = False
    try:
        yield
    finally:
        _mode.grad = before


def is_recomputing():
    """Return True inside a `recomputing` block."""
    return _mode.recomputing


@contextmanager
def recomputing():
    """Mark calls inside the block as repetitions of earlier ones: they do not update running statistics.

    Calls keep arrays for their backward, even inside `no_grad`.
    """
    before = is_recomputing(), is_grad_enabled()
    _mode.recomputing = _mode.grad = True
    try:
        yield
    finally:
        _mode.recomputing, _mode.grad = before


def name_of(layer):
    """Return a function that returns the name of a layer, without a strong reference to the layer."""
    if isinstance(layer, str):
        return lambda: layer
    reference, kind = weakref.ref(layer), type(layer).__name__

    def name():
        layer = reference()
        return kind if layer is None else layer.label

    return name


# ---- the context -------------------------------------------------------------------------------------------


class _SavedByRole(dict):
    """What a context keeps: role -> array, None, or the recipe to recompute an array."""

    def __missing__(self, role):
        roles = ", ".join(map(repr, self)) or "nothing"
        raise KeyError(f"no array was saved as {role!r}; ctx.save_for_backward saved {roles}")


class LayerContext:
    """The arrays that one call of a forward keeps for its backward.

    An operation may set further attributes, for shapes, numbers and other small values.

    Parameters
    ----------
    layer : Layer or str
        The layer that is called, or a name. For error messages and `inplace_abn.memory`.

    Attributes
    ----------
    id : int
        Number of the call, increasing.
    recording : bool
        False if the call was made inside `no_grad`: nothing is kept.
    freed : bool
        True after `release`.
    thread : int
        `threading.get_ident` of the thread that made the call.
    normalization : inplace_abn.Context or None
        The context of `normalize`.

    Examples
    --------
    >>> import numpy as np
    >>> ctx, x = LayerContext("scaling"), np.ones(3)
    >>> ctx.save_for_backward(input=x)
    >>> x.flags.writeable  # locked until the backward has run
    False
    >>> ctx.release()
    >>> x.flags.writeable
    True
    """

    freed = False
    normalization = _offered = _output = None

    def __init__(self, layer="operation"):
        self.id = next(_ids)
        self.thread = threading.get_ident()
        self.recording = _mode.grad
        self._name = name_of(layer) if isinstance(layer, str) else layer._name_function
        self._saved = _SavedByRole()
        self._entries = []

    @property
    def name(self):
        """Name and type of the layer, for messages."""
        return self._name()

    def __reduce_ex__(self, protocol):
        raise TypeError(
            f"{self.name}: a LayerContext cannot be pickled or copied: it holds locks on the arrays that it "
            "keeps for the backward; run the backward first, or forward again where it is needed"
        )

    # ---- in the forward --------------------------------------------------------------------------------

    def save_for_backward(self, **arrays):
        """Keep arrays for the backward, without a copy. They are read-only until the context is released.

        An array that a checkpointing normalization can recompute is not kept; `saved` recomputes it.

        Parameters
        ----------
        **arrays : ndarray or None
            Role -> array, such as ``input=x``.
        """
        for role, array in arrays.items():
            can_be_offered = isinstance(array, np.ndarray) and self.recording
            recipe = saved_arrays.recipe(array) if can_be_offered else None
            if recipe is None:
                self.keep(role, array)
            else:
                self._saved[role] = recipe

    def keep(self, role, array):
        """Keep an array, even if it can be recomputed.

        Parameters
        ----------
        role : str
        array : ndarray or None
        """
        if not self.recording:
            return
        self._saved[role] = array
        if array is None:
            return
        self._entries.append(_core.save(array, owner=self._name, role=role))
        if memory.recorder is not None:
            memory.recorder.saved(self.id, self.name, role, array)

    def normalize(self, x, **arguments):
        """Return z of `inplace_abn.functional.forward`, and keep its context as `normalization`.

        With ``mean=``, ``var=`` and ``count=`` it is z of `inplace_abn.functional.normalize`.

        The arrays of that context are saved in the name of this layer, and released with this context.

        Parameters
        ----------
        x : ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
            Overwritten by the in-place strategies.
        **arguments
            As for `inplace_abn.functional.forward` or `normalize`.

        Returns
        -------
        ndarray of the shape and dtype of x
        """
        if isinstance(x, ShapeArray):
            forward = normalization.forward
        else:
            forward = _core.normalize if "mean" in arguments else _core.forward
        z, context = forward(x, owner=self._name if self.recording else "", **arguments)
        if self.recording:
            self.normalization = context
            self._saved.update(context.saved)
        return z

    def normalization_gradients(self, dz, *, overwrite=False):
        """Return `inplace_abn.functional.backward` of the context of `normalize`."""
        backward = normalization.backward if isinstance(dz, ShapeArray) else functional.backward
        return backward(self.normalization, dz, overwrite=overwrite)

    def expect_gradient_of(self, result):
        """Store shape and dtype of the result, for `check_gradient`."""
        self._output = (result.shape, result.dtype) if isinstance(result, np.ndarray) else None

    def temporary(self, nbytes):
        """Report scratch memory of `nbytes` bytes to the ledger, if one is active."""
        if memory.recorder is not None:
            memory.recorder.temporary(self.name, nbytes)

    def offer(self, array, recompute):
        """Let other contexts save the function ``recompute``, which returns `array`, instead of the array.

        The array is read-only until this context is released: ``recompute()`` would not see a write into it.
        """
        saved_arrays.offer(array, recompute)
        self._offered = weakref.ref(array)

    @contextmanager
    def holding(self, role, array):
        """Save `array` while the block runs: it is read-only, and in-place layers refuse to overwrite it."""
        entry = _core.save(array, owner=self._name, role=role)
        try:
            yield
        finally:
            entry.release()

    # ---- in the backward -------------------------------------------------------------------------------

    def check_gradient(self, dz):
        """Raise an error if dz is no array of the shape and dtype of the forward's result."""
        if self._output is not None:
            arguments.gradient("dz", dz, *self._output)

    @property
    def saved(self):
        """Read-only mapping of role to array. Recomputed arrays are kept until `release`.

        Raises
        ------
        RuntimeError
            After `release`, or if the call was made inside `no_grad`.
        """
        if self.freed:
            raise RuntimeError(
                f"{self.name}: the context of this call is freed, its saved arrays were released; "
                f"{RUN_FORWARD_AGAIN}"
            )
        if not self.recording:
            raise RuntimeError(f"{self.name}: this call was made {IN_NO_GRAD}")
        for role, entry in self._saved.items():
            if isinstance(entry, saved_arrays.Recipe):
                self._saved[role] = entry.make()
                self.temporary(self._saved[role].nbytes)
        return MappingProxyType(self._saved)

    def release(self):
        """Unlock and drop everything kept. Repeated calls do nothing."""
        if self.freed:
            return
        self.freed = True
        entries, self._entries = self._entries, []
        self._saved, self.normalization = _SavedByRole(), None
        for entry in entries:
            entry.release()
        offered = self._offered and self._offered()
        if offered is not None:
            saved_arrays.withdraw(offered)
        if entries and memory.recorder is not None:
            memory.recorder.freed(self.id)

    def __del__(self):
        if not self.freed:
            self.release()
