"""`Ledger.explain`: which buffers are kept, for what, and what would free them."""

from .._activations import ACTIVATIONS
from . import events
from .tables import escape, human, plural

#: What a role is, and what would free it; None if the layer needs it in any case, or `_advice` knows more.
_ROLES = {
    "x": ("the input of a normalization", None),
    "xhat": ("the normalized input, written over it", None),
    "z": ("the result of a normalization, written over its input", None),
    "input": ("the input, needed for the gradients", None),
    "residual": (
        "what a normalization adds before the activation, needed to recover its input from its result",
        "a shortcut that is kept in any case: the input of a convolution, or z of an in-place normalization",
    ),
    "branch_mask": (
        "on which side of the activation's minimum each value lies, in one bit",
        "an activation without a minimum, such as leaky_relu, elu or softplus",
    ),
    "guarded_xhat": (
        "channels whose input cannot be recovered from z: their weight is small beside bias or residual, or "
        "the activation is flat",
        "another weight or strategy 'checkpoint_xhat'",
    ),
    "escape_index": ("where the activation is flat", "a smaller weight or bias"),
    "escape_xhat": (
        "elements that cannot be recovered because the activation is flat there: far out, or at its minimum",
        "a smaller weight or bias",
    ),
    "mask": ("which positions are valid, or which elements were kept", None),
    "target": ("the target of a loss", None),
    "log_sum_exp": ("a number for each label of a cross entropy", None),
    "mean": ("the mean of each group of channels", None),
    "inv_std": ("1 / standard deviation of each group of channels", None),
    "indices": ("which element of each window was the largest", None),
}
#: Roles of what cannot be recovered from z. With a straight activation the cause is the weight.
_UNTOLD, _STRAIGHT = ("guarded_xhat", "escape_index", "escape_xhat"), ("identity", "leaky_relu")


class Text(str):
    """A str whose repr is its text."""

    __slots__ = ()

    def __repr__(self):
        return str(self)

    def _repr_html_(self):
        return f"<pre>{escape(self)}</pre>"


def make(entries, known, when, most):
    """Return the explanation of the entries of what is kept."""
    buffers = {}
    for entry in entries:
        buffers.setdefault(entry.buffer, []).append(entry)
    sizes = {buffer: events.bytes_of(views) for buffer, views in buffers.items()}
    total = sum(sizes.values())
    point = "now" if when == "now" else "at the highest point"
    if not buffers:
        return Text("\n".join(["Nothing is kept for a backward " + point + ".", *_still_alive(known)]))
    lines = [f"{human(total)} in {plural(len(buffers), 'buffer')}, kept {point}."]
    largest = sorted(buffers, key=lambda buffer: -sizes[buffer])[:most]
    for number, buffer in enumerate(largest, 1):
        views = buffers[buffer]
        share = sizes[buffer] / max(total, 1)
        lines.append(f"{number}. {human(sizes[buffer])} ({share:.0%}) {_holders(views)}")
        lines += [f"   {line}" for line in _advice(views, sizes[buffer], entries)]
    rest = total - sum(sizes[buffer] for buffer in largest)
    if rest:
        lines.append(f"{plural(len(buffers) - len(largest), 'more buffer')}: {human(rest)}.")
    lines += _pending(entries)
    return Text("\n".join(lines + _still_alive(known)))


def _holders(views):
    roles = [f"{entry.role} of {entry.layer}" for entry in views]
    return "as " + " and ".join(dict.fromkeys(roles))


def _advice(views, size, entries):
    first = views[0]
    lines = []
    for role in dict.fromkeys(entry.role for entry in views):
        if role in _ROLES:
            lines.append(f"{role}: {_ROLES[role][0]}")
    layers = list(dict.fromkeys(entry.layer for entry in views))
    if len(layers) > 1:
        lines.append(f"one buffer for {len(layers)} layers: it is free when the backward of all has run")
    else:
        lines.append(f"free when the backward of {layers[0]} has run")
    twin = _second_buffer(first, entries) if first.role == "x" else None
    if twin is not None:
        known, but = ACTIVATIONS.get(first.activation), ""
        if known is not None and not known.invertible:
            but = f"; {first.activation}, which cannot be inverted, has to be leaky_relu for that"
        lines.append(
            f"{twin.layer} keeps what {first.layer} made of it, {human(twin.nbytes)}: "
            f"strategy='inplace' would write that over this buffer, and free {human(size)}{but}"
        )
    elif _ROLES.get(first.role, (None, None))[1]:
        other = ", or leaky_relu" if first.role in _UNTOLD and first.activation not in _STRAIGHT else ""
        lines.append(f"what would free it: {_ROLES[first.role][1]}{other}")
    if first.buffer_nbytes > size:
        lines.append(
            f"it is part of an array of {human(first.buffer_nbytes)}, which stays as a whole: "
            "pass a copy of the part where the rest is not needed"
        )
    return lines


def _second_buffer(entry, entries):
    """Return the entry saved right after `entry` by another layer, if it is another array as large."""
    later = [other for other in entries if other.seconds > entry.seconds and other.layer != entry.layer]
    following = min(later, key=lambda other: other.seconds, default=None)
    if following is None or following.role != "input" or following.buffer == entry.buffer:
        return None
    return following if following.nbytes == entry.nbytes else None


def _pending(entries):
    """Name layers with several calls whose backward has not run."""
    calls = {}
    for entry in entries:
        calls.setdefault(entry.layer, set()).add(entry.context)
    several = {layer: len(contexts) for layer, contexts in calls.items() if len(contexts) > 1}
    if not several:
        return []
    layer, count = max(several.items(), key=lambda item: item[1])
    return [
        f"{count} calls of {layer} wait for their backward, and each keeps what that needs: run the "
        "backwards, make calls for predictions inside layers.no_grad(), or drop what they keep by the "
        "layer's release()."
    ]


def _still_alive(known):
    """Name arrays that are kept by no layer any longer, but are alive: something else refers to them."""
    count, gone = events.Count(), {}
    for event in known:
        if isinstance(event, events.Freed):
            gone.update({entry.buffer: entry for entry in count.of(event.context)})
        count.add(event)
    kept = {entry.buffer for entry in count.entries()}
    alive = [
        entry for buffer, entry in gone.items()
        if buffer not in kept and entry.owner is not None and entry.owner() is not None
    ]  # fmt: skip
    if not alive:
        return []
    total = sum(entry.buffer_nbytes for entry in alive)
    names = [f"{entry.role} of {entry.layer}" for entry in alive]
    listed = ", ".join(names[:3]) + (", ..." if names[3:] else "")
    return [
        f"{human(total)} is kept by no layer any longer, but still allocated, because a variable or another "
        f"object refers to it: {listed}."
    ]
