"""Saved-tensor hooks of a converted model, active during its forward; they call the hooks outside of it."""

import threading
from typing import NamedTuple

import torch

from . import _kernels
from ._saved import Kept, Passed, holder_of, recipe_of

_autograd = torch._C._autograd


class _Hooks:
    """A pair of hooks. `outer` is the pair (pack, unpack) that was active before, or None."""

    def __init__(self, outer):
        self.outer = outer

    def pack(self, tensor):
        if self.outer is None:
            return holder_of(tensor)
        recipe = recipe_of(tensor)
        return Passed(tensor, self.outer) if recipe is None else recipe.passed_to(self.outer)

    def unpack(self, holder):
        return holder.get()


class Observer:
    """Hooks around another pair that call it, record what it packs and change nothing: those of a ledger.

    Functions that look for hooks of the user skip an observer, and consider the pair inside it.

    Parameters
    ----------
    pair : (pack, unpack) or None
        None: tensors are kept as autograd keeps them.
    """

    def __init__(self, pair):
        self.pair = pair

    def pack(self, tensor):
        return Kept(tensor) if self.pair is None else self.pair[0](tensor)

    def unpack(self, holder):
        return holder.get() if self.pair is None else self.pair[1](holder)

    def is_probe(self, tensor):
        """Return True for what `_innermost_by_probe` saves."""
        is_probe = tensor is getattr(_thread, "probe", None)
        if is_probe and self.pair is None:
            _thread.is_kept = True
        return is_probe


def install(root, also_on_gpu=True):
    """Activate the hooks in every forward of a module.

    Parameters
    ----------
    root : torch.nn.Module
    also_on_gpu : bool
        False: not in a forward whose first argument is on a GPU. For models that save no recipes there: hooks
        cost about 10 microseconds per saved tensor. A second call can only turn this on.
    """
    installed = next(filter(_is_push, root._forward_pre_hooks.values()), None)
    if installed is not None:
        installed.also_on_gpu = installed.also_on_gpu or also_on_gpu
        return
    root.register_forward_pre_hook(_Push(also_on_gpu))
    root.register_forward_hook(_pop, always_call=True)


def uninstall(root):
    """Undo `install`."""
    for hooks, is_ours in ((root._forward_pre_hooks, _is_push), (root._forward_hooks, _is_pop)):
        for key in [key for key, hook in hooks.items() if is_ours(hook)]:
            del hooks[key]
            root._forward_hooks_always_called.pop(key, None)


def is_installed(root):
    """Return True after `install`."""
    return any(map(_is_push, root._forward_pre_hooks.values()))


class ActiveHooks(NamedTuple):
    """Which hooks see what is saved now.

    Attributes
    ----------
    is_ours : bool
        True during the forward of a module on which `install` was called.
    has_others : bool
        True if others see it too. They may keep a tensor without checking later whether it was modified, or
        run a part of the forward again, as `torch.utils.checkpoint` does: then no input may be overwritten.
    """

    is_ours: bool
    has_others: bool


def active_hooks():
    """Return the `ActiveHooks` of this thread."""
    innermost = _innermost()
    if innermost is None:
        return _NO_HOOKS
    if isinstance(innermost, _Hooks):
        return _OUR_HOOKS if innermost.outer is None else _BOTH_HOOKS
    return _OTHER_HOOKS


_NO_HOOKS, _OUR_HOOKS = ActiveHooks(False, False), ActiveHooks(True, False)
_OTHER_HOOKS, _BOTH_HOOKS = ActiveHooks(False, True), ActiveHooks(True, True)


def innermost_pair():
    """Return the innermost hooks of the user and of a converted model as (pack, unpack), or None."""
    innermost = _innermost()
    if innermost is _UNKNOWN:
        raise RuntimeError(
            "other saved-tensor hooks are active, and PyTorch before 2.8 cannot report which: enter the "
            "ledger before them"
        )
    return (innermost.pack, innermost.unpack) if isinstance(innermost, _Hooks) else innermost


def kept_by_ours():
    """Return a context in which tensors are saved as in the forward of a converted model."""
    hooks = _Hooks(None)
    return torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack)


class _Push:
    """The forward pre-hook of `install`."""

    def __init__(self, also_on_gpu):
        self.also_on_gpu = also_on_gpu

    def __call__(self, module, args):
        _refuse_copy(module)
        if torch.compiler.is_compiling():  # nothing is saved while torch.compile traces
            return
        on_gpu = bool(args) and isinstance(args[0], torch.Tensor) and _kernels.on_gpu(args[0])
        hooks = _new_hooks() if self.also_on_gpu or not on_gpu else None
        if hooks is not None:
            _autograd._push_saved_tensors_default_hooks(hooks.pack, hooks.unpack)
        _pushed().append((module, hooks))


def _is_push(hook):
    return isinstance(hook, _Push)


def _is_pop(hook):
    return hook is _pop


def _refuse_copy(module):
    """Raise RuntimeError if the module runs the forward of the one that it was copied from."""
    owner = getattr(vars(module).get("forward"), "module", module)
    if owner is not module:
        raise RuntimeError(
            f"this {type(module).__name__} is a shallow copy of a converted model, as copy.copy and "
            "torch.nn.DataParallel make them, and would run with the weights of the original; use "
            "copy.deepcopy or DistributedDataParallel, or call inplace_abn.torch.revert(model) before"
        )


def _pop(module, args, output):
    if torch.compiler.is_compiling():
        return
    pushed = _pushed()
    if pushed and pushed[-1][0] is module and pushed.pop()[1] is not None:
        _autograd._pop_saved_tensors_default_hooks()


def _new_hooks():
    """Return hooks to push, or None where hooks are not permitted or their outer ones are unknown."""
    if torch._C._get_tracing_state() is not None or not _autograd._saved_tensors_hooks_is_enabled():
        return None
    innermost = _innermost()
    if innermost is _UNKNOWN:
        return None
    return _new(innermost.outer if isinstance(innermost, _Hooks) else innermost)


_thread = threading.local()


def _pushed():
    """Return the modules of this thread that run now, with the hooks that were pushed for them."""
    if not hasattr(_thread, "pushed"):
        _thread.pushed = []
    return _thread.pushed


_UNKNOWN = object()


def _innermost_from_torch():
    """Return the innermost hooks that are no `Observer`: `_Hooks`, another pair (pack, unpack), or None."""
    pair = _autograd._top_saved_tensors_default_hooks(True)
    while pair is not None:
        owner = getattr(pair[0], "__self__", None)
        if not isinstance(owner, Observer):
            return owner if isinstance(owner, _Hooks) else pair
        pair = owner.pair
    return None


class _ProbedHooks(_Hooks):
    """Hooks for PyTorch before 2.8, which record that they were given the probe of `_innermost_by_probe`."""

    got_probe = False

    def pack(self, tensor):
        if tensor is getattr(_thread, "probe", None):
            self.got_probe = True
            return Kept(tensor)
        return super().pack(tensor)


def _innermost_by_probe():
    """Return the innermost hooks, _UNKNOWN if they are not ours.

    They are found by saving a tensor: those that get it are the innermost.
    """
    if torch.is_inference_mode_enabled() or not _autograd._saved_tensors_hooks_is_enabled():
        return None
    ours = next((hooks for _, hooks in reversed(_pushed()) if hooks is not None), None)
    if ours is not None:
        ours.got_probe = False
    with torch.enable_grad():
        _thread.is_kept, _thread.probe = False, torch.zeros((), requires_grad=True)
        product = _thread.probe * _thread.probe
    _thread.probe = None
    try:
        product.grad_fn._raw_saved_self.register_hooks(_same, _same)
    except RuntimeError:  # some hooks have it
        if _thread.is_kept:  # an `Observer` alone
            return None
        return ours if ours is not None and ours.got_probe else _UNKNOWN
    return None


def _same(tensor):
    return tensor


if hasattr(_autograd, "_top_saved_tensors_default_hooks"):
    _innermost, _new = _innermost_from_torch, _Hooks
else:
    _innermost, _new = _innermost_by_probe, _ProbedHooks
