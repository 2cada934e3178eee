"""What is saved for the backward while the hooks of a converted model are active.

A tensor that can be computed again is saved as a `Recipe`, every other one as it is. Saved-tensor hooks
switch off autograd's check that no saved tensor was modified, so the holders here make it themselves.
"""

import weakref
from functools import partial

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class _TensorTable:
    """Maps a tensor to a value until the tensor is freed; its views find the same entry."""

    def __init__(self):
        self._entries = {}

    def set(self, tensor, value):
        key = tensor.untyped_storage()._cdata
        self._entries[key] = weakref.ref(tensor, partial(self._forget, key)), value

    def get(self, tensor):
        """Return the tensor that was set and its value, or (None, None)."""
        reference, value = self._entries.get(tensor.untyped_storage()._cdata, (None, None))
        found = None if reference is None else reference()
        return (None, None) if found is None else (found, value)

    def __contains__(self, tensor):
        return tensor.untyped_storage()._cdata in self._entries

    def _forget(self, key, reference):
        if key in self._entries and self._entries[key][0] is reference:
            del self._entries[key]

    def __len__(self):
        return len(self._entries)


#: z -> (version, Recipe)
_recipes = _TensorTable()


class _Writers:
    """Storage of a tensor -> name of the module that overwrote it, for messages."""

    def __init__(self):
        self._entries, self._most = {}, 64

    def set(self, tensor, name):
        if len(self._entries) >= self._most:
            self.forget_freed()
            self._most = 2 * len(self._entries) + 64
        storage = StorageWeakRef(tensor.untyped_storage())
        self._entries[storage.cdata] = storage, name

    def get(self, tensor):
        """Return the name, or None."""
        return self._entries.get(tensor.untyped_storage()._cdata, (None, None))[1]

    def forget_freed(self):
        self._entries = {key: entry for key, entry in self._entries.items() if not entry[0].expired()}

    def __len__(self):
        return len(self._entries)


_writers = _Writers()


def register(z, recipe, version=None):
    """Save `recipe` instead of z from now on, if z has this version; by default its present one."""
    _recipes.set(z, (z._version if version is None else version, recipe))


def note_overwritten(x, name):
    """Record the name of the module that overwrites x, for an error message."""
    _writers.set(x, name)


def recipe_of(tensor):
    """Return the recipe of a tensor, or None. A view of z that has another shape has none."""
    if tensor not in _recipes:  # most of the tensors that are saved
        return None
    z, found = _recipes.get(tensor)
    if z is None:
        return None
    version, recipe = found
    is_z = tensor._version == version and (
        tensor is z
        or (
            tensor.shape == z.shape
            and tensor.stride() == z.stride()
            and tensor.storage_offset() == z.storage_offset()
            and tensor.dtype is z.dtype
        )
    )
    return recipe if is_z else None


class Kept:
    """A tensor that is saved as it is: detached, since the result of an operation refers to its graph."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor):
        self.tensor = tensor.detach() if tensor.requires_grad else tensor
        self.version = tensor._version

    def get(self):
        check_version(self.tensor, self.version)
        return self.tensor

    def passed_to(self, outer):
        return Passed(self.tensor, outer)


class Passed:
    """A tensor that was packed by hooks outside of ours."""

    __slots__ = ("packed", "storage", "unpack", "version")

    def __init__(self, tensor, outer):
        pack, self.unpack = outer
        self.storage, self.version = StorageWeakRef(tensor.untyped_storage()), tensor._version
        self.packed = pack(tensor)

    def get(self):
        tensor = self.unpack(self.packed)
        if tensor.untyped_storage()._cdata == self.storage.cdata:  # the hooks kept it and made no copy
            check_version(tensor, self.version)
        return tensor


class Recipe:
    """A tensor that is computed from others when it is used.

    Parameters
    ----------
    function : callable
        Takes the sources as tensors, without a gradient.
    *sources : Tensor, Kept, Passed, Recipe or None
    is_costly : bool
        True: once computed, the tensor is held until the last operation that saved it is freed.
    """

    __slots__ = ("__weakref__", "_last", "function", "is_costly", "sources")

    def __init__(self, function, *sources, is_costly=False):
        self.function, self.is_costly = function, is_costly
        self.sources = [holder_of(s.detach()) if isinstance(s, torch.Tensor) else s for s in sources]
        self._last = None

    def get(self):
        """Return the tensor: the one of the last call, if it still exists."""
        z = None if self._last is None else self._last()
        if z is None:
            z = self._compute()
            self._last = partial(_same, z) if self.is_costly else weakref.ref(z)
        return z

    def _compute(self):
        if torch.is_grad_enabled():  # a backward with create_graph=True
            with torch.no_grad():
                return self._compute()
        return self.function(*[None if source is None else source.get() for source in self.sources])

    def passed_to(self, outer):
        """Return this recipe with sources that the hooks outside of ours have packed.

        They are packed for every consumer: `torch.utils.checkpoint` permits one use of what it has packed.
        """
        sources = (None if source is None else source.passed_to(outer) for source in self.sources)
        return Recipe(self.function, *sources, is_costly=self.is_costly)


def _same(tensor):
    return tensor


def holder_of(tensor):
    """Return the recipe of a tensor, or the tensor as `Kept`."""
    recipe = recipe_of(tensor)
    return Kept(tensor) if recipe is None else recipe


def check_version(tensor, version):
    """Raise RuntimeError if a saved tensor was modified."""
    if tensor._version == version:
        return
    name = _writers.get(tensor)
    by = "" if name is None else f" The normalization {name!r} overwrote it: call it with copy_first=True, or"
    raise RuntimeError(
        f"a tensor of shape {tuple(tensor.shape)} that an operation saved for its backward was modified in "
        f"place: it has version {tensor._version}, expected {version}.{by or ' Use'} an operation that is "
        "not in place."
    )
