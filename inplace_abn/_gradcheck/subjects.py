"""Targets of `gradcheck` with one interface: layers, pairs of functions, functions that return a backward."""

import inspect
from contextlib import contextmanager
from functools import partial

import numpy as np

from ..layers.base import Layer, Parameter
from ..layers.context import LayerContext, no_grad

MODES = ("train", "eval")


def make(target, inputs, wrt, names=()):
    """Return the `Subject` of `target`; `names` are those of the inputs if they are a mapping."""
    if isinstance(target, Layer):
        subject = OfLayer(target, inputs, wrt)
    elif isinstance(target, (tuple, list)) and len(target) == 2 and all(map(callable, target)):
        subject = OfPair(*target, inputs, wrt)
    elif callable(getattr(target, "forward", None)) and callable(getattr(target, "backward", None)):
        subject = OfPair(target.forward, target.backward, inputs, wrt)
    elif callable(target):
        subject = OfFunction(target, inputs, wrt)
    else:
        raise TypeError(_NO_TARGET.format(target))
    subject.name_inputs(names)
    return subject


_NO_TARGET = (
    "target must be a Layer, a pair of functions (forward, backward), an object that has these, or a "
    "function that returns (result, backward), got {!r}"
)


class State:
    """A copy of arrays and of the states of generators, to restore them."""

    def __init__(self, values):
        self._arrays = [(value, value.copy()) for value in values if isinstance(value, np.ndarray)]
        generators = (value.bit_generator for value in values if isinstance(value, np.random.Generator))
        self._generators = [(generator, generator.state) for generator in generators]

    def restore(self):
        """Restore arrays and generators; read-only arrays cannot have changed."""
        for array, copy in self._arrays:
            if array.flags.writeable:
                array[...] = copy
        for generator, state in self._generators:
            generator.state = state


class Subject:
    """Base class. The caller may change the values of `arrays` between calls.

    Attributes
    ----------
    can_overwrite : bool
        True if the backward takes ``overwrite``.
    """

    can_overwrite = False
    _keywords = ()

    def __init__(self, inputs, wrt):
        self._inputs, self._wrt = inputs, wrt
        if wrt is not None:
            for i in wrt:
                if not (isinstance(i, int) and 0 <= i < len(inputs)) or not _is_float64(inputs[i]):
                    raise ValueError(f"wrt must be indices of inputs that are floating arrays, got {wrt!r}")

    def modes(self, modes):
        """Yield each mode after switching to it."""
        yield ""

    @contextmanager
    def prepared(self):
        """Prepare the subject for the check inside the block; restore it afterwards."""
        yield

    def arrays(self):
        """Return the arrays whose gradients are checked, by name."""
        wanted = self._wrt if self._wrt is not None else range(len(self._inputs))
        return {self._name(i): self._inputs[i] for i in wanted if _is_float64(self._inputs[i])}

    def evaluate(self):
        """Return the result for the current arrays, as a new array; several results are concatenated."""
        with no_grad():
            z = self._call()[0]
        return np.concatenate([np.ravel(part) for part in z]) if isinstance(z, tuple) else np.array(z)

    def gradients(self, dz, overwrite=False):
        """Return the gradients for the current arrays by name; dz has the shape of `evaluate`."""
        z, backward = self._call()
        if isinstance(z, tuple):
            ends = np.cumsum([np.size(part) for part in z])
            parts = zip(np.split(dz, ends[:-1]), z, strict=True)
            dz = tuple(part.reshape(np.shape(like)) for part, like in parts)
        else:
            dz = dz if isinstance(z, np.ndarray) else float(dz)
        gradients = backward(dz, overwrite=True) if overwrite else backward(dz)
        return self._match(gradients if isinstance(gradients, (tuple, list)) else (gradients,))

    def _call(self):
        """Return the result, and a function from dz to the gradients."""
        raise NotImplementedError

    def name_inputs(self, names):
        """Name the inputs; all but the first are then passed by keyword."""
        if names:
            self._names = self._keywords = list(names)

    def _call_with_copies(self, function, *first):
        """Call the function with copies of the inputs, which it may overwrite."""
        copies = [value.copy(order="K") if isinstance(value, np.ndarray) else value for value in self._inputs]
        if not self._keywords:
            return function(*first, *copies)
        return function(*first, copies[0], **dict(zip(self._keywords[1:], copies[1:], strict=True)))

    def _match(self, found):
        """Return the gradients by the names of their inputs."""
        expected = len(self._inputs) if self._wrt is None else len(self._wrt)
        while len(found) > expected and found[-1] is None:
            found = found[:-1]
        floating = [i for i, value in enumerate(self._inputs) if _is_float64(value)]
        owners = next(
            (owners for owners in (self._wrt, range(len(self._inputs)), floating)
             if owners is not None and len(owners) == len(found)), None,
        )  # fmt: skip
        if owners is None or (self._wrt is not None and owners is not self._wrt):
            raise ValueError(
                f"wrt must say which inputs the gradients belong to: the backward returned {len(found)} "
                f"for {len(self._inputs)} inputs, {len(floating)} of these floating arrays"
                + (f"; wrt is {self._wrt!r}" if self._wrt is not None else "")
            )
        return {
            self._name(i): None if gradient is None else np.array(gradient)
            for i, gradient in zip(owners, found, strict=True) if _is_float64(self._inputs[i])
        }  # fmt: skip

    def _name(self, i):
        """Return the name of an input, for reports."""
        return self._names[i] if i < len(self._names) else f"input {i}"


def _is_float64(value):
    return isinstance(value, np.ndarray) and value.dtype == np.float64


def _names(function, bound=()):
    """Return the names of the parameters that take inputs by position."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in positional and p.name not in bound]


class OfFunction(Subject):
    """``function(*inputs)`` returns ``(z, backward)``."""

    def __init__(self, function, inputs, wrt):
        super().__init__(inputs, wrt)
        self._function, self._names = function, _names(function)
        self._state = State(_options(function))

    def _call(self):
        self._state.restore()
        result = self._call_with_copies(self._function)
        if not isinstance(result, tuple) or len(result) != 2 or not callable(result[1]):
            raise TypeError(f"target must return (result, backward), got {result!r}")
        return result

    @contextmanager
    def prepared(self):
        """Restore the options afterwards."""
        try:
            yield
        finally:
            self._state.restore()


class OfPair(OfFunction):
    """A pair: ``forward(*inputs)`` returns ``(z, ctx)``, or ``forward(ctx, *inputs)`` returns z."""

    def __init__(self, forward, backward, inputs, wrt):
        super().__init__(forward, inputs, wrt)
        self._backward = backward
        self._takes_context = self._names[:1] == ["ctx"]
        self._names = self._names[self._takes_context :]
        self._state = State([*_options(forward), *_options(backward)])
        self.can_overwrite = "overwrite" in inspect.signature(backward).parameters

    def _call(self):
        self._state.restore()
        if self._takes_context:
            ctx = LayerContext("operation")
            z = self._call_with_copies(self._function, ctx)
        else:
            result = self._call_with_copies(self._function)
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"forward must return (result, ctx), or take ctx first, but it returned {result!r}"
                )
            z, ctx = result
        return z, partial(self._backward, ctx)


def _options(function):
    """Return the arguments that a `functools.partial` binds; none for another function."""
    return [*function.args, *function.keywords.values()] if isinstance(function, partial) else []


class OfLayer(Subject):
    """A layer; its parameters are checked as well."""

    can_overwrite = True

    def __init__(self, layer, inputs, wrt):
        super().__init__(inputs, wrt)
        self._layer = layer
        self._names = _names(layer.forward, bound=("ctx",)) or ["x"] * (len(inputs) == 1)

    def modes(self, modes):
        """Yield each mode after switching to it."""
        for mode in (modes,) if isinstance(modes, str) else modes:
            if mode not in MODES:
                raise ValueError(f"modes must be of 'train' and 'eval', got {mode!r}")
            self._layer.train(mode == "train")
            yield mode

    @contextmanager
    def prepared(self):
        """Replace parameters and buffers by float64 copies inside the block."""
        layers = [layer for _, layer in self._layer.named_layers()]
        before = [(value, dict(vars(value))) for value in [*layers, *self._layer.parameters()]]
        copies = {}
        for owner, attributes in before:
            for key, value in attributes.items():
                if isinstance(value, np.ndarray):
                    copy = copies.setdefault(id(value), value.astype(_double(value.dtype), order="K"))
                    vars(owner)[key] = copy
            if isinstance(owner, Parameter):
                owner.grad = None
        self._state = State([value for layer in layers for value in vars(layer).values()])
        try:
            yield
        except BaseException:
            self._layer.release()
            raise
        finally:
            self._state.restore()
            for owner, attributes in before:
                vars(owner).update(attributes)

    def arrays(self):
        """Return inputs and trained parameters by name."""
        return super().arrays() | {name: p.data for name, p in self._trained()}

    def _trained(self):
        return [(name, p) for name, p in self._layer.named_parameters() if p.requires_grad]

    def gradients(self, dz, overwrite=False):
        """Return the gradients of inputs and trained parameters by name."""
        parameters = dict(self._trained())
        gradients = super().gradients(dz, overwrite)
        for name, parameter in parameters.items():
            gradients[name], parameter.grad = parameter.grad, None
        return gradients

    def _call(self):
        self._state.restore()
        z = self._call_with_copies(self._layer)
        return z, partial(self._layer.backward, call=self._layer.last_call)


def _double(dtype):
    """Return float64 for a floating-point dtype, and any other dtype unchanged."""
    return np.float64 if dtype.kind == "f" else dtype
