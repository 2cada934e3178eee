"""What each process of `test_sync_abn_mpi.py` runs: ``mpiexec -n N python mpi_ranks.py CASE``."""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from groups import assert_as_one, inputs, make, part, step
from mpi4py import MPI

from inplace_abn import layers
from inplace_abn._activations import ACTIVATIONS, KEEPS
from inplace_abn.distributed import MPIGroup

WORLD = MPI.COMM_WORLD
SIZES = {2: [(3, 3), (5, 1), (0, 6)], 4: [(1, 2, 1, 2), (6, 0, 0, 0)]}


def say(text):
    sys.stdout.write(f"rank {WORLD.rank}: {text}\n")  # in one piece: all processes write to the same pipe
    sys.stdout.flush()


def results():
    """Compare all strategies and activations with one process, on rank 0."""
    arrays, compared = inputs(), 0
    for sizes in SIZES[WORLD.size]:
        own = part(arrays, sizes, WORLD.rank)
        for strategy, kept in KEEPS.items():
            for name, activation in ACTIVATIONS.items():
                if kept == "z" and not activation.is_invertible(0.5):
                    continue
                ranks = WORLD.gather(step(make(name, strategy, WORLD), *own))
                if ranks:
                    assert_as_one(ranks, step(make(name, strategy), *arrays), 1e-12)
                    compared += 1
    if WORLD.rank == 0:
        print(f"compared {compared}")


def disagreement():
    """Let the last rank differ in one setting, then in the number of channels; then go on."""
    last = WORLD.rank == WORLD.size - 1
    for name, value in {"eps": 1e-3, "num_features": 300, "activation": "elu"}.items():
        options = {"num_features": 4, "strategy": "inplace"} | ({name: value} if last else {})
        layer = layers.SyncABN(**options, group=WORLD)
        x = np.ones((2, layer.num_features), np.float32)
        try:
            layer(x)
        except ValueError as error:
            assert (x == 1).all()
            say(str(error))
    half = WORLD.Split(WORLD.rank % 2)
    step(make("elu", "inplace", half), *inputs(2))
    say("done")


def missing():
    """Let the last rank miss a call, or end before it."""
    layer = layers.SyncABN(2, strategy="inplace", group=MPIGroup(timeout=1))
    x = np.eye(2, dtype=np.float32)
    layer.backward(np.ones_like(layer(x.copy())))
    if WORLD.rank == WORLD.size - 1:
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3)
    for _ in range(2):
        try:
            layer(x)
        except (TimeoutError, RuntimeError) as error:
            assert np.array_equal(x, np.eye(2))
            say(f"{type(error).__name__}: {error}")
    os._exit(0)  # MPI's own end would wait for the missing process


{"results": results, "disagreement": disagreement, "missing": missing, "killed": missing}[sys.argv[1]]()
