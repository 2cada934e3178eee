"""The form of a call: which arguments are tensors, and the values of all others.

A graph is traced for one form. It may run for every later call of the same form and for no other.
"""

import functools
import inspect

import torch
from torch import fx

TENSOR = "tensor"
_CONSTANTS = (type(None), bool, int, float, str)


class NoForm(Exception):
    """An argument is neither a tensor, a plain constant nor a list, tuple or dict of these."""


def is_tensor(value):
    """Return True for a tensor and for a traced value."""
    return isinstance(value, (torch.Tensor, fx.Proxy))


def flatten(value, tensors):
    """Append the tensors of a value to `tensors` in order; return the form of the value."""
    if is_tensor(value):
        tensors.append(value)
        return TENSOR
    if isinstance(value, _CONSTANTS):
        return (type(value).__name__, value)
    if type(value) in (list, tuple):
        return (type(value).__name__, tuple(flatten(item, tensors) for item in value))
    if type(value) is dict:
        return ("dict", tuple((key, flatten(item, tensors)) for key, item in value.items()))
    raise NoForm(f"an argument of type {type(value).__name__}")


def substitute(value, tensors):
    """Return the value with its tensors replaced by the next ones of `tensors`."""
    if is_tensor(value):
        return tensors.pop(0)
    if type(value) in (list, tuple):
        return type(value)(substitute(item, tensors) for item in value)
    if type(value) is dict:
        return {key: substitute(item, tensors) for key, item in value.items()}
    return value


def parameters(module):
    """Return the signature of the module's forward, without `self`."""
    if isinstance(module, torch.jit.ScriptModule):
        raise NoForm("a ScriptModule")
    return _without_self(type(module).forward)


@functools.lru_cache  # a converted forward needs it in each call with several arguments
def _without_self(forward):
    signature = inspect.signature(forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


class Call:
    """The arguments of one call of a module's forward, with defaults filled in."""

    def __init__(self, signature, args, kwargs):
        self.bound = signature.bind(*args, **kwargs)
        self.bound.apply_defaults()
        self.tensors = []
        form = []
        for name, value in self.bound.arguments.items():
            default = signature.parameters[name].default
            omitted = value is default and not isinstance(value, _CONSTANTS)
            form.append((name, "default" if omitted else flatten(value, self.tensors)))
        self.form = tuple(form)

    def with_tensors(self, tensors):
        """Return the positional and keyword arguments with other tensors."""
        rest = list(tensors)
        self.bound.arguments = {name: substitute(value, rest) for name, value in self.bound.arguments.items()}
        return self.bound.args, self.bound.kwargs


def usual_call(module):
    """Return the call that passes a tensor for each required parameter, for the first one if none is."""
    signature = parameters(module)
    required = {
        name: torch.empty(0)
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    if not required:  # a forward such as f(x=None, labels=None)
        optional = (name for name, parameter in signature.parameters.items() if parameter.default is None)
        required = {name: torch.empty(0) for name in list(optional)[:1]}
    bound = signature.bind_partial()
    bound.arguments = required
    return Call(signature, bound.args, bound.kwargs)
