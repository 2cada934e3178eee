"""Calls of layers: what belongs to one call, and the call that a backward goes through.

A call made while another one runs belongs to that one, so that the backward of a network goes through exactly
the calls that its own forward made, however often its layers were called in between.

Which call an outermost ``layer.backward(dz)`` goes through:

1. The one given as ``call=``.
2. Otherwise, if `dz` was returned by the backward of another layer: the call whose result that layer took.
3. Otherwise the last call whose backward has not run.
"""

import threading
import warnings
import weakref

import numpy as np

from .. import _arguments as arguments
from ..memory.tables import human
from .context import LayerContext

#: Calls of one layer in evaluation that may wait for their backward before a warning.
MANY = 8

DROPPED = (
    "; earlier calls in eval() were dropped because their results no longer exist, or were many: keep the "
    "result, or layer.last_call, until the backward"
)


class _Here(threading.local):
    call = None  # the innermost call whose forward or backward runs
    decided = None, False  # (input of a recorded call, True if a container is to copy it)


here = _Here()


class Call(LayerContext):
    """One call of a layer: what it saved, and the calls of other layers that it made.

    Attributes
    ----------
    outermost : bool
        False for a call that another call made.
    training : bool
        The mode that the layer was in.
    evaluation : bool
        True for an outermost call in evaluation, and for a loss of what such a call returned.
    inner : list of Call
        The calls of other layers made by this one, in their order, whose backward has not run.
    inputs : tuple of int or str
        Position or name of each input that has a gradient: floating arrays.
    arguments : tuple of (tuple, dict), or None
        Of the forward, while that runs.
    outer : Call or None
        The call that made this one, while the forward runs.
    """

    outermost = training = True
    evaluation = False
    inner = _results = _sources = ()
    inputs, positional, outer, _several = (0,), 1, None, False

    def __init__(self, layer, inputs, options, outer):
        super().__init__(layer)
        self._layer = layer._reference
        self.arguments = inputs, options
        if outer is not None:
            self.outermost, self.outer = False, outer
        if not layer.training:
            self.training = False
        if options or len(inputs) != 1 or not _floats(inputs[0]):
            self.positional = len(inputs)
            self.inputs = _with_gradient(inputs, options, layer.inputs_without_gradient)

    @property
    def layer(self):
        """The layer, or None if it is gone."""
        return self._layer()

    def release(self, why=None):
        """Unlock and drop everything that this call and those inside it keep; harmless if repeated.

        Parameters
        ----------
        why : str, optional
            For the message of a backward that finds no call.
        """
        if self.freed:
            return
        super().release()
        self._leave_list(why)
        if self.inner:
            for call in self.inner:
                call.release(why)
            self.inner = ()

    def detach(self):
        """Remove this call and those inside it from the lists of their layers.

        What they keep lives as long as somebody refers to this call.
        """
        self._leave_list()
        for call in self.inner:
            call.detach()

    def _leave_list(self, why=None):
        layer = self._layer()
        if layer is None:
            return
        calls = layer._calls
        if calls and calls[-1] is self:
            calls.pop()
        elif self in calls:
            calls.remove(self)
        if why is not None:
            vars(layer)["_last"] = why

    def is_from_outside(self, array):
        """Return whether `array` is memory of the caller that must stay as it is."""
        decided, copy = here.decided
        if array is decided:
            return copy
        root = self
        while root.outer is not None:
            root = root.outer
        layer = root.layer
        if root.arguments is None:  # a backward runs
            return False
        if layer.overwrite_input or (root is not self and layer.overwrites_input):
            return False
        given, options = root.arguments
        named = (value for name, value in options.items() if name != "out")  # its content is of no use
        arrays = [one for one in (*given, *named) if isinstance(one, np.ndarray)]
        return any(np.may_share_memory(array, one) for one in arrays)

    # ---- after the forward -----------------------------------------------------------------------------

    def finish(self, layer, result):
        """Note the result of the forward, and file this call where its backward will look for it."""
        (inputs, options), outer = self.arguments, self.outer
        layer._calls.append(self)
        self.finish_recorded(result)
        if outer is None:
            self._note_arrays(inputs, options, result)
            self.evaluation = not self.training
            if not self._results:
                self.evaluation = self.evaluation or any(map(_in_evaluation, self._sources))
            if len(layer._calls) > 1 and (self.evaluation or not self._results):
                _tidy(layer)

    def finish_recorded(self, result):
        """Note the result of the forward, and that this call belongs to the one that made it, if any.

        That is all for a call on a tape: its backward is given the call.
        """
        outer = self.outer
        self.arguments = self.outer = None
        if isinstance(result, np.ndarray):
            self._output = result.shape, result.dtype
        elif isinstance(result, tuple):
            self._several, self._output = True, tuple(map(_like, result))
        if outer is None:
            return
        if outer.inner:
            outer.inner.append(self)
        else:
            outer.inner = [self]

    def _note_arrays(self, inputs, options, result):
        if options or len(inputs) != 1:
            inputs = [array for array in (*inputs, *options.values()) if _floats(array)]
        self._sources = [_producer_of(array) for array in inputs]
        own = weakref.ref(self)
        self._results = [
            _note(_results, array, own)
            for array in (result if self._several else (result,)) if isinstance(array, np.ndarray)
        ]  # fmt: skip

    # ---- in the backward -------------------------------------------------------------------------------

    def check_gradient(self, dz):
        """Return dz if it fits the result of the forward; a None among several stands for zeros."""
        if not self._several:
            if self._output is not None:
                arguments.gradient("dz", dz, *self._output)
            return dz
        expected = self._output
        if not isinstance(dz, (tuple, list)) or len(dz) != len(expected):
            got = f"{len(dz)} of them" if isinstance(dz, (tuple, list)) else type(dz).__name__
            raise TypeError(
                f"dz: expected a tuple of {len(expected)} gradients, one for each result, got {got}"
            )
        checked = []
        for i, (part, like) in enumerate(zip(dz, expected, strict=True)):
            if part is None and like is not None:
                part = np.zeros(*like)
            elif like is not None:
                arguments.gradient(f"dz[{i}]", part, *like)
            checked.append(part)
        return tuple(checked)

    def split(self, found, own):
        """Return (gradients of the inputs, [(parameter, gradient)]) from what `gradients` returned.

        Parameters
        ----------
        found : ndarray or tuple
        own : dict of str to Parameter
            The layer's own parameters.
        """
        gradients = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        inputs, wanted = len(self.inputs), len(self.inputs) + len(own)
        extra = len(gradients) - wanted
        if extra > 0 and self._nothing_for_the_rest(gradients, extra):
            gradients = tuple(gradients[i] for i in self.inputs) + gradients[inputs + extra :]
        elif extra:
            raise ValueError(
                f"gradients returned {_count(len(gradients))}, expected {wanted}: for "
                + ", ".join(_listed("input", self.inputs) + _listed("parameter", own))
            )
        return gradients[:inputs], zip(own.values(), gradients[inputs:], strict=True)

    def _nothing_for_the_rest(self, gradients, extra):
        """Return whether all inputs are positional, and those without a gradient have None."""
        rest = [i for i in range(self.positional) if i not in self.inputs]
        named = any(isinstance(name, str) for name in self.inputs)
        return len(rest) == extra and not named and all(gradients[i] is None for i in rest)

    def note_gradients(self, gradients):
        """Remember which calls made the inputs that these gradients belong to."""
        if not isinstance(gradients, tuple):
            gradients = (gradients,)
        for gradient, source in zip(gradients, self._sources, strict=False):
            if isinstance(gradient, np.ndarray):
                if source is not None:
                    _note(_gradients, gradient, source)
                elif _gradients:
                    _gradients.pop(id(gradient), None)

    @property
    def result_is_gone(self):
        """True if the result was arrays, and none of them exists any more."""
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


def _with_gradient(inputs, options, without):
    found = tuple(i for i, value in enumerate(inputs) if _floats(value) and i not in without)
    if options:
        found += tuple(key for key, value in options.items() if key != "out" and _floats(value))
    return found


def _floats(value):
    return isinstance(value, np.ndarray) and value.dtype.kind in "fcV"  # V: bfloat16


def _like(result):
    return (result.shape, result.dtype) if isinstance(result, np.ndarray) else None


def _in_evaluation(source):
    call = source and source()
    return call is not None and call.evaluation


def _count(number):
    return f"{number} array{'' if number == 1 else 's'}"


def _listed(kind, names):
    names = [str(name) for name in names]
    if not names:
        return []
    *first, last = names
    return [f"{kind}{'s' if first else ''} {', '.join(first)}{' and ' if first else ''}{last}"]


# ---- which call made an array --------------------------------------------------------------------------

_results = {}  # id of an array -> its _Noted, with a weak reference to the outermost call that made it
_gradients = {}  # id of a gradient -> its _Noted, the same for the array that it is the gradient of


class _Noted(weakref.ref):
    """Weak reference to an array, and the call that it belongs to."""

    __slots__ = ("call", "key")


def _forget_result(reference):
    _results.pop(reference.key, None)


def _forget_gradient(reference):
    _gradients.pop(reference.key, None)


def _note(table, array, call):
    reference = _Noted(array, _forget_result if table is _results else _forget_gradient)
    reference.key, reference.call = id(array), call
    table[reference.key] = reference
    return reference


def _producer_of(array):
    found = _results.get(id(array))
    return found.call if found is not None and found() is array else None


def _producer_of_input(gradient):
    """Return the call that made the array that `gradient` was returned for, or None."""
    if isinstance(gradient, tuple):
        gradient = next((part for part in gradient if part is not None), None)
    found = _gradients.get(id(gradient))
    return found.call() if found is not None and found() is gradient else None


# ---- which call a backward goes through ----------------------------------------------------------------


def find(layer, dz, outer):
    """Return the call of `layer` that ``layer.backward(dz)`` goes through, one inside the call `outer`."""
    if outer is not None:
        found = _last_inside(outer, layer)
        if found is not None:
            return found
    pending = list(layer._calls)
    if len(pending) == 1:
        return pending[0]
    pending = [call for call in pending if call.outermost] or pending
    if not pending:
        raise RuntimeError(f"backward() was called without a pending forward: {layer._last}{layer._dropped}")
    producer = _producer_of_input(dz)
    if producer in pending:
        return producer
    own = threading.get_ident()
    if pending[-1].thread != own and own in (call.thread for call in pending):
        raise RuntimeError(
            "another thread has called this layer since this thread has, and backward() goes through the "
            "last call; train in one thread at a time, pass call=, or give each thread a copy.deepcopy of "
            "the network"
        )
    return pending[-1]


def _last_inside(outer, layer):
    inner = outer.inner
    while inner and inner[-1].freed:
        inner.pop()
    reference = layer._reference
    for call in reversed(inner):
        if call._layer is reference and not call.freed:
            return call
    return None


def check(layer, call):
    """Return `call` if it is one of `layer` whose backward can run."""
    if not isinstance(call, Call):
        raise TypeError(f"call: expected a Call, such as layer.last_call, got {type(call).__name__}")
    if call.layer is not layer:
        raise ValueError(f"call: expected a call of this layer, got one of {call.name}")
    if call.freed:
        raise RuntimeError("call: its backward has run already, or it was released; run the forward again")
    return call


# ---- calls without a backward --------------------------------------------------------------------------


def _tidy(layer):
    """Drop earlier calls in evaluation that nobody can need; warn if many calls wait all the same.

    Those are the calls whose results no longer exist, and of a loss, whose result is a number, all but the
    last few.
    """
    waiting = [call for call in layer._calls if call.outermost and (call.evaluation or not call._results)]
    losses = [call for call in waiting if call.evaluation and not call._results]
    for call in [call for call in waiting[:-1] if call.result_is_gone] + losses[:-MANY]:
        waiting.remove(call)
        call.detach()
        vars(layer)["_dropped"] = DROPPED
    if len(waiting) >= MANY and not vars(layer).get("_warned"):
        vars(layer)["_warned"] = True
        nbytes = human(sum(call.nbytes for call in waiting))
        warnings.warn(
            f"{layer.label}: {len(waiting)} calls wait for their backward and keep {nbytes}; make calls "
            "without a backward inside layers.no_grad(), or drop what they keep with layer.release()",
            stacklevel=4,
        )
