"""The ledger for PyTorch: what autograd saves in a forward, and which module saves it.

`inplace_abn.torch.ledger` makes one. What is reported, `table`, `explain` and `plot`, is that of
`inplace_abn.memory`.
"""

import time
from contextlib import contextmanager

from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from ...memory import events
from ...memory._results import Results
from ..batch_norm import is_fused
from . import saving
from .advice import Advice

__all__ = ["Ledger", "ledger"]


@contextmanager
def ledger(model, label=""):
    """Count what autograd saves inside the block, each storage once, without parameters and buffers.

    Works for every model, converted or not. The modules get no hooks, so that a converted model runs as it
    does without a ledger; hooks of the user, `torch.utils.checkpoint` and `save_on_cpu` work inside and
    outside of the block, and what they keep is counted in place of the tensors that they are given. An inner
    ledger also reports to the outer one. Only the thread that enters the block is counted, with the backwards
    of its graphs. Graphs made before the block are not.

    Parameters
    ----------
    model : torch.nn.Module
        Its modules are known by their paths. Others, such as a loss, are known by their class.
    label : str, optional
        The name of the ledger in plots.

    Yields
    ------
    Ledger

    Raises
    ------
    TypeError
        If `model` is no module.
    RuntimeError
        If saved-tensor hooks are forbidden here, as they are inside of `torch.func`. Before PyTorch 2.8 also
        if other hooks are active: enter the ledger before them.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from inplace_abn.torch import convert, ledger
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> x = torch.randn(16, 3, 34, 34)
    >>> with ledger(model) as before:
    ...     model(x).sum().backward()
    >>> with ledger(convert(model)) as after:
    ...     model(x).sum().backward()
    >>> after.kept / before.kept < 0.6, after.live
    (True, 0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    recorder = Ledger(model, label)
    saving.start(recorder)
    try:
        yield recorder
    finally:
        saving.stop(recorder)
        recorder.close()


class Ledger(Results):
    """A record of what autograd saves; returned by `inplace_abn.torch.ledger`.

    Its results are those of `inplace_abn.memory.Ledger`: `live` and `kept` in bytes, `table`, `explain`,
    `timeline` and `plot`. A storage is counted as a whole, also if only a view of it is saved. Scratch memory
    of operations is not known, so `peak` equals `kept`.

    Parameters
    ----------
    model : torch.nn.Module
    label : str

    Attributes
    ----------
    label : str
    model : torch.nn.Module
    """

    def __init__(self, model, label=""):
        super().__init__(model, label)
        self.model = model
        self._names = {module: name for name, module in model.named_modules()}
        storages = [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
        #: The memory of parameters and buffers, which is not counted.
        self.parameters = {storage._cdata: StorageWeakRef(storage) for storage in storages}
        self._entries_by_number = {}
        self._is_open = True

    def close(self):
        """Ignore what is reported from now on."""
        self._is_open = False

    # ---- reporting -----------------------------------------------------------------------------------------

    def keep(self, entry):
        """Record that an `Entry` is kept."""
        if not self._is_open:
            return
        self._entries_by_number[entry.number] = entry
        nbytes, key = entry.storage.nbytes, entry.storage.key
        self._events.append(
            events.Saved(
                entry.number, self.layer_of(entry.call), "", entry.shape, entry.dtype, nbytes, key, nbytes,
                0, nbytes, entry.storage, time.perf_counter(), None, entry.call,
            )
        )  # fmt: skip

    def drop(self, entry):
        """Record that an `Entry` is no longer kept."""
        if self._is_open:
            self._events.append(events.Freed(entry.number, time.perf_counter(), entry.call))

    def layer_of(self, call):
        """Return path and class of the module of a call."""
        module = call.module
        if module is None:
            return "code outside of modules"
        kind = (module._original if is_fused(module) else type(module)).__name__
        name = self._names.get(module)
        return f"{name} ({kind})" if name else kind

    def name_of(self, module):
        """Return the path of a module in the model, or None."""
        return self._names.get(module)

    # ---- results -------------------------------------------------------------------------------------------

    def _entries(self, when):
        return list(map(self._with_role, super()._entries(when)))

    def _all_events(self):
        return list(map(self._with_role, self._events))

    def _with_role(self, event):
        entry = self._entries_by_number.get(event.context) if isinstance(event, events.Saved) else None
        return event if entry is None else event._replace(role=entry.role)

    def _advice(self, entries):
        return Advice(self, entries, self._entries_by_number)
