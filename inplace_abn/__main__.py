"""``python -m inplace_abn demo`` and ``python -m inplace_abn plan``."""

import argparse
import sys

from . import demo
from ._plan import command as plan

#: Command -> (its module, what it does)
COMMANDS = {
    "demo": (demo, "train networks with every strategy and compare"),
    "plan": (plan, "say what a training step needs and what fits, without running it"),
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
