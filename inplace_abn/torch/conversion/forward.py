"""The forward that conversion gives a module: a graph per form of call and mode, or its own forward."""

import importlib
import itertools
import linecache
import types
import warnings
from contextlib import suppress

import torch
from torch.nn.modules.module import _global_forward_hooks

from .arguments import Call, NoForm, parameters

_numbers = itertools.count()


class GraphCode:
    """A function generated from a graph, called with the module and the graph's inputs. Can be pickled."""

    def __init__(self, graph, name):
        code = graph.python_code("self")
        self.source, self.names, self.name = code.src, dict(code.globals), name
        self._compile()

    def _compile(self):
        filename = f"<inplace_abn: forward of {self.name}, {next(_numbers)}>"
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(True), filename)
        namespace = dict(self.names)
        exec(compile(self.source, filename, "exec"), namespace)
        self.run = namespace["forward"]

    def __deepcopy__(self, memo):
        return self

    def __getstate__(self):
        modules = {
            key: value.__name__ for key, value in self.names.items() if isinstance(value, types.ModuleType)
        }
        others = {key: value for key, value in self.names.items() if key not in modules}
        return {"source": self.source, "name": self.name, "modules": modules, "others": others}

    def __setstate__(self, state):
        self.source, self.name = state["source"], state["name"]
        self.names = {key: importlib.import_module(name) for key, name in state["modules"].items()}
        self.names |= state["others"]
        self._compile()


class Watched:
    """A module that the graph does not call as the original forward does: some changes forbid the graph."""

    def __init__(self, owner, path):
        parent, _, self.name = path.rpartition(".")
        self.parent = owner.get_submodule(parent)
        self.module = owner.get_submodule(path)
        self.path = path

    def is_changed(self):
        """Return True if the original forward must run. It is called in every forward, so it is short."""
        module = self.module
        return (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or self.parent._modules.get(self.name) is not module
        )

    def change(self):
        """Return why the original forward must run. Only after `is_changed` returned True."""
        if self.parent._modules.get(self.name) is not self.module:
            return f"{self.path} was replaced after the conversion; convert the model again"
        return f"{self.path} has hooks, which its fused form would not call as they expect"


class ConvertedForward:
    """The forward of a converted module.

    Parameters
    ----------
    module : torch.nn.Module
        The module that it belongs to.
    path : str
        For messages.
    """

    def __init__(self, module, path):
        self.module = module
        self.path = path
        #: {form of call: {training: code, or None to run the original forward}}
        self.variants = {}
        self.watched = {}
        #: Inlined modules whose forward depends on their mode: all must be in the mode of the graph.
        self.same_mode = []
        #: True if the activations of the class's forward were replaced, so that it computes another function.
        self.differs = False
        self.warned = False
        #: {number of tensors: form of the call with these alone}
        self._forms = {}

    def add(self, form, codes, watched, same_mode):
        """Add what runs for one form of call.

        Parameters
        ----------
        form
            Of `Call`.
        codes : dict
            {training: (code, unfused)}. `unfused` runs instead of `code` where hooks forbid fusion; None: the
            forward of the class.
        watched : iterable of str
            Paths below the module.
        same_mode : list of torch.nn.Module
        """
        self.variants[form] = codes
        for number in range(1, len(form) + 1):
            with suppress(TypeError):  # the forward needs other arguments
                self._forms[number] = Call(parameters(self.module), [torch.empty(0)] * number, {}).form
        for path in watched:
            if path not in self.watched:
                self.watched[path] = Watched(self.module, path)
        self.same_mode += [child for child in same_mode if child not in self.same_mode]
        self.differs = self.differs or any(unfused is not None for _, unfused in codes.values())

    def restore(self):
        """Restore the module's own forward, or set graphs without fusion if its activations were replaced."""
        if not self.differs:
            del self.module.forward
            return
        for codes in self.variants.values():
            codes.update({training: (unfused, None) for training, (_, unfused) in codes.items()})
        self.watched = {}

    def __call__(self, *args, **kwargs):
        """Run the graph of this form of call and mode, or the original forward."""
        module = self.module
        form, tensors = None, args
        if not kwargs and all(map(torch.is_tensor, args)):
            form = self._forms.get(len(args))
        if form is None:
            try:
                call = Call(parameters(module), args, kwargs)
                form, tensors = call.form, call.tensors
            except NoForm:
                pass
        variant = self.variants.get(form, {}).get(module.training)
        if variant is None or any(child.training != module.training for child in self.same_mode):
            return self.original(args, kwargs)
        code, unfused = variant
        if self._is_observed():
            return self.original(args, kwargs) if unfused is None else unfused.run(module, *tensors)
        return code.run(module, *tensors)

    def original(self, args, kwargs):
        """Run the forward of the module's class."""
        if self.differs:
            raise RuntimeError(
                f"{self.path or 'the model'}: its activations were replaced for other arguments or modes; "
                "call it as its parent does, or convert with activation=None"
            )
        return type(self.module).forward(self.module, *args, **kwargs)

    def _is_observed(self):
        """Return True, and warn once, if the graph must not run because of hooks."""
        changed = next(filter(Watched.is_changed, self.watched.values()), None)
        if changed is None and not _global_forward_hooks:
            return False
        if not self.warned:
            self.warned = True
            reason = "hooks on all modules are set" if changed is None else changed.change()
            warnings.warn(f"{self.path or 'the model'} runs without fusion: {reason}", stacklevel=4)
        return True
