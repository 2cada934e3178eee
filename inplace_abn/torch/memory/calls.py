"""Which module runs. It is recorded while ledgers are active, by a wrapper of `Module.__call__`.

Hooks on the modules would change what is counted: a converted model runs the original forward then.
"""

import functools
import threading

import torch

from . import graph


class Call:
    """A call of a module, or a part of it between two calls of modules inside.

    Attributes
    ----------
    module : torch.nn.Module or None
        None: no module runs.
    outermost : Call
        The call in which all others run.
    """

    def __init__(self, module, outermost=None):
        self.module, self.outermost = module, self if outermost is None else outermost


class _Running(threading.local):
    def __init__(self):
        self.stack = [Call(None)]

    def call(self):
        """Return the innermost call in this thread."""
        return self.stack[-1]


running = _Running()


def reporting(original):
    """Return a `Module.__call__` that records which module runs, and names what autograd has saved."""

    @functools.wraps(original)
    def __call__(self, *args, **kwargs):
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return original(self, *args, **kwargs)
        stack = running.stack
        call = Call(self, None if len(stack) == 1 else stack[-1].outermost)
        stack.append(call)
        try:
            result = original(self, *args, **kwargs)
        finally:
            stack.pop()
            outer = stack[-1]
            stack[-1] = Call(outer.module, None if outer.module is None else outer.outermost)
        graph.describe(result, call)
        return result

    return __call__
