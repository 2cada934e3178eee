"""The results: numbers, and a table of them."""

import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import functional
from ..memory.tables import human, plural
from . import training

COLUMNS = {
    "kept": "kept for backward",
    "tracemalloc": "tracemalloc peak",
    "process": "process peak",
    "seconds": "time per step",
}


def results(setting, runs):
    """Return all results as a dict, which is written to the .json file."""
    info, standard = functional.info(), None
    if setting.is_half:
        standard = training.kept(replace(setting, dtype="float32"), "standard")
    strategies = {
        run.strategy: {
            "score": run.scores[-1],
            "kept": run.ledger.kept,
            **run.peaks,
            "seconds": float(np.median(run.seconds)),
            "scores": run.scores,
            "losses": run.losses,
        }
        for run in runs
    }
    return {
        "task": setting.task.name if setting.folder is None else f"images of {setting.folder}",
        "scored": setting.task.scored,
        "epochs": setting.epochs,
        "batch_size": setting.batch_size,
        "dtype": setting.dtype,
        "network": setting.network_name,
        "widths": list(setting.widths),
        "image_size": setting.size,
        "classes": setting.classes,
        "kept_by_standard_float32": standard,
        "parameters": int(sum(p.data.nbytes for p in runs[0].trainer.net.parameters())),
        "machine": f"{platform.machine()} ({info['isa_active']}), {plural(info['threads'], 'thread')}",
        "strategies": strategies,
    }


def rows(numbers):
    """Return the table as lists of cells, with the header first.

    Each value is followed by its ratio to that of "standard", or of the first strategy if that is missing.
    """
    strategies = numbers["strategies"]
    base = strategies.get("standard") or next(iter(strategies.values()))
    table = [["strategy", numbers["scored"], *COLUMNS.values()]]
    for strategy, row in strategies.items():
        cells = [strategy, f"{row['score']:.2%}"]
        for key in COLUMNS:
            if row[key] is None:
                cells.append("unknown")
                continue
            value = f"{1e3 * row[key]:.1f} ms" if key == "seconds" else human(row[key])
            cells.append(f"{value} {row[key] / base[key]:6.1%}")
        table.append(cells)
    return table


def table(numbers):
    """Return the table as text."""
    lines = rows(numbers)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join(
        [head(numbers), "", texts[0], "-" * len(texts[0]), *texts[1:], *_compared_to_float32(numbers)]
    )


def _compared_to_float32(numbers):
    """Return lines that compare a half type to the strategy "standard" in float32."""
    standard = numbers["kept_by_standard_float32"]
    if standard is None:
        return []
    shares = [f"{name} {row['kept'] / standard:.1%}" for name, row in numbers["strategies"].items()]
    dtype = numbers["dtype"]
    return ["", f"standard in float32 keeps {human(standard)}; {dtype} keeps of that: {', '.join(shares)}"]


def head(numbers):
    """Return the settings and the machine as one line."""
    return (
        f"{numbers['task']}: {numbers['network']}, {plural(numbers['epochs'], 'epoch')}, "
        f"batches of {numbers['batch_size']}, {numbers['dtype']}, "
        f"{human(numbers['parameters'])} of parameters; {numbers['machine']}"
    )


def markdown(numbers):
    """Return the table in Markdown."""
    titles, *body = rows(numbers)
    ruler = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [titles, ruler, *body])


def write(numbers, path):
    """Write the numbers into a file."""
    path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def picture_path(output, default):
    """Return the path of the picture, and create its folder; `default` is the file name inside a folder.

    Call it before the training, so that a wrong path does not lose the results.

    Raises
    ------
    OSError, ValueError
        If the folder cannot be created or written to, or the format of the file is unknown.
    """
    from matplotlib.figure import Figure

    path = Path(default) if output is None else output
    path = path / default if path.is_dir() else path
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"output must end in one of {', '.join(f'.{name}' for name in formats)}, got {path}")
    if path.parent.exists() and not path.parent.is_dir():
        raise NotADirectoryError(f"output: {path.parent} is a file, not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"output: no permission to write into {path.parent.resolve()}")
    return path
