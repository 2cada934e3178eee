"""The collective operations of a synchronized layer: one in the forward, one in the backward.

Each process contributes a row of numbers: a mark, followed by statistics or sums. The mark is a digest of the
settings that all processes must share, or NaN if the arguments of this process are wrong. The marks are
compared in every process, without a further operation. If they differ, or at the first call of a layer, the
processes exchange the settings and errors as text, in rows of fixed length, and all raise the same error.
"""

import hashlib
import json
from functools import lru_cache

import numpy as np

from .. import functional
from .group import as_group

_TEXT = 1024  # bytes of settings or an error message


class Exchange:
    """Exchanges numbers of one layer over its group, and compares the settings of the processes.

    Parameters
    ----------
    group : Group, mpi4py.MPI.Comm or None
        As for `as_group`. The connection is opened when it is first needed.
    """

    def __init__(self, group=None):
        self.requested_group = group
        self._group = None
        self._agreed = False  # True if the settings were compared as text: all rows are equally long

    def __getstate__(self):
        return {"group": self.requested_group}

    def __setstate__(self, state):
        self.__init__(state["group"])

    def __deepcopy__(self, memo):
        return Exchange(self.requested_group)

    @property
    def group(self):
        """The `Group`."""
        if self._group is None:
            self._group = as_group(self.requested_group)
        return self._group

    def forward(self, channels, **settings):
        """Return the `Step` of a forward.

        Parameters
        ----------
        channels : int
        **settings : str, number or None
            What must be equal in all processes, by the name of the argument.
        """
        return Step(self, channels, {"step": "forward", "num_features": channels} | settings)

    def gather(self, settings, values, error=None):
        """Return the rows of all processes.

        Parameters
        ----------
        settings : dict of str to str, number or None
            What must be equal in all processes.
        values : float64 ndarray of shape (n,)
        error : Exception, optional
            Why this process cannot continue. It is reported to all others, and the result is None.

        Raises
        ------
        ValueError
            If the settings of the processes differ.
        RuntimeError
            If another process reports an error.
        """
        if not self._agreed and self._compare(settings, error):
            return None
        mark = np.nan if error else _digest(tuple(settings.items()))
        rows = self.group.all_gather(np.concatenate([[mark], values]))
        self._agreed = bool((rows[:, 0] == mark).all())
        if self._agreed:
            return rows[:, 1:]
        if not self._compare(settings, error):
            raise RuntimeError("the settings of all processes are equal, but not their digests")
        return None

    def _compare(self, settings, error):
        """Exchange settings and errors as text. Raise an error, or return True if this process has one."""
        own = {"error": f"{type(error).__name__}: {error}"} if error else settings
        texts = [_decode(row) for row in self.group.all_gather(_encode(own))]
        if error:
            return True
        for rank, other in enumerate(texts):
            if "error" in other:
                raise RuntimeError(f"rank {rank} failed: {other['error']}")
        first = texts[0]
        for rank, other in enumerate(texts):
            for name in first:
                if other.get(name) != first[name]:
                    raise ValueError(
                        f"{name} must be equal in all processes, got {first[name]!r} on rank 0 and "
                        f"{other.get(name)!r} on rank {rank}"
                    )
        return False


class Step:
    """One forward or backward of a synchronized layer.

    Used as a context manager: an error that is raised inside the block before the exchange is reported to all
    processes, which raise an error as well. Nothing may be written before the exchange.
    """

    def __init__(self, exchange, channels, settings):
        self.exchange, self.channels, self.settings = exchange, channels, settings
        self._has_exchanged, self._merged = False, None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, Exception) and not self._has_exchanged:
            self.exchange.gather(self.settings, np.zeros(2 * self.channels + 1), error)

    def backward(self):
        """Return the step of the backward that belongs to this forward."""
        return Step(self.exchange, self.channels, self.settings | {"step": "backward"})

    def merged_statistics(self, mean, var, count):
        """Return mean, biased variance and count of the union of all batches, equal in all processes.

        Another call returns the same without an exchange, for a forward that is repeated.

        Parameters
        ----------
        mean, var : float64 ndarray of shape (C,)
            Of the batch of this process.
        count : int
            Its elements per channel.
        """
        if self._merged is not None:
            return self._merged
        rows = self._gather(np.concatenate([mean, var, [count]]))
        means, variances = rows[:, : self.channels], rows[:, self.channels : -1]
        mean, var, count = functional.merge_statistics(means, variances, rows[:, -1])
        if count == 1:
            raise ValueError(
                "x must have more than 1 value per channel in all processes together, got 1; use larger "
                "batches or larger images, or eval(), for the running statistics"
            )
        self._merged = mean, var, count
        return self._merged

    @property
    def count(self):
        """Elements per channel of all batches, after `merged_statistics`."""
        return self._merged[2]

    def total_sums(self, sums):
        """Return the totals of two sums of shape (C,) over all processes, added up in the order of ranks."""
        total = self._gather(np.concatenate([*sums, [0.0]])).sum(axis=0)
        return total[: self.channels], total[self.channels : -1]

    def _gather(self, values):
        """Return the rows of all processes; from then on, an error is not reported any more."""
        self._has_exchanged = True
        return self.exchange.gather(self.settings, values)


@lru_cache(maxsize=1024)
def _digest(settings):
    """Return a hash of settings as a float."""
    text = json.dumps(settings).encode()
    return float(int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big"))


def _encode(settings):
    """Return settings, or an error message, as an array of numbers of fixed length."""
    text = json.dumps(settings).encode()
    if len(text) > _TEXT:
        text = json.dumps({"error": ascii(settings["error"])[: _TEXT // 3]}).encode()
    return np.frombuffer(text.ljust(_TEXT), "<u4").astype(np.float64)


def _decode(row):
    """Invert `_encode`."""
    return json.loads(row.astype("<u4").tobytes())
