"""`SyncABN` over MPI, in 2 and 4 processes of this machine."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("mpiexec") is None, reason="mpiexec is not installed"),
]
pytest.importorskip("mpi4py", reason="mpi4py is not installed")

SCRIPT = Path(__file__).with_name("mpi_ranks.py")


def mpi(processes, case, *options):
    """Return exit code and output of the case in so many processes."""
    command = ["mpiexec", "-n", str(processes), *options, sys.executable, str(SCRIPT), case]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_one(processes):
    code, output = mpi(processes, "results")
    assert code == 0, output
    assert "compared" in output


def test_disagreement_names_argument_and_rank_on_all_ranks():
    code, output = mpi(4, "disagreement")
    assert code == 0, output
    for rank in range(4):
        for name in ("eps", "num_features", "activation"):
            assert f"rank {rank}: SyncABN: {name} must be equal in all processes, got" in output
        assert f"rank {rank}: done" in output
    assert "got 4 on rank 0 and 300 on rank 3" in output


def test_a_missing_process_is_an_error_after_the_timeout():
    _, output = mpi(2, "missing")
    assert "rank 0: TimeoutError: rank 0 waited 1 s for the other 1 processes" in output, output
    assert "rank 0: RuntimeError: SyncABN: this group cannot be used any more: rank 0 waited" in output


def test_a_killed_process_ends_all():
    code, output = mpi(2, "killed")
    assert code != 0
    assert "KILLED" in output.upper(), output
