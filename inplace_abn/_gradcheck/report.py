"""The result of `gradcheck`."""

from html import escape
from typing import NamedTuple


class Row(NamedTuple):
    """The gradient of one array, in one mode.

    ``index`` is that of the worst element, ``analytic`` and ``numeric`` are its gradients, and ``excess`` is
    their difference divided by the allowed difference: above 1 they disagree. ``wrong`` counts the elements
    where they disagree, ``kinks`` those without a derivative.
    """

    mode: str
    name: str
    shape: tuple
    checked: int
    wrong: int
    kinks: int
    index: tuple
    analytic: float
    numeric: float
    excess: float


class Report:
    """Result of `gradcheck`. Its truth value is True if all gradients agree.

    Attributes
    ----------
    rows : list of Row
    problems : list of str
        Errors other than wrong numbers, such as a backward that changes dz without ``overwrite=True``.
    """

    def __init__(self):
        self.rows, self.problems = [], []

    def extend(self, mode, check):
        """Add the results of a `Check` in one mode."""
        for result in check.run():
            self.rows.append(Row(mode, *result))
        self.problems += [f"{mode}: {problem}" if mode else problem for problem in check.problems]
        for row in self.rows:
            if row.checked and row.kinks > max(1, row.checked // 10):
                note = f"{row.name}: {row.kinks} of {row.checked} elements are at kinks and cannot be checked"
                if note not in self.problems:
                    self.problems.append(note)

    @property
    def ok(self):
        """True if all gradients agree and there are no other problems."""
        return bool(self.rows) and not self.problems and not any(row.wrong for row in self.rows)

    @property
    def worst(self):
        """The row with the worst element."""
        return max(self.rows, key=lambda row: row.excess)

    def __bool__(self):
        return self.ok

    def _verdict(self):
        """Return the first lines of the text: agreement, or what is wrong."""
        if self.ok:
            return "gradients agree with finite differences"
        if not self.rows and not self.problems:
            return "nothing to check: no floating array among inputs and parameters"
        wrong = sum(1 for row in self.rows if row.wrong)
        found = [f"{wrong} of {len(self.rows)} gradients are WRONG"] if wrong else []
        return "\n".join(found + [f"PROBLEM: {problem}" for problem in self.problems])

    def _cells(self):
        """Yield the rows of the table as lists of texts, the head first."""
        modes = any(row.mode for row in self.rows)
        yield ["mode"] * modes + ["gradient", "shape", "checked", "wrong", "kinks", "worst at"]
        for row in self.rows:
            where = f"{list(row.index)}, off by {abs(row.analytic - row.numeric):.1e}"
            if row.wrong:
                where = f"{list(row.index)}: {row.analytic:.10g}, should be {row.numeric:.10g}"
            numbers = [str(number) for number in (row.checked, row.wrong, row.kinks)]
            yield [row.mode] * modes + [row.name, str(row.shape), *numbers, where]

    def __str__(self):
        table = list(self._cells())
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        texts = len(widths) - 4
        lines = []
        for row in table:
            cells = [
                cell.ljust(width) if i < texts else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row[:-1], widths, strict=False))
            ]
            lines.append("  ".join([*cells, row[-1]]).rstrip())
        return "\n".join([self._verdict(), *lines])

    __repr__ = __str__

    def _repr_html_(self):
        head, *body = self._cells()
        left = ' style="text-align:left"'
        rows = ""
        for row, cells in zip(self.rows, body, strict=True):
            colour = ' style="background:#f8d7da"' if row.wrong else ""
            rows += f"<tr{colour}>{''.join(f'<td{left}>{escape(cell)}</td>' for cell in cells)}</tr>"
        names = "".join(f"<th{left}>{name}</th>" for name in head)
        verdict = escape(self._verdict()).replace("\n", "<br>")
        return f"<p>{verdict}</p><table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table>"
