"""Advice about what PyTorch keeps: what conversion would free, why it has not, and what is needed."""

from ...memory.tables import human
from .trial import RUN_AGAIN, Trial

_LAYERS = ("convolution", "linear")
_OWN = ("y", "z")
_UNRECOVERABLE = ("branch_mask", "guarded_xhat", "escape_index", "escape_xhat")
_SMALL = ("statistics", "mask", "indices")


class Advice:
    """Advice about entries that are kept; as `inplace_abn.memory.advice.Advice`.

    Parameters
    ----------
    ledger : Ledger
    events : list of Saved
        What is kept.
    entries : dict
        The `Entry` of each context number.
    """

    def __init__(self, ledger, events, entries):
        self._ledger, self._events, self._entries = ledger, events, entries
        self._buffers = {}
        for event in events:
            self._buffers.setdefault(event.buffer, []).append(event)
        self._conversion = Trial(ledger.model)

    def overview(self):
        """Return lines about all buffers together: a line per kind, the largest first."""
        sizes, free = {}, 0
        for views in self._buffers.values():
            size, kind = max(view.nbytes for view in views), self._kind(views)
            sizes[kind] = sizes.get(kind, 0) + size
            free += size if self._would_be_freed(views) else 0
        total = max(sum(sizes.values()), 1)
        lines = [
            f"   {human(size)} ({size / total:.0%}): {_TEXTS[kind]}"
            for kind, size in sorted(sizes.items(), key=lambda item: -item[1])
        ]
        if free:
            lines.append(f"convert(model) would free about {human(free)} of it ({free / total:.0%}).")
        return lines

    def about(self, views, size):
        """Return lines about one buffer, which the events `views` keep."""
        kind = self._kind(views)
        lines = [_ADVICE[kind]] if kind in _ADVICE else []
        freed = human(size) if self._would_be_freed(views) else None
        names = dict.fromkeys(self._normalizations(views))
        return lines + [self._conversion.sentence(name, freed) for name in names]

    def remarks(self):
        """Return lines about the model: batch norms that are left, calls that wait, and code of compilers."""
        lines = self._conversion.remarks()
        size = sum(map(self._normalized_at, self._conversion.run_again()))
        if size:
            options = ", ".join(f"{name}={value}" for name, value in RUN_AGAIN.items())
            lines.append(f"convert(model, {options}) would free {human(size)}, and takes more time.")
        waiting = {}
        for event in self._events:
            outermost = event.call.outermost
            waiting.setdefault(outermost.module, set()).add(outermost)
        for module, calls in waiting.items():
            if module is not None and len(calls) > 1:
                layer = self._ledger.layer_of(next(iter(calls)))
                lines.append(
                    f"{len(calls)} calls of {layer} wait for their backward, and each keeps its tensors: run "
                    "the backwards, make calls for predictions inside torch.no_grad(), or delete the result "
                    "(a list of losses keeps them: use loss.item())."
                )
        return lines

    def _normalized_at(self, path):
        """Return the bytes of the results that a converted batch norm keeps."""
        return sum(
            views[0].nbytes for views in self._buffers.values()
            if self._kind(views) == "normalized"
            and any(
                self._entries[view.context].part in _OWN and self._ledger.name_of(view.call.module) == path
                for view in views
            )
        )  # fmt: skip

    # ---- what a buffer is --------------------------------------------------------------------------------

    def _kind(self, views):
        entries = self._entries_of(views)
        if any(entry.operation == "CompiledFunction" for entry in entries):
            return "compiled"
        parts = {entry.part for entry in entries}
        if parts & set(_OWN):
            return "normalized"
        if any(entry.operation in _LAYERS and entry.part == "input" for entry in entries):
            return "layer"
        if all(entry.operation == "batch_norm" and entry.part == "input" for entry in entries):
            return "batch norm"
        if parts <= set(_UNRECOVERABLE):
            return "unrecoverable"
        if parts <= set(_SMALL):
            return "small"
        if parts == {"weight"}:
            return "weight"
        return "activation" if all(map(_is_elementwise_or_pooling, entries)) else "other"

    def _entries_of(self, views):
        return [self._entries[view.context] for view in views]

    def _normalizations(self, views):
        """Yield the paths of the batch norms whose fusion decides whether the buffer is kept."""
        if self._kind(views) not in ("batch norm", "activation"):
            return
        for entry in self._entries_of(views):
            module = entry.call.module if entry.operation == "batch_norm" else entry.follows
            name = self._ledger.name_of(module)
            if name is not None and not _is_pooling(entry):
                yield name

    def _would_be_freed(self, views):
        """Return True if conversion frees the buffer: the input of batch norms or of activations."""
        entries = self._entries_of(views)
        if all(entry.part == "indices" for entry in entries):
            return all(self._conversion.would_fuse(self._ledger.name_of(entry.follows)) for entry in entries)
        names = list(self._normalizations(views))
        if not names or not all(map(self._conversion.would_fuse, names)):
            return False
        return all(entry.part == "input" for entry in entries) and any(map(self._result_is_kept, entries))

    def _result_is_kept(self, entry):
        """Return False for a batch norm whose result only its fused form keeps, not PyTorch's."""
        if entry.operation != "batch_norm" or entry.result is None:
            return True
        if not self._conversion.is_alone(self._ledger.name_of(entry.call.module)):
            return True
        return entry.result.key in self._buffers


def _is_elementwise_or_pooling(entry):
    return entry.follows is not None or _is_pooling(entry)


def _is_pooling(entry):
    return entry.operation is not None and "_pool" in entry.operation


_TEXTS = {
    "layer": "inputs of convolutions and linear layers",
    "normalized": "results of normalizations, written over their inputs",
    "batch norm": "inputs of batch norms, needed by nothing else",
    "activation": "inputs and results of activations and poolings, needed by nothing else",
    "small": "statistics, masks and indices",
    "weight": "weights in another dtype, such as those that autocast makes",
    "unrecoverable": "masks and values that cannot be recovered from the result of an in-place normalization",
    "compiled": "saved by code of torch.compile",
    "other": "tensors of other operations",
}
_ADVICE = {
    "layer": "needed for the gradient of the weight; torch.utils.checkpoint frees it and computes it again",
    "normalized": "one tensor for normalization, activation and what follows",
    "weight": "one copy per weight, as long as autocast or the graph needs it",
    "compiled": (
        "one function computes many modules, so their names are not known: call the ledger on the model "
        "without torch.compile, or lower torch._functorch.config.activation_memory_budget"
    ),
}
