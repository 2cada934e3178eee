"""What both scripts do around a run."""

import sys

from data.files import BadFile

from . import checkpoint, processes
from .models import converted


def launch(options, run):
    """Return ``run(options, group)`` with the processes of torchrun connected; exit if a file is bad."""
    try:
        with processes.started(options.device) as group:
            return run(options, group)
    except BadFile as error:
        sys.exit(f"{error}\n--skip-bad-files trains without such files")


def build(options, make, stock=None):
    """Return the model of ``make()`` with the weights that the seed gives, converted unless `stock`."""
    checkpoint.seed_all(options.seed)
    model = make()
    return model if (options.stock if stock is None else stock) else converted(model, options)
