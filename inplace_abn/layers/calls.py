"""Calls of layers: what belongs to one call.

A call made while another call runs belongs to that one. So the backward of a network runs exactly the calls
that its own forward made, however often its layers were called in between. `pending` finds the call that an
outermost backward belongs to.
"""

import threading
import weakref

import numpy as np

from .. import _arguments as arguments
from . import pending
from .context import LayerContext
from .producers import note_result, producer_of

_CALLER_IS_GONE = "it was called by a layer that no longer exists; keep that layer, or call this one itself"


class _Running(threading.local):
    """What the current thread runs.

    Attributes
    ----------
    call : Call or None
        The innermost call whose forward or backward runs.
    copy_decision : (ndarray or None, bool)
        Set by a tape: the input of the call that it records, and True if a container must copy it.
    """

    call = None
    copy_decision = None, False


running = _Running()


class Call(LayerContext):
    """One call of a layer: what it saved, and the calls of other layers that it made.

    Attributes
    ----------
    outermost : bool
        False for a call that another call made.
    training : bool
        The mode of the layer at the call.
    evaluation : bool
        True for an outermost call in evaluation, and for a loss whose input such a call returned.
    inner : list of Call
        The pending calls of other layers made by this one, in their order.
    inputs : tuple of int or str
        Position or keyword of each input that gets a gradient: floating-point arrays.
    positional : int
        Number of positional inputs.
    arguments : tuple of (tuple, dict), or None
        The arguments of the forward while it runs, else None.
    outer : Call or None
        The call that made this one, while the forward runs.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import layers
    >>> layer, x = layers.Linear(3, 2), np.ones((4, 3), np.float32)
    >>> z = layer(x)
    >>> list(layer.last_call.saved)
    ['input']
    >>> layer.backward(z, call=layer.last_call).shape
    (4, 3)
    """

    outermost = training = True
    evaluation = False
    inner = ()
    inputs, positional, outer = (0,), 1, None
    _input_shapes = ()  # of the inputs that get a gradient
    _returns_tuple = False  # True if the result is a tuple
    _results = ()  # weak references to the arrays that an outermost call returned
    _sources = ()  # for each input with a gradient: weak reference to the call that made it, or None

    def __init__(self, layer, inputs, options, outer):
        super().__init__(layer)
        self._layer = layer._reference
        self.arguments = inputs, options
        if outer is not None:
            self.outermost, self.outer = False, outer
        if not layer.training:
            self.training = False
        if options or len(inputs) != 1 or not is_floating(inputs[0]):
            self.positional = len(inputs)
            self.inputs = _keys_of_gradients(inputs, options, layer.inputs_without_gradient)
            self._input_shapes = tuple(
                (inputs[i] if isinstance(i, int) else options[i]).shape for i in self.inputs
            )
        else:
            self._input_shapes = (inputs[0].shape,)

    @property
    def layer(self):
        """The layer, or None if it no longer exists."""
        return self._layer()

    def release(self, why=None):
        """Unlock and drop everything that this call and those inside it keep. Repeated calls do nothing.

        Parameters
        ----------
        why : str, optional
            Why no backward can follow, for the error message of `Layer.backward`.
        """
        if self.freed:
            return
        super().release()
        self._remove_from_layer(why)
        if self.inner:
            for call in self.inner:
                call.release(why)
            self.inner = ()

    def __del__(self):
        """Release the calls inside with their own message: their layers may still exist."""
        if not self.freed:
            for call in self.inner:
                call.release(_CALLER_IS_GONE)
            self.release()

    def detach(self):
        """Remove this call and those inside it from the lists of their layers.

        Their arrays are then released with the last reference to this call.
        """
        self._remove_from_layer()
        for call in self.inner:
            call.detach()

    def _remove_from_layer(self, why=None):
        """Remove this call from the pending calls of its layer; store `why` for the message of `backward`."""
        layer = self._layer()
        if layer is None:
            return
        calls = layer._calls
        if calls and calls[-1] is self:
            calls.pop()
        elif self in calls:
            calls.remove(self)
        if why is not None:
            vars(layer)["_why_no_call"] = why

    def is_from_outside(self, array):
        """Return True if `array` is memory of the caller, which must not be overwritten."""
        recorded_input, must_copy = running.copy_decision
        if array is recorded_input:
            return must_copy
        root = self
        while root.outer is not None:
            root = root.outer
        layer = root.layer
        if root.arguments is None:  # a backward runs
            return False
        if layer.may_overwrite_input or (root is not self and layer.overwrites_input):
            return False  # the root has copied its input, or its class declares that it overwrites it
        arrays = [value for value in all_inputs(*root.arguments) if isinstance(value, np.ndarray)]
        return any(np.may_share_memory(array, other) for other in arrays)

    # ---- after the forward -----------------------------------------------------------------------------

    def finish(self, layer, result):
        """Note the result of the forward, and add this call to the pending calls of its layer."""
        (inputs, options), outer = self.arguments, self.outer
        layer._calls.append(self)
        self.finish_recorded(result)
        if outer is None:
            self._note_arrays(inputs, options, result)
            self.evaluation = not self.training
            if not self._results:
                self.evaluation = self.evaluation or any(map(_is_in_evaluation, self._sources))
            if len(layer._calls) > 1 and (self.evaluation or not self._results):
                pending.drop_abandoned(layer)

    def finish_recorded(self, result):
        """Note the result of the forward, and add this call to those of the call that made it, if any.

        A call on a tape needs no more than that: the tape passes the call to the backward.
        """
        outer = self.outer
        self.arguments = self.outer = None
        if isinstance(result, np.ndarray):
            self._output = result.shape, result.dtype
        elif isinstance(result, tuple):
            self._returns_tuple, self._output = True, tuple(map(_shape_and_dtype, result))
        if outer is None:
            return
        if outer.inner:
            outer.inner.append(self)
        else:
            outer.inner = [self]

    def _note_arrays(self, inputs, options, result):
        """Note which calls made the inputs, and that this call made the result."""
        if options or len(inputs) != 1:
            inputs = [array for array in (*inputs, *options.values()) if is_floating(array)]
            self._sources = [producer_of(array) for array in inputs]
        else:
            self._sources = (producer_of(inputs[0]),)
        this = weakref.ref(self)
        if self._returns_tuple:
            self._results = [note_result(array, this) for array in result if isinstance(array, np.ndarray)]
        elif self._output is not None:
            self._results = (note_result(result, this),)

    # ---- in the backward -------------------------------------------------------------------------------

    def check_gradient(self, dz):
        """Return dz if it has shape and dtype of the result; in a tuple of gradients, None becomes zeros.

        Raises
        ------
        TypeError, ValueError
            If dz has another type, dtype, shape or length.
        """
        if not self._returns_tuple:
            if self._output is not None:
                shape, dtype = self._output
                # Compare first: faster than a call of arguments.gradient.
                if type(dz) is not np.ndarray or dz.shape != shape or dz.dtype != dtype:
                    arguments.gradient("dz", dz, shape, dtype)
            return dz
        expected = self._output
        if not isinstance(dz, (tuple, list)) or len(dz) != len(expected):
            raise TypeError(
                f"dz: expected a tuple of {len(expected)} gradients, one for each result, got "
                f"{number_or_type(dz)}"
            )
        checked = []
        for i, (gradient, shape_and_dtype) in enumerate(zip(dz, expected, strict=True)):
            if gradient is None and shape_and_dtype is not None:
                gradient = np.zeros(*shape_and_dtype)
            elif shape_and_dtype is not None:
                arguments.gradient(f"dz[{i}]", gradient, *shape_and_dtype)
            checked.append(gradient)
        return tuple(checked)

    def split(self, returned, parameters):
        """Return (gradients of the inputs, pairs of parameter and gradient) from the result of ``gradients``.

        Parameters
        ----------
        returned : ndarray, tuple or list
        parameters : dict of str to Parameter
            The layer's own parameters.
        """
        gradients = tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)
        inputs, expected = len(self.inputs), len(self.inputs) + len(parameters)
        extra = len(gradients) - expected
        if extra > 0 and self._rest_has_no_gradients(gradients, extra):
            gradients = tuple(gradients[i] for i in self.inputs) + gradients[inputs + extra :]
        elif extra:
            raise ValueError(
                f"gradients returned {_number_of_arrays(len(gradients))}, expected {expected}: for "
                + ", ".join(_enumeration("input", self.inputs) + _enumeration("parameter", parameters))
            )
        self.check_input_gradients(gradients[:inputs])
        return gradients[:inputs], zip(parameters.values(), gradients[inputs:], strict=True)

    def check_input_gradients(self, gradients):
        """Raise a ValueError if a gradient is no array of the shape of its input. None is no gradient."""
        for name, shape, gradient in zip(self.inputs, self._input_shapes, gradients, strict=True):
            if gradient is not None and getattr(gradient, "shape", None) != shape:
                raise ValueError(
                    f"gradients returned {_shape_or_type(gradient)} for input {name}, expected the input's "
                    f"shape {shape}"
                )

    def _rest_has_no_gradients(self, gradients, extra):
        """Return True if ``gradients`` returned None for each of the `extra` inputs that get no gradient.

        Such inputs, for example the target of a loss, may have None in the result, or no element at all. Only
        positional inputs are considered.
        """
        rest = [i for i in range(self.positional) if i not in self.inputs]
        named = any(isinstance(name, str) for name in self.inputs)
        return len(rest) == extra and not named and all(gradients[i] is None for i in rest)

    @property
    def result_is_gone(self):
        """True if the result consisted of arrays, and none of them exists any more."""
        return bool(self._results) and all(result() is None for result in self._results)

    @property
    def nbytes(self):
        """Bytes that this call and those inside it keep, each array counted once."""
        calls, arrays = [self], {}
        while calls:
            call = calls.pop()
            calls += call.inner
            kept = [array for array in call._saved.values() if isinstance(array, np.ndarray)]
            arrays.update({id(array): array for array in kept})
        return sum(array.nbytes for array in arrays.values())


def check(layer, call):
    """Return `call` if it is a call of `layer` whose backward can run, else raise an error."""
    if not isinstance(call, Call):
        raise TypeError(f"call: expected a Call, such as layer.last_call, got {type(call).__name__}")
    if call.layer is not layer:
        raise ValueError(f"call: expected a call of this layer, got one of {call.name}")
    if call.freed:
        raise RuntimeError("call: its backward has run already, or it was released; run the forward again")
    return call


def is_floating(value):
    """Return True for an array that may have a gradient."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fcV"  # V: bfloat16


def all_inputs(inputs, options):
    """Return the positional and the keyword inputs; ``out=`` is an output."""
    return (*inputs, *(value for name, value in options.items() if name != "out"))


def number_or_type(value):
    """Return "3 of them" for a sequence, the type of another value, for messages about gradients."""
    return f"{len(value)} of them" if isinstance(value, (tuple, list)) else type(value).__name__


def _keys_of_gradients(inputs, options, without):
    """Return the positions and keywords of the inputs that get a gradient."""
    keys = tuple(i for i, value in enumerate(inputs) if is_floating(value) and i not in without)
    if options:
        keys += tuple(key for key, value in options.items() if key != "out" and is_floating(value))
    return keys


def _shape_or_type(value):
    """Return "shape (2, 3)" for an array, "a list" for another value."""
    return f"shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _shape_and_dtype(result):
    """Return (shape, dtype) of an array, None for another value."""
    return (result.shape, result.dtype) if isinstance(result, np.ndarray) else None


def _is_in_evaluation(source):
    """Return True if the call that a weak reference refers to still exists, and was made in evaluation."""
    call = source and source()
    return call is not None and call.evaluation


def _number_of_arrays(number):
    """Return "1 array", "2 arrays"."""
    return f"{number} array{'' if number == 1 else 's'}"


def _enumeration(kind, names):
    """Return ["inputs 0, 1 and residual"] for the kind "input" and three names; an empty list for none."""
    if not names:
        return []
    *first, last = map(str, names)
    return [f"{kind}{'s' if first else ''} {', '.join(first)}{' and ' if first else ''}{last}"]
