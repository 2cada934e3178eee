"""Trace the forward of one module with `torch.fx`; its children stay calls unless `decide` inlines them.

A trace replaces the forward only if running it is the same as running the forward. So it is refused where
the forward does something that a graph does not record: contexts (`torch.no_grad`), random numbers,
attributes that it sets, tensors that it makes from constants.
"""

import builtins
import operator
import random
import traceback
import types
from contextlib import contextmanager

import torch
from torch import fx
from torch._functorch import utils as functorch_utils

from .arguments import flatten


class Untraceable(Exception):
    """The forward cannot be replaced by a graph."""


class TracedTensor(fx.Proxy):
    """A traced value, for which `+=` is recorded as `+=`; see also `_taken_for_tensors`."""

    _is_param = False
    _is_buffer = False

    def _in_place(self, function, other):
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other):
        return self._in_place(operator.iadd, other)

    def __isub__(self, other):
        return self._in_place(operator.isub, other)

    def __imul__(self, other):
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other):
        return self._in_place(operator.itruediv, other)


def _contexts():
    """Return the state that context managers change and a graph does not record."""
    return (
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
    )


class ModuleTracer(fx.Tracer):
    """Tracer of one module for one form of call.

    Parameters
    ----------
    call
        The arguments; each of their tensors becomes a placeholder.
    decide
        `decide(child, args, kwargs)`: None to trace through the child, otherwise a dict that becomes the
        `meta` of the node that calls it.
    functions
        Functions that are recorded as calls.
    """

    proxy_buffer_attributes = True

    def __init__(self, call, decide, functions):
        super().__init__(autowrap_functions=functions)
        self.call = call
        self.decide = decide
        self.inlined = {}
        self.contexts = _contexts()

    def proxy(self, node):
        """Return the traced value of a node."""
        return TracedTensor(node, self)

    def create_arg(self, a):
        """Return the node of a traced value."""
        if isinstance(a, fx.Proxy):  # before its parent class asks whether it is a tensor
            return a.node
        return super().create_arg(a)

    def create_node(self, *args, **kwargs):
        """Refuse an operation inside of a context that a graph does not record."""
        if _contexts() != self.contexts:
            raise Untraceable("it changes the gradient mode, autocast or saved-tensor hooks")
        return super().create_node(*args, **kwargs)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        """Return a function of the module that calls its forward with placeholders, and its argument."""
        placeholders = [self.create_proxy("placeholder", name, (), {}) for name in _input_names(self.call)]
        args, kwargs = self.call.with_tensors(placeholders)
        return (lambda root: root_fn(root, *args, **kwargs)), [self.root]

    def call_module(self, m, forward, args, kwargs):
        """Record the call of a child, or trace through it."""
        path = self.path_of_module(m)
        meta = self.decide(m, args, kwargs)
        if meta is None:
            self.inlined[path] = m
            return type(m).forward(m, *args, **kwargs)  # not its hooks: the converted forward looks for those
        result = self.create_proxy("call_module", path, args, kwargs)
        result.node.meta.update(meta, callee=m)
        return result


def _input_names(call):
    """Return a name for each of the call's tensors: its parameter's, with a number if that has several."""
    names = []
    for name, value in call.bound.arguments.items():
        found = []
        flatten(value, found)
        names += [name] if len(found) == 1 else [f"{name}_{number}" for number in range(len(found))]
    return names


@contextmanager
def mode(module, training):
    """Set `training` of the module and of all modules inside it; restore each afterwards."""
    before = [(child, child.training) for child in module.modules()]
    try:
        for child, _ in before:
            child.training = training
        yield
    finally:
        for child, was in before:
            child.training = was


def _size(value):
    return len(value) if isinstance(value, (list, dict, set)) else -1


@contextmanager
def unchanged(module):
    """Refuse a trace that sets attributes or draws random numbers; restore the attributes."""
    children = [child for child in module.modules() if not isinstance(child, torch.jit.ScriptModule)]
    before = [(child, dict(vars(child)), dict(child._buffers)) for child in children]
    sizes = [{name: _size(value) for name, value in attributes.items()} for _, attributes, _ in before]
    states = torch.get_rng_state(), random.getstate()
    try:
        yield
        drawn = not torch.equal(states[0], torch.get_rng_state()) or states[1] != random.getstate()
        if drawn:
            raise Untraceable("it draws random numbers outside of tensor operations")
        for (child, attributes, buffers), size in zip(before, sizes, strict=True):
            now = vars(child)
            for name in now.keys() | attributes.keys():
                if now.get(name) is not attributes.get(name) or _size(now.get(name)) != size.get(name):
                    raise Untraceable(f"it sets the attribute {name} of a {type(child).__name__}")
            if any(child._buffers.get(name) is not value for name, value in buffers.items()):
                raise Untraceable(f"it sets a buffer of a {type(child).__name__}")
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        for child, attributes, buffers in before:
            now = vars(child)
            for name in now.keys() - attributes.keys():
                del now[name]
            now.update(attributes)
            child._buffers.update(buffers)


@contextmanager
def _taken_for_tensors():
    """Let `isinstance` in Python code take traced values for tensors, as a forward may ask.

    C code must not: it would read memory that does not exist. So the values have no `__class__` of a tensor.
    """
    original, tensor = builtins.isinstance, torch.empty(0)

    def isinstance_or_traced(value, classes):
        return original(value, classes) or (original(value, TracedTensor) and original(tensor, classes))

    builtins.isinstance = isinstance_or_traced
    try:
        yield
    finally:
        builtins.isinstance = original


@contextmanager
def _without_autograd_functions():
    """Refuse a trace in which a `torch.autograd.Function` is called: a graph would lose its backward.

    `Function.apply` passes its arguments through `unwrap_dead_wrappers`, which is replaced here.
    """
    original, calls = functorch_utils.unwrap_dead_wrappers, []
    message = "the forward calls a torch.autograd.Function, whose backward a graph does not record"

    def refuse(args):
        calls.append(args)
        raise TypeError(message)

    functorch_utils.unwrap_dead_wrappers = refuse
    try:
        yield
    finally:
        functorch_utils.unwrap_dead_wrappers = original
    if calls:  # the forward has caught the error
        raise Untraceable(message)


def _breaking_function(error, wrapped):
    """Return the outermost plain function in the error's traceback that is not wrapped yet."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        names = frame.f_globals
        package = names.get("__name__", "").partition(".")[0]
        function = names.get(frame.f_code.co_name)
        if (
            isinstance(function, types.FunctionType)
            and function.__code__ is frame.f_code
            and function not in wrapped
            and package not in ("torch", "inplace_abn")
        ):
            return function
    return None


def trace(module, call, training, decide):
    """Trace a module's forward in one mode.

    A plain function that breaks the trace is found in the traceback and recorded as a call.

    Returns
    -------
    graph, inlined
        The graph, and the children that were traced through, by path.

    Raises
    ------
    Untraceable
        If no graph can stand for the forward; the message says why.
    """
    wrapped = []
    while True:
        tracer = ModuleTracer(call, decide, tuple(wrapped))
        try:
            with (
                mode(module, training), unchanged(module), torch.enable_grad(),
                _without_autograd_functions(), _taken_for_tensors(),
            ):  # fmt: skip
                tracer.contexts = _contexts()
                return tracer.trace(module), tracer.inlined
        except Untraceable:
            raise
        except Exception as error:
            function = _breaking_function(error, wrapped)
            if function is None:
                message = str(error).strip().partition("\n")[0]
                raise Untraceable(f"{type(error).__name__}: {message}") from error
            wrapped.append(function)
