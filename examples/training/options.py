"""Options of both scripts, and which of them may change when a run resumes."""

import argparse
import math
from pathlib import Path

#: May change. All but `skip_bad_files` change neither the weights nor the scores.
FREE = (
    "data", "output", "workers", "skip_bad_files", "log_every", "checkpoint_every", "tensorboard", "device",
    "memory",
)  # fmt: skip


def parser(description, *, model, crop, batch_size, epochs, learning_rate, schedule):
    """Return a parser with the options of both scripts and the defaults of one of them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("data", type=Path, nargs="?", help="folder of the data set; not needed for --memory")
    add("--output", type=Path, default=Path("run"), help="folder for checkpoint, weights and logs")
    add("--model", default=model, help="see examples/README.md")
    group = parser.add_argument_group("normalization")
    group.add_argument("--stock", action="store_true", help="do not convert the model, for comparison")
    group.add_argument("--activation", help="what replaces ReLU behind batch norms; the paper: leaky_relu")
    group.add_argument("--recompute-stem", action="store_true", help="see inplace_abn.torch.convert")
    group.add_argument("--recompute-projections", action="store_true", help="see inplace_abn.torch.convert")
    group.add_argument(
        "--sync", action=argparse.BooleanOptionalAction, default=True, help="statistics of all processes"
    )
    group = parser.add_argument_group("training")
    group.add_argument("--crop", type=at_least(1), default=crop, help="height and width of training images")
    group.add_argument(
        "--mirror", action=argparse.BooleanOptionalAction, default=True, help="mirror images at random"
    )
    group.add_argument("--batch-size", type=at_least(1), default=batch_size, help="per process and forward")
    group.add_argument("--accumulate", type=at_least(1), default=1, help="forwards per step of the optimizer")
    group.add_argument("--epochs", type=at_least(1), default=epochs)
    group.add_argument("--learning-rate", type=number(0), default=learning_rate, help="at the start")
    group.add_argument("--schedule", choices=("step", "linear", "poly", "cosine"), default=schedule)
    group.add_argument("--momentum", type=number(0, 1), default=0.9, help="Nesterov momentum")
    group.add_argument("--weight-decay", type=number(0), default=1e-4)
    group.add_argument("--autocast", choices=("bfloat16", "float16"), help="compute in half precision")
    group.add_argument("--seed", type=at_least(0), default=0)
    group = parser.add_argument_group("files and logs")
    group.add_argument("--workers", type=at_least(0), default=4, help="processes that read images")
    group.add_argument("--skip-bad-files", action="store_true", help="train without unreadable files")
    group.add_argument("--checkpoint-every", type=at_least(1), default=500, help="steps between checkpoints")
    group.add_argument("--log-every", type=at_least(1), default=50, help="steps between rows of the log")
    group.add_argument("--tensorboard", action="store_true", help="also write logs for TensorBoard")
    group.add_argument("--device", help="cuda or cpu; without it, cuda if there is one")
    group.add_argument("--memory", action="store_true", help="print what a step keeps in memory, and stop")
    return parser


def parse(parser, arguments):
    """Return the options, checked."""
    options = parser.parse_args(arguments)
    if options.data is None and not options.memory:
        parser.error("the folder of the data set is missing")
    if options.stock and (options.activation or options.recompute_stem or options.recompute_projections):
        parser.error("--stock excludes --activation, --recompute-stem and --recompute-projections")
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: {options.output} is a file, expected a folder or a new name")
    return options


def number(smallest, largest=math.inf):
    """Return a function that reads a finite number in this range."""

    def read(text):
        value = float(text)
        if not (math.isfinite(value) and smallest <= value <= largest):
            limit = "" if largest == math.inf else f" and at most {largest}"
            raise argparse.ArgumentTypeError(f"must be at least {smallest}{limit}, got {text}")
        return value

    read.__name__ = "number"  # argparse names it in the message for a text that is no number
    return read


def settings(options, **more):
    """Return what must be the same when a run resumes, by name."""
    fixed = {name: value for name, value in vars(options).items() if name not in FREE}
    return {name: str(value) if isinstance(value, Path) else value for name, value in fixed.items()} | more


def check_equal(old, new, path):
    """Exit with a message if a checkpoint belongs to a run with other settings."""
    for name in old | new:
        if old.get(name) != new.get(name):
            raise SystemExit(
                f"{path} has {name}={old.get(name)!r}, this run {name}={new.get(name)!r}: "
                "use the same value, or another --output for a new run"
            )


def at_least(smallest):
    """Return a function that reads an integer of at least this size."""

    def integer(text):
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"must be at least {smallest}, got {text}")
        return int(text)

    return integer
