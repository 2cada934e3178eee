"""Print what a training step of a network needs, and what fits into a budget, without running it."""

import os
import sys
from pathlib import Path

from .._activations import KEEPS
from .._arguments import integer
from . import plan
from .network import names
from .step import OPTIMIZERS

DTYPES = ("float32", "float64", "float16")


def add_arguments(parser):
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("network", help=f"a network of inplace_abn.models: {', '.join(names())}")
    add("--input", required=True, metavar="CxHxW", help="one image, such as 3x224x224")
    add("--batch", type=int, default=32, metavar="N", help="images in a batch (default: 32)")
    add("--budget", metavar="SIZE", help="the memory, with a unit: 16GiB, 500MB")
    add("--strategy", action="append", choices=KEEPS, help="plan this one; may be repeated")
    add("--classes", type=int, metavar="N", help="number of classes (default: that of the network)")
    add("--dtype", choices=DTYPES, default="float32", help="of the images")
    add("--optimizer", choices=[*OPTIMIZERS, "none"], default="sgd", help="sgd has momentum")
    add("--no-advice", action="store_true", help="do not look for changes, which takes most of the time")
    add("--plot", metavar="FILE", help="write a figure of the memory over the step: .png, .svg or .pdf")
    add("--html", metavar="FILE", help="write an HTML page")
    add("--json", metavar="FILE", help="write JSON")


def main(options):
    """Print the plan and write the files; return the exit status."""
    try:
        _check_files(options)
        batch = integer("--batch", options.batch, least=1)
        result = plan(
            options.network, (batch, *_sizes(options.input)), dtype=options.dtype,
            optimizer=None if options.optimizer == "none" else options.optimizer, budget=options.budget,
            strategies=options.strategy, classes=options.classes, advice=not options.no_advice,
        )  # fmt: skip
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    print(result)
    if options.json is not None:
        result.to_json(options.json)
    if options.html is not None:
        result.to_html(options.html)
    if options.plot is not None:
        _save_figure(result, options.plot)
    return 0


def _check_files(options):
    """Raise an error for a file that cannot be written, so that no plan is made in vain."""
    for name in ("plot", "html", "json"):
        path = getattr(options, name)
        if path is None:
            continue
        folder = Path(path).parent
        if Path(path).is_dir():
            raise IsADirectoryError(f"--{name}: expected the name of a file, got the folder {path!r}")
        if not folder.is_dir():
            raise FileNotFoundError(f"--{name}: {str(folder)!r} is not a folder; create it first")
        if not os.access(path if Path(path).exists() else folder, os.W_OK):
            raise PermissionError(f"--{name}: no permission to write {path!r}")
    if options.plot is not None:
        _check_format(options.plot)


def _check_format(path):
    """Raise an error for the name of a figure that Matplotlib cannot write."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'inplace-abn-numpy[demo]'") from error
    if Path(path).suffix[1:].lower() not in Figure().canvas.get_supported_filetypes():
        raise ValueError(f"--plot: expected a name that ends in .png, .svg or .pdf, got {path!r}")


def _sizes(text):
    """Return the sizes of one image.

    >>> _sizes("3x224x224")
    (3, 224, 224)
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"--input: expected channels, height and width, such as 3x224x224, got {text!r}")
    return tuple(map(int, parts))


def _save_figure(result, path):
    import matplotlib

    matplotlib.use("agg")
    result.plot().figure.savefig(path, dpi=150)
