"""What saved tensors keep, and the objects that autograd holds in their place."""

import itertools
import threading

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .._saved import Kept, Passed, Recipe

_numbers = itertools.count()


class Storage:
    """The memory of a tensor, which this object does not keep alive."""

    def __init__(self, tensor):
        storage = tensor.untyped_storage()
        self._reference, self.nbytes = StorageWeakRef(storage), storage.nbytes()

    @property
    def key(self):
        """A number that no other memory has while this object exists."""
        return self._reference.cdata

    def __call__(self):
        """Return this object, or None once the memory is freed."""
        return None if self._reference.expired() else self


class Entry:
    """What a saved tensor keeps in one storage.

    Attributes
    ----------
    number : int
    call : Call
        The call of the module that saved it.
    recomputes : bool
        True if the saved tensor is computed from what is kept here.
    elsewhere : torch.device or None
        Where hooks of the user have moved it.
    operation, part, follows, result
        Set once the autograd node is known: see `inplace_abn.torch.memory.graph`.
    """

    operation = part = follows = result = None

    def __init__(self, tensor, call, recomputes=False, elsewhere=None):
        self.number, self.call, self.recomputes, self.elsewhere = next(_numbers), call, recomputes, elsewhere
        self.storage, self.shape, self.dtype = Storage(tensor), tuple(tensor.shape), tensor.dtype

    @property
    def role(self):
        """What the tensor is for its operation, as text."""
        if self.part is None:
            role = "saved tensor"
        else:
            role = self.part if self.operation is None else f"{self.part} of {self.operation}"
        if self.recomputes:
            role += " (computed again)"
        return role if self.elsewhere is None else f"{role} (on {self.elsewhere})"


class Holder:
    """What autograd keeps in place of a saved tensor. It reports when autograd drops it."""

    __slots__ = ("entries", "packed", "recorders")

    def __init__(self, packed, entries, recorders):
        self.packed, self.entries, self.recorders = packed, entries, recorders
        for recorder in recorders:
            for entry in entries:
                recorder.keep(entry)

    def free(self):
        """Report that nothing is kept any longer."""
        for recorder in self.recorders:
            for entry in self.entries:
                recorder.drop(entry)

    def __del__(self):
        self.free()


class _Inspection(threading.local):
    """While `holders` is a list, unpacking adds to it and computes nothing."""

    holders = None
    nothing = torch.empty(0)


inspection = _Inspection()
#: The ledgers that count now.
active = []


def is_parameter(tensor):
    """Return True for parameters and for buffers of the models that are counted, and for views of them."""
    if isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter):
        return True
    key = tensor.untyped_storage()._cdata
    return any(key in recorder.parameters for recorder in active)


def held_by(packed, recomputes=False):
    """Yield (tensor, whether the saved tensor is computed from it) for the tensors in what hooks return."""
    if isinstance(packed, torch.Tensor):
        for tensor in _with_memory(packed):
            yield tensor, recomputes
    elif isinstance(packed, Kept):
        yield from held_by(packed.tensor, recomputes)
    elif isinstance(packed, Passed):
        yield from held_by(packed.packed, recomputes)
    elif isinstance(packed, Recipe):
        yield from held_by(packed.sources, True)
    elif isinstance(packed, (tuple, list)):
        for part in packed:
            yield from held_by(part, recomputes)
    elif isinstance(packed, dict):
        yield from held_by(list(packed.values()), recomputes)


def _with_memory(tensor):
    """Yield the tensors inside of a sparse tensor or of a wrapper such as a DTensor; others themselves."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _with_memory(getattr(tensor, name))
    elif tensor.layout is torch.strided:
        yield tensor
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
