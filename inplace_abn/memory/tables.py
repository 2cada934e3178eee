"""The arrays kept, as a table."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from . import events

__all__ = ["ACCENT", "Row", "Table", "escape", "human", "in_unit", "largest_unit", "make", "plural"]

#: Blue of Okabe and Ito's palette, which stays distinct for colour-blind readers.
ACCENT = "#0072B2"
_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "bytes": 1}


def human(nbytes):
    """Return a number of bytes as text, in the largest unit of which there is at least one.

    >>> human(100), human(1536), human(3 << 20)
    ('100 bytes', '1.5 KiB', '3.0 MiB')
    """
    unit = _unit(nbytes)
    return f"{_in(unit, nbytes, 1)} {unit}"


def plural(count, name):
    """Return "1 buffer", "2 buffers"."""
    return f"{count} {name}{'' if count == 1 else 's'}"


def in_unit(unit):
    """Return the number of bytes of "GiB", "MiB", "KiB" or "bytes"."""
    return _UNITS[unit]


def largest_unit(units):
    """Return the largest of some units."""
    return max(units, key=in_unit)


def _unit(nbytes):
    """Return the largest unit of which there is at least one."""
    return next(unit for unit, size in _UNITS.items() if nbytes >= size or size == 1)


def _in(unit, nbytes, digits):
    """Return a number of bytes in `unit` as text."""
    return f"{nbytes / _UNITS[unit]:,.{0 if unit == 'bytes' else digits}f}"


class Row(NamedTuple):
    """The arrays of one role, shape and dtype that calls of one layer keep."""

    layer: str
    role: str
    shape: tuple
    dtype: np.dtype
    count: int
    nbytes: int
    shared_with: tuple | None


class Table(Sequence):
    """Rows of arrays that are kept, with a total.

    Attributes
    ----------
    rows : list of Row
    buffers : int
        Number of buffers.
    nbytes : int
        The sum of all rows.
    not_kept : dict of str to int
        Bytes that are not kept for the backward, by name: parameters, gradients, temporaries.
    """

    def __init__(self, rows, buffers, not_kept):
        self.rows, self.buffers, self.not_kept = rows, buffers, not_kept
        self.nbytes = sum(row.nbytes for row in rows)

    @property
    def unit(self):
        """The unit of all sizes in the table: "GiB", "MiB", "KiB" or "bytes"."""
        return _unit(max([self.nbytes, *self.not_kept.values()]))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def _cells(self):
        """Return unit, body and foot as strings; rows of (layer, role, shape, dtype, size)."""
        unit = self.unit
        sizes = [row.nbytes for row in self.rows] + list(self.not_kept.values())
        digits = 3 if any(0 < size < _UNITS[unit] for size in sizes) else 1
        body = []
        for row in self.rows:
            role = row.role if row.count == 1 else f"{row.role} ({row.count} times)"
            size = _in(unit, row.nbytes, digits)
            if row.shared_with is not None:
                size = "{} of {}".format(*reversed(row.shared_with)) + (f", {size}" if row.nbytes else "")
            body.append((row.layer, role, str(row.shape), str(row.dtype).removeprefix("torch."), size))
        foot = [(f"kept for the backward, {plural(self.buffers, 'buffer')}", _in(unit, self.nbytes, digits))]
        foot += [(name, _in(unit, nbytes, digits)) for name, nbytes in self.not_kept.items()]
        return unit, body, foot

    def __str__(self):
        unit, body, foot = self._cells()
        head = ("layer", "role", "shape", "dtype")
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(4)]
        lines = [("  ".join(map(str.ljust, row, widths)), row[4]) for row in [(*head, unit), *body]]
        wide = max(len(label) for label, _ in lines + foot)
        sizes = max(len(size) for _, size in lines + foot)
        first, *lines = [f"{label.ljust(wide)}  {size:>{sizes}}" for label, size in lines + foot]
        ruler = "-" * (wide + 2 + sizes)
        return "\n".join([first, ruler, *lines[: len(body)], ruler, *lines[len(body) :]])

    __repr__ = __str__

    def _repr_html_(self):
        unit, body, foot = self._cells()
        left = ' style="text-align:left"'
        head = "".join(f"<th{left}>{name}</th>" for name in ("layer", "role", "shape", "dtype"))
        share = [row.nbytes / max(self.nbytes, 1) for row in self.rows]
        rows = ""
        for (*cells, size), part in zip(body, share, strict=True):
            bar = f'<div style="background:{ACCENT};height:0.8em;width:{100 * part:.0f}px"></div>'
            texts = "".join(f"<td{left}>{escape(cell)}</td>" for cell in cells)
            rows += f"<tr>{texts}<td>{escape(size)}</td><td{left}>{bar}</td></tr>"
        sums = ""
        for name, size in foot:
            sums += f"<tr><td{left} colspan=4>{escape(name)}</td><td><b>{size}</b></td><td></td></tr>"
        return (
            f"<table><thead><tr>{head}<th>{unit}</th><th></th></tr></thead><tbody>{rows}</tbody>"
            f"<tfoot>{sums}</tfoot></table>"
        )


def make(entries, model, known):
    """Return the `Table` of entries that are kept; `known` are all events of the ledger."""
    holders, groups = {}, {}
    for entry in entries:
        views = holders.setdefault(entry.buffer, [])
        fresh = events.bytes_of([*views, entry]) - events.bytes_of(views)
        group = groups.setdefault((entry.layer, entry.role, entry.shape, entry.dtype), [0, 0, None])
        group[0] += 1
        group[1] += fresh
        if views and fresh < entry.nbytes:
            group[2] = (views[0].layer, views[0].role)
        views.append(entry)
    rows = [Row(*key, count, nbytes, shared) for key, (count, nbytes, shared) in groups.items()]
    return Table(rows, len(holders), _not_kept(model, known))


def _not_kept(model, known):
    """Return the bytes of parameters, gradients and temporaries by name."""
    not_kept = {}
    if model is not None:
        parameters = list(model.parameters())
        not_kept["parameters"] = sum(parameter.data.nbytes for parameter in parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        not_kept["gradients"] = sum(gradient.nbytes for gradient in gradients)
    temporaries = [event.nbytes for event in known if isinstance(event, events.Temporary)]
    if temporaries:
        not_kept["temporaries, at most"] = max(temporaries)
    return not_kept
