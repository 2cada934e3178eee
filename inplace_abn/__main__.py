"""``python -m inplace_abn demo``."""

import argparse
import sys

from . import demo


def main(arguments=None):
    """Run a command; return the exit status of the process."""
    parser = argparse.ArgumentParser(prog="python -m inplace_abn", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "demo", help="train networks with every strategy and compare", description=demo.__doc__
    )
    demo.add_arguments(command)
    command.set_defaults(run=demo.main)
    options = parser.parse_args(arguments)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
