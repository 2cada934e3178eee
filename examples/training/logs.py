"""Logs of a run: a CSV file per kind of row, and TensorBoard. A resumed run continues them without a gap."""

import csv
import os
from pathlib import Path


class Table:
    """A CSV file. Rows after the first `size` bytes, which a killed run left, are removed."""

    def __init__(self, path, size):
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        self._file.truncate(min(size, os.path.getsize(path)))

    def write(self, row):
        """Add a row, a dictionary; the first row makes the header."""
        writer = csv.writer(self._file)
        if not os.path.getsize(self._file.name):
            writer.writerow(row)
        writer.writerow(row.values())
        self._file.flush()

    def size(self):
        """Return the number of bytes, which are on the disk then."""
        os.fsync(self._file.fileno())
        return os.path.getsize(self._file.name)

    def close(self):
        """Close the file."""
        self._file.close()


class Logs:
    """The tables "train" and "validation" in a folder, and TensorBoard's file if wanted.

    Parameters
    ----------
    folder : Path
    tensorboard : bool
    sizes : dict of str to int
        The bytes of the tables that were written until the checkpoint.
    step : int
        The step of the checkpoint; what TensorBoard has of later steps is hidden.
    """

    def __init__(self, folder, tensorboard, sizes, step):
        self._tables = {
            name: Table(Path(folder, f"{name}.csv"), sizes.get(name, 0)) for name in ("train", "validation")
        }
        self._board = _summary_writer(Path(folder, "tensorboard"), step + 1) if tensorboard else None

    def write(self, name, row):
        """Add a row with "epoch", "step" and further numbers."""
        self._tables[name].write(row)
        if self._board is not None:
            for key, value in row.items():
                if key not in ("epoch", "step"):
                    self._board.add_scalar(f"{name}/{key}", value, row["step"])

    def sizes(self):
        """Return the bytes of the tables."""
        return {name: table.size() for name, table in self._tables.items()}

    def close(self):
        """Close all files."""
        for table in self._tables.values():
            table.close()
        if self._board is not None:
            self._board.close()


def _summary_writer(folder, step):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SystemExit("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter(folder, purge_step=step)
