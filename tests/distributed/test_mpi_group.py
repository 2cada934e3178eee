"""`MPIGroup` over a communicator that is simulated: time-out and errors."""

import sys
import time

import numpy as np
import pytest
from groups import in_ranks, thread_groups

from inplace_abn.distributed import MPIGroup
from inplace_abn.distributed.exchange import Exchange
from inplace_abn.distributed.group import as_group
from inplace_abn.layers import SyncABN


class Communicator:
    """Rank 0 of two processes; `polls` says after how many tests a request is complete."""

    def __init__(self, polls):
        self.polls = polls

    def Get_size(self):
        return 2

    def Get_rank(self):
        return 0

    def Iallgather(self, values, rows):
        if self.polls is None:
            raise RuntimeError("the other process has ended")
        rows[...] = values
        return self

    def Test(self):
        self.polls -= 1
        time.sleep(1e-4)
        return self.polls < 0


def test_it_waits_until_the_request_is_complete():
    rows = MPIGroup(Communicator(polls=300)).all_gather(np.array([1.0, 2.0]))
    assert rows.tolist() == [[1, 2], [1, 2]]


def test_it_gives_up_after_the_timeout_and_for_good():
    group = MPIGroup(Communicator(polls=10**9), timeout=0.05)
    message = r"rank 0 waited 0.05 s for the other 1 processes: one of them has ended, has raised an error or"
    with pytest.raises(TimeoutError, match=message):
        group.all_gather(np.ones(1))
    with pytest.raises(RuntimeError, match=f"this group cannot be used any more: {message}"):
        group.all_gather(np.ones(1))


def test_layers_share_the_group_of_a_communicator():
    communicator, x = Communicator(polls=None), np.eye(2, dtype=np.float32)
    with pytest.raises(RuntimeError, match="SyncABN: MPI failed: the other process has ended"):
        SyncABN(2, group=communicator)(x)
    with pytest.raises(RuntimeError, match="SyncABN: this group cannot be used any more: MPI failed"):
        SyncABN(2, group=communicator)(x)
    assert as_group(communicator) is as_group(communicator) is not as_group(Communicator(polls=None))


def test_errors_of_mpi():
    group = MPIGroup(Communicator(polls=None))
    for message in (
        "MPI failed: the other process",
        "this group cannot be used any more: MPI failed: the other",
    ):
        with pytest.raises(RuntimeError, match=message):
            group.all_gather(np.ones(1))


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_the_timeout_is_checked(timeout):
    with pytest.raises(ValueError, match=f"timeout must be above 0 seconds, got {timeout}"):
        MPIGroup(Communicator(0), timeout=timeout)


def test_without_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match="need mpi4py and an MPI: pip install mpi4py mpich"):
        MPIGroup()


def test_marks_that_differ_for_equal_settings():
    """Only a group that returns wrong numbers does that."""

    def run(group):
        exchange = Exchange(group)
        exchange.gather({"eps": 0.1}, np.zeros(1))
        right = group.all_gather
        group.all_gather = lambda values: right(values) + (len(values) == 2)
        exchange.gather({"eps": 0.1}, np.zeros(1))

    for result in in_ranks(run, thread_groups(2)):
        assert str(result) == "the settings of all processes are equal, but not their digests"
