"""The result of a plan: as a table, as JSON, as an HTML page and as a figure."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..memory.tables import human, in_unit, largest_unit
from . import figure, page
from .step import shortened


@dataclass
class StrategyPlan:
    """The plan of one strategy.

    Attributes
    ----------
    strategy : str
    step : Step or None
        The memory of one step; None if the network cannot be trained with this strategy.
    reason : str
        Why not, or how many bytes the budget lacks for one sample.
    largest_batch, largest_size : int, (int, int) or None
        What fits into the budget: samples of the given size, and height and width in a batch of the given
        number. None without a budget, or if nothing fits.
    """

    strategy: str
    step: object = None
    reason: str = ""
    largest_batch: int | None = None
    largest_size: tuple | None = None


@dataclass
class Plan:
    """The result of `inplace_abn.plan`. It prints as a table.

    Attributes
    ----------
    network : str
    shape : tuple of int
        Of the input.
    dtype : str
    budget : int or None
        In bytes.
    strategies : list of StrategyPlan
    advice : list of Advice
        What to change next, the most bytes per additional time first.
    """

    network: str
    shape: tuple
    dtype: str
    budget: int | None = None
    strategies: list = field(default_factory=list)
    advice: list = field(default_factory=list)

    def __getitem__(self, strategy):
        """Return the `StrategyPlan` of a strategy."""
        for planned in self.strategies:
            if planned.strategy == strategy:
                return planned
        raise KeyError(
            f"{strategy!r}; planned are {', '.join(planned.strategy for planned in self.strategies)}"
        )

    def __str__(self):
        return "\n".join([*self._title(), "", *self._table(), *self._notes(), *self._advice()])

    __repr__ = __str__

    def _repr_html_(self):
        return page.body(self)

    # ---- files ---------------------------------------------------------------------------------------------

    def to_dict(self):
        """Return the plan as a dict of numbers, texts, lists and dicts."""
        return {
            "network": self.network,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "budget": self.budget,
            "strategies": [_as_dict(planned) for planned in self.strategies],
            "advice": [advice._asdict() for advice in self.advice],
        }

    def to_json(self, path=None):
        """Return the plan as JSON; write it to a file if a path is given."""
        return _written(json.dumps(self.to_dict(), indent=1), path)

    def to_html(self, path=None):
        """Return the plan as an HTML page, with the memory over the step; write it if a path is given."""
        return _written(page.whole(self), path)

    def plot(self, ax=None):
        """Plot the bytes in use over the step, for each strategy, by matplotlib; return the axes."""
        return figure.draw(self, ax)

    # ---- text ----------------------------------------------------------------------------------------------

    def _title(self):
        shape = " x ".join(map(str, self.shape))
        budget = "" if self.budget is None else f", budget {human(self.budget)}"
        return [f"{self.network}: a training step for {shape}, {self.dtype}{budget}"]

    def columns(self):
        """Return the heads of the columns and the rows of the table, as texts."""
        unit = largest_unit(
            human(planned.step.peak).split()[1] for planned in self.strategies if planned.step
        )
        heads = ["strategy", "parameters", "gradients", "optimizer", "kept", "temporaries", f"peak ({unit})"]
        heads += ["peak in"] if self.budget is None else ["peak in", "largest batch", "largest size"]
        rows = []
        for planned in self.strategies:
            step = planned.step
            if step is None:
                rows.append([planned.strategy] + ["-"] * (len(heads) - 1))
                continue
            sizes = (
                step.parameters,
                step.gradients,
                step.state,
                step.kept,
                step.at_peak["temporaries"],
                step.peak,
            )
            where = f"{step.at_peak['phase']}, {step.at_peak['layer']}".removesuffix(", ")
            row = [planned.strategy, *(f"{size / in_unit(unit):,.2f}" for size in sizes), where]
            if self.budget is not None:
                size = "-" if planned.largest_size is None else "{} x {}".format(*planned.largest_size)
                row += [str(planned.largest_batch or "-"), size]
            rows.append(row)
        return heads, rows

    def _table(self):
        heads, rows = self.columns()
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        left = (0, 7)
        lines = [
            "  ".join(
                cell.ljust(width) if i in left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in [heads, *rows]
        ]
        return [lines[0], "-" * max(map(len, lines)), *lines[1:]]

    def _notes(self):
        return [f"{planned.strategy}: {planned.reason}" for planned in self.strategies if planned.reason]

    def _advice(self):
        if not self.advice:
            return []
        lines = ["", f"What to change next, from {self.strategies[0].strategy}:"]
        for advice in self.advice:
            time = f"{advice.time:+.1%} time" if advice.time > 1e-3 else "no additional time"
            lines.append(f"  {human(advice.saves):>10}  {time:<18}  {advice.change}")
        return lines


def _as_dict(planned):
    """Return a `StrategyPlan` as a dict, for JSON."""
    result = {"strategy": planned.strategy, "reason": planned.reason}
    result |= {
        "largest_batch": planned.largest_batch,
        "largest_size": planned.largest_size and list(planned.largest_size),
    }
    step = planned.step
    if step is not None:
        names = "parameters", "buffers", "state", "batch", "gradients", "kept", "peak", "at_peak"
        result |= {name: getattr(step, name) for name in names}
        result |= {"kept_by_role": step.by_role, "kept_by_layer": step.by_layer, "timeline": shortened(step)}
    return result


def _written(text, path):
    """Return a text; write it to a file if a path is given."""
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
