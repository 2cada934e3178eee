"""Groups over MPI, by mpi4py."""

import os
import time

import numpy as np

_SPIN = 2e-5  # seconds of polling without letting other processes run
_BUSY = 0.02  # seconds of polling without pauses
_PAUSE = 50e-6  # seconds between later polls
_yield = getattr(os, "sched_yield", lambda: time.sleep(0))  # sleep(0) takes 50 µs on Linux


class MPIGroup:
    """The processes of a communicator of MPI: a `Group`.

    Parameters
    ----------
    communicator : mpi4py.MPI.Comm, optional
        None is ``MPI.COMM_WORLD``. Pass ``communicator.Dup()`` if other threads use the same one.
    timeout : float > 0
        Seconds after which `all_gather` gives up waiting for the other processes.

    Raises
    ------
    ImportError
        For None if mpi4py or its MPI is not installed.
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    In a program started by ``mpiexec -n 4 python -m mpi4py train.py``::

        group = MPIGroup(timeout=60)
        layer = layers.SyncABN(64, group=group)
    """

    def __init__(self, communicator=None, *, timeout=600.0):
        if communicator is None:
            communicator = _mpi().COMM_WORLD
        if not hasattr(communicator, "Iallgather"):
            raise TypeError(
                f"communicator must be a mpi4py.MPI.Comm or None, got {type(communicator).__name__}"
            )
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {timeout!r}")
        self.communicator, self.timeout = communicator, timeout
        self.size, self.rank = communicator.Get_size(), communicator.Get_rank()
        self._failed = None  # (message, objects that MPI may still access)

    def all_gather(self, values):
        """Return the values of all processes, those of rank r in row r.

        Parameters
        ----------
        values : float64 ndarray of shape (n,)

        Returns
        -------
        float64 ndarray of shape (size, n)

        Raises
        ------
        TimeoutError
            If a process did not call `all_gather` within the time-out.
        RuntimeError
            If MPI reports an error, such as a process that ended; and after either error, since the order of
            the messages is unknown from then on.
        """
        if self._failed is not None:
            raise RuntimeError(f"this group cannot be used any more: {self._failed[0]}")
        rows = np.empty((self.size, values.size))
        try:
            request = self.communicator.Iallgather(values, rows)
            done = self._wait(request)
        except RuntimeError as error:  # MPI.Exception is one
            raise self._fail(RuntimeError, f"MPI failed: {error}", values, rows) from error
        if not done:
            message = (
                f"rank {self.rank} waited {self.timeout:g} s for the other {self.size - 1} processes: one of "
                "them has ended, has raised an error or makes other calls"
            )
            raise self._fail(TimeoutError, message, request, values, rows)
        return rows

    def _wait(self, request):
        """Return True when the request is complete, False after the time-out."""
        # MPI's own wait has no time-out, and keeps the processor from processes that it waits for.
        start = time.monotonic()
        while not request.Test():
            waited = time.monotonic() - start
            if waited > self.timeout:
                return False
            if waited > _BUSY:
                time.sleep(_PAUSE)
            elif waited > _SPIN:
                _yield()
        return True

    def _fail(self, kind, message, *in_use):
        self._failed = message, in_use
        return kind(message)


_opened = []  # by `group_of`; a communicator that was freed equals no other


def group_of(communicator):
    """Return the group of a communicator, the same one in all calls: an error ends it for all layers.

    Parameters
    ----------
    communicator : mpi4py.MPI.Comm or None
        None is ``MPI.COMM_WORLD``.
    """
    if communicator is None:
        communicator = _mpi().COMM_WORLD
    for group in _opened:
        if group.communicator == communicator:
            return group
    _opened.append(MPIGroup(communicator))
    return _opened[-1]


def _mpi():
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI
        raise ImportError(
            f"synchronized layers over MPI need mpi4py and an MPI: pip install mpi4py mpich ({error})"
        ) from error
    return MPI
