"""What a conversion did to each batch norm, as a table."""

from collections import Counter
from html import escape

from torch import nn

from ...memory.tables import plural
from .record import conversion_of

_COLUMNS = ("path", "kind", "state", "activation", "why")


class Report:
    """A row per batch norm of a converted model; `print` it, or show it in a notebook.

    Attributes
    ----------
    rows : list of Row
        With `path`, `kind`, `state`, `activation` and `why`.
    """

    def __init__(self, rows):
        self.rows = list(rows)

    def summary(self):
        """Return how many batch norms are in each state, in words."""
        if not self.rows:
            return "no batch norms"
        counts = Counter(row.state for row in self.rows)
        return f"{plural(len(self.rows), 'batch norm')}: " + ", ".join(
            f"{number} {state}" for state, number in counts.items()
        )

    def _cells(self):
        return [_COLUMNS, *([getattr(row, column) for column in _COLUMNS] for row in self.rows)]

    def __repr__(self):
        cells = self._cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        return "\n".join([self.summary(), "", *lines])

    def _repr_html_(self):
        head, *body = ([escape(cell) for cell in row] for row in self._cells())
        header = "".join(f"<th>{cell}</th>" for cell in head)
        lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
        return f"<p>{self.summary()}</p><table><thead><tr>{header}</tr></thead><tbody>{lines}</tbody></table>"


def report(model):
    """Return what `convert` did to each batch norm of a model, and why.

    Parameters
    ----------
    model : torch.nn.Module
        A model that was converted, or one that has converted models inside.

    Returns
    -------
    Report
        A row per batch norm: "fused", "with residual", "copied" or "left", with the reason for the last two.

    Raises
    ------
    ValueError
        If nothing in the model was converted.

    Examples
    --------
    >>> from torch import nn
    >>> from inplace_abn.torch import convert, report
    >>> report(convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())))
    1 batch norm: 1 fused
    <BLANKLINE>
    path  kind         state  activation  why
    1     BatchNorm2d  fused  relu
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    rows = []
    for name, module in model.named_modules():
        conversion = conversion_of(module)
        if conversion is not None:
            rows += [row.inside(name) for row in conversion.rows]
    if not rows and all(conversion_of(module) is None for module in model.modules()):
        raise ValueError("model was not converted: call inplace_abn.torch.convert(model) first")
    return Report(rows)
