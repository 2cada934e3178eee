"""Train one network with each strategy, alternating step by step; compare accuracy, memory and time."""

import argparse
import sys
import textwrap
from pathlib import Path

from .._activations import KEEPS
from . import networks, tasks

#: "inplace" is another name for "inplace_2".
STRATEGIES = [strategy for strategy in KEEPS if strategy != "inplace"]
DTYPES = ["float32", "float64", "bfloat16", "float16"]
NEEDED = ("sklearn", "matplotlib", "tqdm", "threadpoolctl")


def add_arguments(parser):
    """Add the options of the demo to an `argparse.ArgumentParser`."""
    parser.add_argument("--task", choices=list(tasks.TASKS), default="classification",
                        help="classify digits, or the pixels of images composed of digits")  # fmt: skip
    parser.add_argument("--network", metavar="NAME",
                        help=f"from inplace_abn.models: {', '.join(networks.OF_IMAGES)}; with --task "
                        f"segmentation: {', '.join(networks.OF_PIXELS)}; default: the first one")  # fmt: skip
    parser.add_argument("--data", metavar="FOLDER",
                        help="classify these images instead of digits: FOLDER/train/CLASS/*.png or .jpg and "
                        "FOLDER/val/CLASS/*; or FOLDER/CLASS/*, a fifth of them for the test")  # fmt: skip
    parser.add_argument("--image-size", type=_positive, metavar="N",
                        help="height and width to which the images of --data are scaled and cropped; "
                        f"default: {tasks.FOLDER_SIZE}")  # fmt: skip
    parser.add_argument("--skip-bad-files", action="store_true",
                        help="leave out files of --data that cannot be read, and name them")  # fmt: skip
    parser.add_argument(
        "--quick",
        action="store_true",
        help="smaller network, fewer epochs: half a minute on two idle cores",
    )
    parser.add_argument("--epochs", type=_positive, metavar="N", help="default: enough to converge")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="default: 64; segmentation: 16")
    parser.add_argument("--strategy", nargs="+", choices=[*STRATEGIES, "inplace"], default=STRATEGIES,
                        metavar="NAME", help=f"from {', '.join(STRATEGIES)}; default: all")  # fmt: skip
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="dtype of images and activations; weights are float64 for float64, else float32",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights and batches")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="picture: .png, .svg or .pdf; numbers go to .json of that name")  # fmt: skip


def main(options):
    """Run the demo with the options of the command line; return the exit status of the process."""
    needed = (*NEEDED, "ml_dtypes") if options.dtype == "bfloat16" else NEEDED
    missing = [name for name in needed if not _importable(name)]
    if missing:
        return _refuse(
            f"The demo needs {', '.join(missing)}: pip install 'inplace-abn-numpy[demo]', or in a checkout "
            "pip install '.[demo]'"
        )
    from . import figure, report, training

    strategies = list(dict.fromkeys("inplace_2" if name == "inplace" else name for name in options.strategy))
    try:
        setting = tasks.TASKS[options.task].setting(
            quick=options.quick, epochs=options.epochs, batch_size=options.batch_size, dtype=options.dtype,
            seed=options.seed, network=options.network, folder=options.data, size=options.image_size,
            skip_bad_files=options.skip_bad_files,
        )  # fmt: skip
        picture = report.picture_path(options.output, f"inplace_abn_{options.task}.png")
        runs = training.compare(setting, strategies)
    except (OSError, RuntimeError, ValueError) as error:
        return _refuse(f"demo: {error}")
    figure.draw(setting, runs, picture)
    numbers = report.results(setting, runs)
    record = picture.with_suffix(".json")
    report.write(numbers, record)
    print(report.table(numbers))
    if len(runs) > 1:
        print("\n" + textwrap.fill(figure.WHY_SCORES_DIFFER, 100))
    print(f"\nWrote {picture}: memory over one step, and learning curves; and {record}: all numbers.")
    return 0


def _refuse(message):
    print(message, file=sys.stderr)
    return 1


def _positive(text):
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _importable(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def parse(arguments):
    """Return the options for a list of arguments, as from the command line."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


__all__ = ["STRATEGIES", "add_arguments", "main", "parse"]
