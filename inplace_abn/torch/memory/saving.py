"""Saved-tensor hooks that report what is saved and when it is freed."""

import threading
import weakref

import torch

from .. import _hooks
from . import calls
from .entries import Entry, Holder, active, held_by, inspection, is_parameter


class Counting(_hooks.Observer):
    """Hooks that pass every tensor to others, or keep it as autograd would, and report what is kept."""

    def pack(self, tensor):
        """Return a `Holder` of what the other hooks return."""
        if self.is_probe(tensor) or _runs_again(self.pair):
            return super().pack(tensor if self.is_probe(tensor) else _counted_until_freed(tensor))
        packed = super().pack(tensor)
        return Holder(packed, _entries_of(packed, tensor.device), tuple(active))

    def unpack(self, holder):
        """Return the saved tensor."""
        if not isinstance(holder, Holder):
            return super().unpack(holder)
        if inspection.holders is not None:
            inspection.holders.append(holder)
            return inspection.nothing
        return super().unpack(holder.packed)


def _entries_of(packed, device):
    """Return the entries for what hooks return for a tensor of this device."""
    call = calls.running.call()
    return [
        Entry(held, call, recomputes, None if held.device == device else held.device)
        for held, recomputes in held_by(packed)
        if not is_parameter(held)
    ]


def _runs_again(pair):
    """Return True for the hooks under which `torch.utils.checkpoint` runs a forward again."""
    return pair is not None and getattr(pair[0], "__qualname__", "").startswith("_recomputation_hook")


def _counted_until_freed(tensor):
    """Return a tensor with the same memory; it is counted as long as it exists.

    The graph of a forward that runs again is dropped before its tensors are used. The hooks of
    `torch.utils.checkpoint` keep the tensor that they are given, if it requires no gradient.
    """
    tensor = tensor.detach()
    holder = Holder(None, _entries_of(tensor, tensor.device), tuple(active))
    weakref.finalize(tensor, holder.free).atexit = False
    return tensor


# ---- while ledgers are active ------------------------------------------------------------------------------

_autograd = torch._C._autograd
_lock, _thread = threading.Lock(), threading.local()
_originals = {}


def start(recorder):
    """Report to a recorder from now on what this thread saves, and the backwards of its graphs."""
    counted = getattr(_thread, "ledgers", 0)
    if not counted:
        pair = _hooks.innermost_pair()
        hooks = Counting(pair)
        _originals.get("push", _autograd._push_saved_tensors_default_hooks)(hooks.pack, hooks.unpack)
    _thread.ledgers = counted + 1
    with _lock:
        if not active:
            _originals["push"] = _autograd._push_saved_tensors_default_hooks
            _autograd._push_saved_tensors_default_hooks = _push_counted
            _originals["call"] = torch.nn.Module.__call__
            torch.nn.Module.__call__ = calls.reporting(torch.nn.Module.__call__)
        active.append(recorder)


def stop(recorder):
    """Undo `start`."""
    with _lock:
        active.remove(recorder)
        if not active:
            _autograd._push_saved_tensors_default_hooks = _originals.pop("push")
            torch.nn.Module.__call__ = _originals.pop("call")
    _thread.ledgers -= 1
    if not _thread.ledgers:
        _autograd._pop_saved_tensors_default_hooks()


def _push_counted(pack, unpack):
    """Push hooks with `Counting` around them; used instead of PyTorch's function while ledgers are active."""
    hooks = Counting((pack, unpack))
    _originals["push"](hooks.pack, hooks.unpack)
