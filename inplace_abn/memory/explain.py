"""`Ledger.explain`: the largest buffers, which layers keep them, and what would free them."""

from . import events
from .tables import escape, human, plural


class Text(str):
    """A str whose repr is its text."""

    __slots__ = ()

    def __repr__(self):
        return str(self)

    def _repr_html_(self):
        return f"<pre>{escape(self)}</pre>"


def make(entries, known, when, most, advice):
    """Return the explanation for entries that are kept.

    `known` are all events of the ledger; `advice` has the methods of `inplace_abn.memory.advice.Advice`.
    """
    buffers = {}
    for entry in entries:
        buffers.setdefault(entry.buffer, []).append(entry)
    sizes = {buffer: events.bytes_of(views) for buffer, views in buffers.items()}
    total = sum(sizes.values())
    point = "now" if when == "now" else "at the highest point"
    if not buffers:
        return Text("\n".join(["Nothing is kept for a backward " + point + ".", *_still_alive(known)]))
    lines = [f"{human(total)} in {plural(len(buffers), 'buffer')}, kept {point}."]
    lines += advice.overview()
    largest = sorted(buffers, key=lambda buffer: -sizes[buffer])[:most]
    for number, buffer in enumerate(largest, 1):
        views = buffers[buffer]
        share = sizes[buffer] / max(total, 1)
        lines.append(f"{number}. {human(sizes[buffer])} ({share:.0%}) as {_holders(views)}")
        lines += [f"   {line}" for line in advice.about(views, sizes[buffer])]
    rest = total - sum(sizes[buffer] for buffer in largest)
    if rest:
        lines.append(f"{plural(len(buffers) - len(largest), 'more buffer')}: {human(rest)}.")
    lines += advice.remarks()
    return Text("\n".join(lines + _still_alive(known)))


def _holders(views):
    """Return which layers keep a buffer as what: "z of abn1 and input of conv2"."""
    roles = [f"{entry.role} of {entry.layer}" for entry in views]
    return " and ".join(dict.fromkeys(roles))


def _still_alive(known):
    """Return a line about arrays that no layer keeps any longer, but that another reference keeps alive."""
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
        f"{human(total)} is no longer kept by a layer, but still allocated, because a variable or another "
        f"object refers to it: {listed}."
    ]
