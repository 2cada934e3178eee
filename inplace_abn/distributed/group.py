"""What a synchronized layer needs of an engine that connects processes."""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Group(Protocol):
    """Processes, or threads, that exchange arrays: the interface to any engine.

    Attributes
    ----------
    size : int
        Number of processes.
    rank : int
        Number of this process, from 0 to ``size - 1``.

    Examples
    --------
    A group of one process:

    >>> class Alone:
    ...     size, rank = 1, 0
    ...     def all_gather(self, values):
    ...         return values[None]
    >>> isinstance(Alone(), Group)
    True
    """

    size: int
    rank: int

    def all_gather(self, values: np.ndarray) -> np.ndarray:
        """Return the values of all processes, those of rank r in row r.

        All processes call it, in the same order and with equally many values. It must not hang: if a process
        does not call it, it raises an error in the others after a time-out.

        Parameters
        ----------
        values : float64 ndarray of shape (n,)
            Not changed.

        Returns
        -------
        float64 ndarray of shape (size, n)
        """


def as_group(group):
    """Return the `Group` for what a user passes as ``group=``.

    Parameters
    ----------
    group : Group, mpi4py.MPI.Comm or None
        None is all processes of MPI.

    Raises
    ------
    ImportError
        For None if mpi4py or its MPI is not installed.
    """
    if isinstance(group, Group):
        return group
    from .mpi import group_of

    return group_of(group)


def check_group(name, group):
    """Return `group` if `as_group` accepts it, else raise a TypeError."""
    if group is None or isinstance(group, Group) or hasattr(group, "Iallgather"):
        return group
    raise TypeError(
        f"{name} must be None, a communicator of mpi4py or an object with size, rank and all_gather, "
        f"got {type(group).__name__}"
    )
