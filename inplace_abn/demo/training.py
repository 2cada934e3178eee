"""Training with several strategies, a step of each in turn, so that the times can be compared."""

import time
from dataclasses import dataclass, field

import numpy as np

from .. import layers, memory
from . import peaks
from .trainer import Trainer

#: The number of the step that the ledger records. The steps before do work that is done only once.
WATCHED = 2


@dataclass
class Run:
    """The training with one strategy, and its measurements."""

    strategy: str
    trainer: Trainer
    ledger: memory.Ledger = None
    peaks: dict = field(default_factory=dict)
    losses: list = field(default_factory=list)
    scores: list = field(default_factory=list)
    seconds: list = field(default_factory=list)

    def step(self, images, targets):
        """Make a step of training; record its memory or its time."""
        if len(self.losses) == WATCHED:
            with memory.ledger(self.trainer.net, label=self.strategy) as self.ledger:
                loss = self.trainer.step(images, targets)
        else:
            began = time.perf_counter()
            loss = self.trainer.step(images, targets)
            if len(self.losses) > WATCHED:
                self.seconds.append(time.perf_counter() - began)
        self.losses.append(loss)

    def test(self, setting, images, targets):
        """Score the network on the test data."""
        net, size = self.trainer.net.eval(), setting.batch_size
        with layers.no_grad():
            scores = [net(images[i : i + size]) for i in range(0, len(images), size)]
        self.scores.append(setting.task.score(np.concatenate(scores), targets))
        net.train()


def kept(setting, strategy):
    """Return the bytes that one step of a strategy keeps for its backward, without training."""
    run = Run(
        strategy, Trainer(setting.network(strategy), WATCHED + 1, setting.dtype), losses=[0.0] * WATCHED
    )
    with one_blas_thread():
        run.step(*setting.noise())
    return run.ledger.kept


def one_blas_thread():
    """Return a context manager that limits the BLAS to one thread.

    The matrix products are too small for several threads, and waiting threads of a BLAS use the processor.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def compare(setting, strategies, progress=True):
    """Train with each of the strategies, from the same weights and on the same batches.

    Parameters
    ----------
    setting : tasks.Setting
    strategies : sequence of str
    progress : bool
        Show the progress.

    Returns
    -------
    list of Run
    """
    from tqdm import tqdm

    data = setting.data()
    steps = setting.epochs * data.steps
    if steps <= WATCHED + 1:
        raise ValueError(
            f"training must have more than {WATCHED + 1} steps, got {steps}: take a smaller batch_size"
        )
    runs = [
        Run(strategy, Trainer(setting.network(strategy), steps, setting.dtype)) for strategy in strategies
    ]
    with (
        one_blas_thread(),
        tqdm(total=(steps + 1) * len(runs), unit="step", disable=None if progress else True) as bar,
    ):
        for run in runs:
            bar.set_description(f"{run.strategy}: memory")
            run.peaks = peaks.in_a_process_of_its_own(setting, run.strategy)
            bar.update()
        for epoch in range(setting.epochs):
            bar.set_description(f"epoch {epoch + 1}/{setting.epochs}")
            for number, (images, targets) in enumerate(data.batches(epoch)):
                first = number % len(runs)  # so that no strategy always runs after the same one
                for run in runs[first:] + runs[:first]:
                    run.step(images, targets)
                    bar.update()
                bar.set_postfix(loss=f"{runs[0].losses[-1]:.3f}")
            for run in runs:
                run.test(setting, *data.test)
    return runs
