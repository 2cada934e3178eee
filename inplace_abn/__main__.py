"""``python -m inplace_abn demo``, ``plan`` and ``export``."""

import argparse
import sys

from . import demo
from ._plan import command as plan
from .export import command as export

#: Command -> (its module, what it does)
COMMANDS = {
    "demo": (demo, "train networks with every strategy and compare"),
    "plan": (plan, "print what a training step needs and what fits, without running it"),
    "export": (export, "write a saved network to an ONNX file"),
}


def main(arguments=None):
    """Run a command; return the exit status of the process."""
    parser = argparse.ArgumentParser(prog="python -m inplace_abn", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.main)
    options = parser.parse_args(arguments)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
