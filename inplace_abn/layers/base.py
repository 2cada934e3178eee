"""The base class of layers, and how to write a layer.

A layer has parameters and two functions. ``forward(ctx, x)`` returns z, and saves on ctx the arrays which the
backward needs. ``gradients(ctx, dz, overwrite=False)`` returns dx, or one gradient for each floating-point
input, followed by the gradients of the parameters in the order in which they were assigned:

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

A layer that contains layers calls them in ``forward``, and calls their ``backward`` in ``gradients``, which
then returns dx alone.
"""

import weakref
from types import MappingProxyType

import numpy as np

from .._arguments import channel_axis
from . import assignment, calls, class_check, nonfinite, pending
from . import repr as text
from .calls import Call, running
from .context import IN_NO_GRAD, RUN_FORWARD_AGAIN, LayerContext, name_of
from .parameter import Named, Parameter
from .producers import note_gradients
from .recorder import active
from .state import StateMixin
from .tree import LayerTree

__all__ = ["Call", "Layer", "LayerContext", "OperationLayer", "Parameter"]

#: Reasons why a layer has no pending call, for messages of `backward`. `_why_no_call` is the current one.
_BACKWARD_HAS_RUN = f"the backward has run already and has released the saved arrays; {RUN_FORWARD_AGAIN}"
_CALLED_IN_NO_GRAD = f"it was called {IN_NO_GRAD}"


class Layer(LayerTree, StateMixin, Named):
    """Base of all layers.

    A layer may be called several times before its backwards; see `backward` for the call that each belongs
    to. The backward releases the arrays that its call keeps.

    Attributes
    ----------
    name : str
        The path from the outermost layer, such as "body.0".
    buffers : tuple of str
        Names of the attributes that are arrays of the state but are not trained.
    checks : mapping of str to function
        Attribute -> function of name and value, called at each assignment. It returns the value to assign,
        or raises an error.
    training : bool
        True in training, False in evaluation. Set by `train` and `eval`.
    overwrites_input : bool
        True if a call overwrites its input.
    returns_input : bool
        True if a call may return its input itself, or a view of it.
    may_overwrite_input : bool
        True if a container may overwrite the array of the caller. Otherwise it copies an input that a layer
        inside overwrites. A single in-place layer never copies.
    copies_input : bool
        True for containers: they copy the array of the caller if a layer inside would overwrite it, unless
        `may_overwrite_input` is True.
    works_in_place : bool
        True if a call overwrites its input and returns that array.
    places_result : bool
        True if ``out=`` of ``forward`` may also be a function that returns the output array; see `placing`.
    inputs_without_gradient : tuple of int
        Positions of floating-point inputs that get no gradient, such as the target of a loss.
    takes_mask : bool
        True if a call takes ``mask=``, the valid positions of its input.

    Examples
    --------
    >>> from inplace_abn import layers
    >>> net = layers.Sequential(layers.Conv2d(3, 8, 1), layers.InPlaceABN(8))
    >>> [path for path, _ in net.named_parameters()]
    ['0.weight', '0.bias', '1.weight', '1.bias']
    >>> net.eval().training, net[1].label
    (False, '1 (InPlaceABN)')
    """

    buffers = ()
    checks = MappingProxyType({"channel_axis": channel_axis})
    training = True
    overwrites_input = False
    returns_input = False
    may_overwrite_input = copies_input = False
    works_in_place = False
    places_result = False
    inputs_without_gradient = ()
    takes_mask = False
    _dropped_note = ""  # appended to `_why_no_call` once calls in evaluation were dropped

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        class_check.check(cls)

    def __new__(cls, *args, **kwargs):  # noqa: D102
        self = super().__new__(cls)
        attributes = vars(self)
        attributes["_calls"], attributes["_reference"] = [], weakref.ref(self)
        attributes["_name_function"] = name_of(self)
        attributes["_why_no_call"] = "the layer was not called; call it before its backward"
        return self

    def __setattr__(self, key, value):
        current = vars(self).get(key)
        value = assignment.checked(self, key, value, current)
        super().__setattr__(key, value)
        if isinstance(value, Parameter) or isinstance(current, Parameter):
            vars(self).pop("_parameters", None)
        if isinstance(value, Named) and not key.startswith("_") and value._has_no_parent:
            value._belongs_to(self, key)

    def __delattr__(self, key):
        super().__delattr__(key)
        vars(self).pop("_parameters", None)

    def __reduce_ex__(self, protocol):  # pickle's protocols 0 and 1 do not call __new__
        return super().__reduce_ex__(max(protocol, 2))

    def __setstate__(self, state):
        for key, value in state.items():
            setattr(self, key, value)
        self._why_no_call = "this layer is a copy and was not called itself; call it before its backward"

    # ---- implemented by each layer ---------------------------------------------------------------------

    def forward(self, ctx, x):
        """Return z, and save on ctx the arrays that `gradients` needs.

        Parameters
        ----------
        ctx : LayerContext
        x : ndarray
            A layer may take several inputs and keyword arguments.

        Returns
        -------
        ndarray, number, or tuple of them
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward(ctx, x)")

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return the gradients of the inputs and of the layer's own parameters.

        Parameters
        ----------
        ctx : LayerContext
            The context of the forward.
        dz : ndarray, or tuple of ndarray and None
            Gradient of the result, of its shape and dtype.
        overwrite : bool
            True if dz may be overwritten.

        Returns
        -------
        ndarray, or tuple of ndarray and None
            dx alone, or one gradient for each floating-point input, then one for each own parameter in the
            order of assignment. None stands for no gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradients(ctx, dz, overwrite=False)")

    # ---- forward and backward ----------------------------------------------------------------------------

    def __call__(self, *inputs, **options):
        """Return ``forward(ctx, *inputs, **options)``, and keep the context for the backward.

        Floating-point arrays among inputs and options get a gradient. If the forward raises an error, the
        arrays kept by the layers inside are released, and the message begins with the name of the layer.
        """
        if active.tape is not None:
            return active.tape.call(self, inputs, options)
        call = Call(self, inputs, options, running.call)
        z = self._run(call, inputs, options)
        if call.recording:
            call.finish(self, z)
        else:
            vars(self)["_why_no_call"] = _CALLED_IN_NO_GRAD
        return z

    def _run(self, call, inputs, options):
        """Run the forward of a call, with `running.call` set to it."""
        running.call = call
        try:
            forward = self._watched if nonfinite.watching else self.forward
            return forward(call, *inputs, **options)
        except BaseException as error:
            call.release(f"its forward failed; {RUN_FORWARD_AGAIN}")
            raise text.with_name(error, self) from error.__cause__
        finally:
            running.call = call.outer

    def _watched(self, ctx, *inputs, **options):
        """Run the forward inside `watch_nonfinite`."""
        nonfinite.begin(self, (*inputs, *options.values()))
        z = None
        try:
            z = self.forward(ctx, *inputs, **options)
        finally:
            nonfinite.end(self, z)
        return z

    @property
    def last_call(self):
        """The last `Call` whose backward has not run, or None; for ``backward(dz, call=...)``."""
        return self._calls[-1] if self._calls else None

    def backward(self, dz, *, call=None, overwrite=False):
        """Return the gradient of the input of a call, and add those of the parameters to their ``grad``.

        Without `call`, a dz that was returned by another layer's backward belongs to the call whose result
        that layer took. Any other dz belongs to the last call whose backward has not run. So backwards of
        several calls run in reverse order, or in any order with `call`.

        Parameters
        ----------
        dz : ndarray, or tuple of ndarray
            Gradient of the result, of its shape and dtype. A tuple if the forward returned a tuple; None in
            it stands for zeros.
        call : Call, optional
            The value of `last_call` right after the forward.
        overwrite : bool
            True if dz may be overwritten, with dx.

        Returns
        -------
        dx : ndarray, or tuple of ndarray
            A tuple if the call took several floating-point arrays, including keyword arguments such as
            ``residual=``: one gradient for each, in their order.

        Raises
        ------
        RuntimeError
            If no call is pending, or the backward of `call` has run. Without `call`, if another thread has
            called the layer since this thread has.
        TypeError, ValueError
            If dtype or shape of dz is wrong; the backward can be repeated with another dz. If ``gradients``
            returns a wrong number of gradients or a wrong shape; the backward of a single layer can then be
            repeated, that of a container cannot.
        """
        outer = running.call
        try:
            call = pending.find(self, dz, outer) if call is None else calls.check(self, call)
            gradient = call.check_gradient(dz)
        except (RuntimeError, TypeError, ValueError) as error:
            raise text.with_name(error, self) from None
        running.call = call
        try:
            returned = self.gradients(call, gradient, overwrite=overwrite)
            parameters = self.own_parameters()
            if parameters or isinstance(returned, (tuple, list)) or len(call.inputs) != 1:
                dx = self._accumulate(call, dz, returned, parameters)
            else:
                dx = returned
                call.check_input_gradients((dx,))
        except BaseException as error:
            if any(True for _ in self.children()):
                call.release(f"its backward failed; {RUN_FORWARD_AGAIN}")
            raise text.with_name(error, self) from error.__cause__
        finally:
            running.call = outer
        if outer is None:
            note_gradients(dx, call._sources)
        call.release(_BACKWARD_HAS_RUN)
        return dx

    def _accumulate(self, call, dz, returned, parameters):
        """Add the gradients of parameters to their ``grad``; return the gradient of the input, or a tuple.

        `returned` is the result of ``gradients``.

        A gradient that shares memory with another array is copied, since later gradients are added to it in
        place.
        """
        inputs, pairs = call.split(returned, parameters)
        others = [*(dz if isinstance(dz, tuple) else (dz,)), *inputs, *call._saved.values()]
        for parameter, gradient in pairs:
            if gradient is None or not parameter.requires_grad:
                continue
            if any(_overlap(gradient, other) for other in (*others, parameter.data)):
                gradient = gradient.copy()
            others.append(gradient)
            parameter.accumulate(gradient)
        return inputs[0] if len(inputs) == 1 else inputs

    def release(self):
        """Release everything kept for backwards that will not run. Return the layer."""
        for _, layer in self.named_layers():
            for call in list(layer._calls):
                call.release(f"its saved arrays were released; {RUN_FORWARD_AGAIN}")
        return self

    # ---- text ------------------------------------------------------------------------------

    @property
    def label(self):
        """Name and type, for messages: "body.0 (Conv2d)"."""
        kind = type(self).__name__
        return f"{self.name} ({kind})" if self.name else kind

    def extra_repr(self):
        """Return the arguments of the layer, as repr shows them."""
        return ""

    def __repr__(self):
        return text.plain(self)

    def _repr_html_(self):
        return text.html(self)


def _overlap(array, other):
    """Return whether two arrays may share memory; views are compared by their bounds."""
    if array is other:
        return True
    if not isinstance(other, np.ndarray) or (array.base is None and other.base is None):
        return False
    return np.may_share_memory(array, other)


class OperationLayer(Layer):
    """A layer whose forward and backward are those of a module of `inplace_abn.ops`.

    Attributes
    ----------
    operation : module
        Has ``forward(ctx, ...)`` and ``backward(ctx, dz, overwrite=)``.
    """

    operation = None

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return the gradients of the input and of the parameters."""
        return self.operation.backward(ctx, dz, overwrite=overwrite)
