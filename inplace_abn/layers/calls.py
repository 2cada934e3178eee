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
from contextlib import suppress

import numpy as np

from ..memory.tables import human
from ..ops import _arguments as arguments
from .context import LayerContext

#: Calls of one layer in evaluation that may wait for their backward before a warning.
MANY = 8

DROPPED = (
    "; earlier calls in eval() were dropped because their results no longer exist: keep the result, or "
    "layer.last_call, until the backward"
)


class _Here(threading.local):
    call = None  # the innermost call whose forward or backward runs
    inputs = ()  # inputs and options of the outermost call, while its forward runs


here = _Here()


class Call(LayerContext):
    """One call of a layer: what it saved, and the calls of other layers that it made.

    Attributes
    ----------
    outermost : bool
        False for a call that another call made.
    training : bool
        The mode that the layer was in.
    inner : list of Call
        The calls of other layers made by this one, in their order, whose backward has not run.
    inputs : tuple of int or str
        Position or name of each input that has a gradient: floating arrays.
    """

    def __init__(self, layer, inputs, options):
        super().__init__(layer)
        self._layer = weakref.ref(layer)
        self.outermost = here.call is None
        self.training = layer.training
        self.inner = []
        self.positional = len(inputs)
        self.inputs = _with_gradient(inputs, options)
        self._results = self._sources = ()

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
        self.detach(why)
        for call in self.inner:
            call.release(why)
        self.inner = []

    def detach(self, why=None):
        """Remove this call and those inside it from the lists of their layers.

        What they keep lives as long as somebody refers to this call.
        """
        layer = self._layer()
        if layer is not None:
            with suppress(ValueError):  # it was detached before, or by another thread
                layer._calls.remove(self)
            if why is not None:
                layer._last = why
        for call in self.inner:
            call.detach(why)

    # ---- after the forward -----------------------------------------------------------------------------

    def finish(self, layer, inputs, options, result, outer):
        """Note the result of the forward, and file this call where its backward will look for it."""
        self.expect_gradient_of(result)
        layer._calls.append(self)
        if outer is not None:
            outer.inner.append(self)
            return
        results = result if isinstance(result, tuple) else (result,)
        self._sources = tuple(_producer_of(array) for array in (*inputs, *options.values()) if _floats(array))
        self._results = tuple(weakref.ref(array) for array in results if isinstance(array, np.ndarray))
        for array in results:
            if isinstance(array, np.ndarray):
                _note(_results, array, weakref.ref(self))
        if len(layer._calls) > 1 and not (self.training and self._results):
            _tidy(layer)

    def expect_gradient_of(self, result):
        """Note shape and dtype of the result, or of each of several, for `check_gradient`."""
        if isinstance(result, tuple):
            self._output = tuple(_like(part) for part in result)
        else:
            self._output = _like(result)
        self._several = isinstance(result, tuple)

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
        return gradients[:inputs], list(zip(own.values(), gradients[inputs:], strict=True))

    def _nothing_for_the_rest(self, gradients, extra):
        """Return whether all inputs are positional, and those without a gradient have None."""
        rest = [i for i in range(self.positional) if i not in self.inputs]
        named = any(isinstance(name, str) for name in self.inputs)
        return len(rest) == extra and not named and all(gradients[i] is None for i in rest)

    def note_gradients(self, gradients):
        """Remember which calls made the inputs that these gradients belong to."""
        for gradient, source in zip(gradients, self._sources, strict=False):
            if isinstance(gradient, np.ndarray):
                if source is not None:
                    _note(_gradients, gradient, source)
                else:
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


def _with_gradient(inputs, options):
    found = tuple(i for i, value in enumerate(inputs) if _floats(value))
    if options:
        found += tuple(key for key, value in options.items() if _floats(value))
    return found


def _floats(value):
    return isinstance(value, np.ndarray) and value.dtype.kind in "fcV"  # V: bfloat16


def _like(result):
    return (result.shape, result.dtype) if isinstance(result, np.ndarray) else None


def _count(number):
    return f"{number} array{'' if number == 1 else 's'}"


def _listed(kind, names):
    names = [str(name) for name in names]
    if not names:
        return []
    *first, last = names
    return [f"{kind}{'s' if first else ''} {', '.join(first)}{' and ' if first else ''}{last}"]


# ---- which call made an array --------------------------------------------------------------------------

_results = {}  # id of an array -> (weak reference to it, weak reference to the outermost call that made it)
_gradients = {}  # id of a gradient -> (weak reference to it, the same of what it is the gradient of)


def _note(table, array, call):
    key = id(array)
    table[key] = weakref.ref(array, lambda _: table.pop(key, None)), call


def _noted(table, array):
    found = table.get(id(array))
    return found[1] if found is not None and found[0]() is array else None


def _producer_of(array):
    return _noted(_results, array)


# ---- which call a backward goes through ----------------------------------------------------------------


def find(layer, dz):
    """Return the call of `layer` that ``layer.backward(dz)`` goes through."""
    outer = here.call
    if outer is not None:
        found = _last_inside(outer, layer)
        if found is not None:
            return found
    pending = list(layer._calls)
    pending = [call for call in pending if call.outermost] or pending
    if not pending:
        raise RuntimeError(f"backward() was called without a pending forward: {layer._last}{layer._dropped}")
    made = _noted(_gradients, dz[0] if isinstance(dz, tuple) and dz else dz)
    made = made and made()
    if made is not None and made in pending:
        return made
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
    for call in reversed(inner):
        if call.layer is layer and not call.freed:
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
    """Drop earlier calls in evaluation whose results are gone; warn if many calls wait all the same."""
    pending = [call for call in layer._calls if call.outermost]
    waiting = [call for call in pending if not call.training or not call._results]
    for call in [call for call in waiting[:-1] if call.result_is_gone]:
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
