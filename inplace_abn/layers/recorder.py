"""The recording part of a tape: the arrays that calls of layers took and returned."""

import threading
import weakref

import numpy as np

from .. import _arguments as arguments
from .calls import Call, all_inputs, is_floating, running
from .context import is_grad_enabled
from .recorded_arrays import RecordedArrays, describe, share_memory


class _Active(threading.local):
    tape = None


#: ``active.tape`` records the calls of this thread. It is None while a recorded call runs, so that calls
#: which a layer makes inside itself are not recorded.
active = _Active()


class Recorder:
    """Records the calls of layers in a ``with`` block; base of `Tape`.

    Each content of an array is a value, identified by a number: a layer that works in place returns its input
    array with a new value.

    Parameters
    ----------
    inputs : sequence of ndarray
        The arrays from outside that may be used. If empty, any array may be used.
    protected : sequence of ndarray
        Arrays that no call may overwrite.
    """

    def __init__(self, inputs=(), protected=()):
        for i, array in enumerate(inputs):
            arguments.plain_array(f"inputs[{i}]", array)
        self._declared, self._protected = inputs, protected
        #: Recorded calls: (layer, its Call, values of the inputs that get a gradient, values of the results,
        #: True if the result is a tuple). The value of an input that is a constant is None.
        self._calls = []
        self._arrays = RecordedArrays()
        self._last_value = 0
        self._outside = []  # (weak reference, value, description) of each array from outside
        self._scalars = []  # (result that is no array, value)
        self._closed = None  # if not None, the reason why this tape can no longer be used
        self._outer_tape = None  # the tape that was active before the block
        self._is_inside = None  # None before the block, True inside, False after it

    def __enter__(self):
        if self._is_inside is not None:
            raise RuntimeError("tape: one tape records one block; open another one with layers.record()")
        self._is_inside = True
        self._outer_tape, active.tape = active.tape, self
        if is_grad_enabled():
            for i, array in enumerate(self._declared):
                if self._arrays.find(array) is None:
                    self._enter_outside(array, f"inputs[{i}]")
        return self

    def __exit__(self, kind, error, traceback):
        active.tape, self._outer_tape, self._is_inside = self._outer_tape, None, False
        self._arrays.unlock_all()
        if kind is not None:
            self._close("its block ended with an error")

    # ---- a call --------------------------------------------------------------------------------------------

    def call(self, layer, inputs, options):
        """Call a layer and record the call; used by `Layer.__call__` while this tape is active."""
        if not is_grad_enabled():
            return self._call_unrecorded(layer, inputs, options)
        if self._closed is not None:
            self.check_open()
        entries, sources = self._arrays.entries, []
        for i, array in enumerate(all_inputs(inputs, options) if options else inputs):
            entry = entries.get(id(array))
            if entry is not None and entry[0]() is array:
                sources.append(entry[1])
            elif is_floating(array):
                sources.append(self._enter(layer, i, array))
        if layer.inputs_without_gradient:
            sources = self._with_gradient(layer, inputs, sources)
        written = unlocked = None
        if options or layer.overwrites_input or layer.returns_input:
            written, unlocked = self._unlock(layer, inputs, options)
        call = Call(layer, inputs, options, running.call)
        active.tape = None
        try:
            z = layer._run(call, inputs, options)
        finally:
            active.tape = self
            if unlocked is not None:
                self._lock(unlocked)
        if written is not None:
            self._arrays.mark_overwritten(written, layer)
        call.finish_recorded(z)
        for inner in call.inner:
            inner.detach()
        returns_tuple = isinstance(z, tuple)
        results = [self._enter_result(layer, result) for result in (z if returns_tuple else (z,))]
        self._calls.append((layer, call, sources, results, returns_tuple))
        return z

    def _call_unrecorded(self, layer, inputs, options):
        """Call a layer inside `no_grad`: its new arrays are constants for this tape."""
        if inputs and self._will_overwrite(layer, inputs[0]):
            self._refuse_protected(layer, inputs[0])
        active.tape = None
        try:
            z = layer(*inputs, **options)
        finally:
            active.tape, running.copy_decision = self, (None, False)
        for result in z if isinstance(z, tuple) else (z,):
            if is_floating(result) and self._arrays.find(result) is None:
                self._arrays.add(result, None, layer)
        return z

    def _unlock(self, layer, inputs, options):
        """Return (the array that the call will overwrite, or None; the arrays that were unlocked for it)."""
        array = inputs[0] if inputs and isinstance(inputs[0], np.ndarray) else None
        if array is not None and self._will_overwrite(layer, array):
            self._refuse_protected(layer, array)
            return array, self._arrays.unlock(array)
        written = options.get("out")
        # A layer may return a view of its input, which is writeable only if the input is: unlock the input.
        return written, self._arrays.unlock(written if array is None or not layer.returns_input else array)

    def _lock(self, arrays):
        """Undo `_unlock` after the call."""
        running.copy_decision = None, False
        for array in arrays:
            self._arrays.lock(array)

    def _will_overwrite(self, layer, array):
        """Return True if the call overwrites its first input. A container copies the array of the caller."""
        if not layer.overwrites_input:
            return False
        if not layer.copies_input:
            return True
        entry = self._arrays.find(array)
        outside = (
            running.call is None and (entry is None or entry[2] is None) and not layer.may_overwrite_input
        )
        copies = outside or any(share_memory(array, other) for other in self._protected)
        running.copy_decision = array, copies
        return not copies

    def _refuse_protected(self, layer, array):
        """Raise a ValueError if a layer would overwrite a protected array."""
        if any(share_memory(array, other) for other in self._protected):
            raise ValueError(
                f"{layer.label} would overwrite an input of the graph, of shape {array.shape}; begin with a "
                "layer that does not work in place, or set overwrites_input = True in the class of the graph"
            )

    # ---- arrays ----------------------------------------------------------------------------------------

    def _enter(self, layer, i, array):
        """Return the value of an input array that is not recorded yet; None for a constant."""
        by = self._arrays.overwritten_by(array)
        if by is not None:
            raise ValueError(
                f"{layer.label}: input {i}, of shape {array.shape}, was overwritten by {by.label} after the "
                "tape recorded it; use it before, or let a layer overwrite a copy"
            )
        name = f"{layer.label}: input {i}"
        if i not in layer.inputs_without_gradient:
            return self._enter_outside(array, name)
        self._refuse_sharing(array, name)
        self._arrays.add(array, None, None)
        return None

    def _with_gradient(self, layer, inputs, sources):
        """Return the values of the inputs that get a gradient; raise an error if another one is a result."""
        without = layer.inputs_without_gradient
        positions = [i for i, array in enumerate(inputs) if is_floating(array)]
        for i, value in zip(positions, sources, strict=False):
            if i in without and value is not None:
                source = self._arrays.find(inputs[i])[2]
                raise ValueError(
                    f"{layer.label}: input {i} is {describe(inputs[i], source)}, and this layer returns no "
                    "gradient for it; compute it inside no_grad()"
                )
        named = sources[len(positions) :]
        pairs = zip(positions, sources, strict=False)
        return [value for i, value in pairs if i not in without] + named

    def _enter_outside(self, array, name):
        """Enter an array from outside, and return its value."""
        self._refuse_sharing(array, name)
        if self._declared and not any(array is declared for declared in self._declared):
            raise ValueError(
                f"{name}, an array of shape {array.shape}, is neither an input of the tape nor the result of "
                "a recorded call; pass it to layers.record(), or make it by recorded calls: layers.add, mul, "
                "concat, or a layer"
            )
        value = self._next_value()
        self._arrays.add(array, value, None)
        self._outside.append((weakref.ref(array), value, name))
        return value

    def _refuse_sharing(self, array, name):
        """Raise a ValueError if an array that is not recorded shares memory with one that is."""
        for other, source in self._arrays.sharing(array):
            raise ValueError(
                f"{name}, an array of shape {array.shape} that no recorded call has made, shares memory with "
                f"{describe(other, source)}; its gradient would be lost. Make it by a layer instead of "
                "NumPy, such as layers.Flatten or one of your own; if it is another input, pass a copy"
            )

    def _next_value(self):
        self._last_value += 1
        return self._last_value

    def _enter_result(self, layer, result):
        """Enter a result of a layer, and return its value."""
        value = self._last_value = self._last_value + 1
        if is_floating(result):
            self._arrays.add(result, value, layer)
        elif not isinstance(result, np.ndarray):
            self._scalars.append((result, value))
        return value

    def value_of(self, name, array, first=False):
        """Return the value of a known array or other result.

        Parameters
        ----------
        name : str
            For messages.
        array : ndarray or float
        first : bool
            True for the value that an array from outside had when it was first used.
        """
        if first:
            for reference, value, _ in self._outside:
                if reference() is array:
                    return value
        for result, value in self._scalars:
            if result is array:
                return value
        entry = self._arrays.find(array)
        if entry is None:
            by = self._arrays.overwritten_by(array)
            if by is not None:
                raise ValueError(f"{name}: {by.label} has overwritten this array")
            raise ValueError(f"{name}: no recorded call took or returned this array")
        if entry[1] is None:
            raise ValueError(f"{name}: this array is a constant of the tape, without a gradient")
        return entry[1]

    # ---- the end -------------------------------------------------------------------------------------------

    def release(self):
        """Release what the recorded calls keep, without a backward."""
        self._close("its saved arrays were released")

    def _close(self, why):
        if self._closed is None:
            self._closed = why
        self._arrays.unlock_all()
        while self._calls:
            self._calls.pop()[1].release()

    def check_open(self):
        """Raise an error if the tape cannot be used any more."""
        if self._closed is not None:
            raise RuntimeError(
                f"tape: {self._closed}; record the forward on a new tape, with layers.record()"
            )
