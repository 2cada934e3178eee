"""Layers and their parameters: what all layers have in common, and how to write one.

A layer is parameters and two functions. ``forward(ctx, x)`` saves on ctx what the other one needs;
``gradients(ctx, dz, overwrite=False)`` returns dx, or one gradient for each floating input, followed by the
gradients of the parameters in the order in which they were assigned:

>>> import numpy as np
>>> class Scale(Layer):
...     def __init__(self, features):
...         self.weight = Parameter(np.ones(features))
...     def forward(self, ctx, x):
...         ctx.save_for_backward(input=x)
...         return x * self.weight.data
...     def gradients(self, ctx, dz, *, overwrite=False):
...         return dz * self.weight.data, (dz * ctx.saved["input"]).sum(axis=0)
>>> layer, x = Scale(2), np.array([[1.0, 2.0]])
>>> z = layer(x)
>>> layer.backward(np.ones_like(z))
array([[1., 1.]])
>>> layer.weight.grad
array([1., 2.])

A layer made of layers calls them in ``forward``, and their ``backward`` in ``gradients``, where it returns dx
alone.
"""

import weakref
from types import MappingProxyType

from .._arguments import channel_axis
from . import assignment, calls, nonfinite, pending
from . import repr as text
from .calls import Call, here
from .context import AGAIN, OUTSIDE, LayerContext, name_of
from .parameter import Named, Parameter
from .recorder import active
from .state import StateMixin

__all__ = ["Call", "Layer", "LayerContext", "OperationLayer", "Parameter"]

_DONE = f"the backward has run already and has freed what was kept; {AGAIN}"
_OUTSIDE = f"it was called {OUTSIDE}"


class Layer(Named, StateMixin):
    """Base of all layers.

    A layer may be called several times before its backwards; `backward` says which call each belongs to. What
    a call keeps is freed as soon as its backward has run.

    Attributes
    ----------
    name : str
        The path from the outermost layer, such as "body.0".
    buffers : tuple of str
        Attributes that are arrays of the state and not trained.
    checks : mapping
        Attributes whose values are checked when they are assigned -> a function of name and value that
        returns the value to assign.
    training : bool
        Set by `train` and `eval`.
    overwrites_input : bool
        True if a call overwrites its input.
    returns_input : bool
        True if a call may return its input itself, or a view of it.
    overwrite_input : bool
        True allows that a call overwrites an array that comes from outside, where layers inside work in
        place. Containers copy it otherwise; a single in-place layer does not.
    copies_input : bool
        True for containers, which copy an input from outside that a layer inside would overwrite.
    works_in_place : bool
        True if a call overwrites its input and returns that array.
    places_result : bool
        Does ``forward(..., out=)`` take a function that finds a place, beside an array? See `placing`.
    inputs_without_gradient : tuple of int
        Positions of floating-point inputs that get no gradient, such as the target of a loss.
    takes_mask : bool
        True if a call may have ``mask=``, the valid positions of its input.
    """

    buffers = ()  # names of the attributes that belong into the state and are not trained
    checks = MappingProxyType({"channel_axis": channel_axis})  # attribute -> function(name, value)
    training = True
    overwrites_input = False
    returns_input = False
    overwrite_input = copies_input = False
    works_in_place = False
    places_result = False
    inputs_without_gradient = ()
    takes_mask = False
    _dropped = ""  # the end of the message of a backward without a call

    def __new__(cls, *args, **kwargs):  # noqa: D102
        self = super().__new__(cls)
        own = vars(self)
        own["_calls"], own["_reference"], own["_name_function"] = [], weakref.ref(self), name_of(self)
        own["_last"] = "the layer was not called; call it before its backward"
        return self

    def __setattr__(self, key, value):
        current = vars(self).get(key)
        value = assignment.checked(self, key, value, current)
        super().__setattr__(key, value)
        if isinstance(value, Parameter) or isinstance(current, Parameter):
            vars(self).pop("_parameters", None)
        if isinstance(value, Named) and not key.startswith("_") and value._homeless:
            value._belongs_to(self, key)

    def __delattr__(self, key):
        super().__delattr__(key)
        vars(self).pop("_parameters", None)

    def __reduce_ex__(self, protocol):  # pickle's protocols 0 and 1 go past __new__
        return super().__reduce_ex__(max(protocol, 2))

    def __setstate__(self, state):
        for key, value in state.items():
            setattr(self, key, value)
        self._last = "this layer is a copy and was not called itself; call it before its backward"

    # ---- to be written by each layer ---------------------------------------------------------------------

    def forward(self, ctx, x):
        """Return z, having saved on ctx what `gradients` needs."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(ctx, x)")

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return dx, or a tuple: one gradient per floating input and own parameter, None for no gradient."""
        raise NotImplementedError(f"{type(self).__name__} has no gradients(ctx, dz, overwrite=False)")

    # ---- forward and backward ----------------------------------------------------------------------------

    def __call__(self, *inputs, **options):
        """Return ``forward(ctx, *inputs, **options)``, with a context that is kept for the backward.

        Floating arrays among inputs and options are inputs that have a gradient. An error releases what the
        layers inside have kept, and names the layer.
        """
        if active.tape is not None:
            return active.tape.call(self, inputs, options)
        call = Call(self, inputs, options, here.call)
        z = self._run(call, inputs, options)
        if call.recording:
            call.finish(self, z)
        else:
            vars(self)["_last"] = _OUTSIDE
        return z

    def _run(self, call, inputs, options):
        """Return the result of the forward of a call, which belongs to the one that runs already, if any."""
        here.call = call
        try:
            forward = self._watched if nonfinite.watching else self.forward
            return forward(call, *inputs, **options)
        except BaseException as error:
            call.release(f"its forward failed; {AGAIN}")
            raise text.with_name(error, self) from error.__cause__
        finally:
            here.call = call.outer

    def _watched(self, ctx, *inputs, **options):
        nonfinite.begin(self, (*inputs, *options.values()))
        z = None
        try:
            z = self.forward(ctx, *inputs, **options)
        finally:
            nonfinite.end(self, z)
        return z

    @property
    def last_call(self):
        """The last `Call` whose backward has not run, or None: for ``backward(dz, call=...)``."""
        return self._calls[-1] if self._calls else None

    def backward(self, dz, *, call=None, overwrite=False):
        """Gradient of the input of a call; those of the parameters are added to their ``grad``.

        Without `call`, a dz that another layer's backward has returned goes through the call whose result
        that layer took; any other dz goes through the last call whose backward has not run. Backwards of
        several calls run in reverse order, or in any order with `call`.

        Parameters
        ----------
        dz : ndarray, or tuple of ndarray
            Gradient of the result, of its shape and dtype; a tuple after a forward that returned a tuple,
            with None for a result that has no influence.
        call : Call, optional
            `last_call` as it was right after the forward that is meant.
        overwrite : bool
            True allows that dx is written over dz.

        Returns
        -------
        dx : ndarray, or tuple of ndarray
            A tuple after a call with several floating arrays as inputs, keyword arguments such as
            ``residual=`` included: one gradient for each, in their order.

        Raises
        ------
        RuntimeError
            If no call is pending, or the backward of `call` has run; without `call`, if another thread has
            called the layer since this thread has.
        TypeError, ValueError
            For a dz of another dtype or shape, and for a number of gradients that does not fit inputs and
            parameters. The backward of a single layer can be repeated then, that of a container cannot.
        """
        outer = here.call
        try:
            call = pending.find(self, dz, outer) if call is None else calls.check(self, call)
        except (RuntimeError, TypeError, ValueError) as error:
            raise text.with_name(error, self) from None
        here.call = call
        try:
            found = self.gradients(call, call.check_gradient(dz), overwrite=overwrite)
            own = self.own_parameters()
            if own or isinstance(found, (tuple, list)) or len(call.inputs) != 1:
                dx = self._accumulate(call, found, own)
            else:
                dx = found
        except BaseException as error:
            if any(True for _ in self.children()):
                call.release(f"its backward failed; {AGAIN}")
            raise text.with_name(error, self) from error.__cause__
        finally:
            here.call = outer
        if outer is None:
            call.note_gradients(dx)
        call.release(_DONE)
        return dx

    def _accumulate(self, call, found, own):
        """Add the gradients of the parameters to theirs; return that of the input, or a tuple for several."""
        inputs, parameters = call.split(found, own)
        for parameter, gradient in parameters:
            if gradient is not None:
                parameter.accumulate(gradient)
        return inputs[0] if len(inputs) == 1 else inputs

    def release(self):
        """Drop all that was kept for backwards that will not run. Returns the layer."""
        for _, layer in self.named_layers():
            for call in list(layer._calls):
                call.release(f"what it kept was released; {AGAIN}")
        return self

    # ---- the layers and parameters inside ----------------------------------------------------------------

    def own_parameters(self):
        """Return the layer's own parameters by name, without those of layers inside."""
        found = vars(self).get("_parameters")
        if found is None:
            found = {key: value for key, value in vars(self).items() if isinstance(value, Parameter)}
            vars(self)["_parameters"] = found
        return found

    def children(self):
        """Go through the layers right inside, as (name, layer)."""
        for key, value in vars(self).items():
            if isinstance(value, Layer):
                yield key, value

    def named_layers(self, prefix=""):
        """Go through this layer, named `prefix`, and all those inside, as (path, layer); each once."""
        seen, waiting = set(), [(prefix, self)]
        while waiting:
            path, layer = waiting.pop()
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            yield path, layer
            inside = [(f"{path}.{key}" if path else key, child) for key, child in layer.children()]
            waiting.extend(reversed(inside))

    def named_parameters(self):
        """Go through all parameters, as (path, Parameter); each once."""
        seen = set()
        for path, layer in self.named_layers():
            for key, value in vars(layer).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{key}" if path else key, value

    def parameters(self):
        """Return the list of all parameters, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def requires_grad_(self, requires_grad=True):
        """Freeze all parameters with False, or train them again; return self. See `Parameter`."""
        for parameter in self.parameters():
            parameter.requires_grad = bool(requires_grad)
        return self

    def zero_grad(self):
        """Set all gradients to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, mode=True):
        """Switch this layer and those inside to training or, with False, to evaluation; return self."""
        for _, layer in self.named_layers():
            layer.training = bool(mode)
        return self

    def eval(self):
        """Switch to evaluation: ABN takes the running statistics, Dropout passes on. Return self.

        Calls still keep what their backward needs; `inplace_abn.layers.no_grad` is for those without one.
        """
        return self.train(False)

    # ---- what it looks like ------------------------------------------------------------------------------

    @property
    def label(self):
        """Name and type, for messages: "body.0 (Conv2d)"."""
        kind = type(self).__name__
        return f"{self.name} ({kind})" if self.name else kind

    def extra_repr(self):
        """Return the arguments of the layer, as they are shown by repr."""
        return ""

    def __repr__(self):
        return text.plain(self)

    def _repr_html_(self):
        return text.html(self)


class OperationLayer(Layer):
    """A layer over a pair of functions of `inplace_abn.ops`, the module `operation`."""

    operation = None

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return what the operation's backward returns: dx and the gradients of the parameters."""
        return self.operation.backward(ctx, dz, overwrite=overwrite)
