"""Training with several strategies, alternating step by step, so that their times are comparable."""

import time
from dataclasses import dataclass, field

import numpy as np

from .. import layers, memory
from . import peaks
from .progress import Progress
from .trainer import Trainer

#: Index of the step that the ledger records. Earlier steps include one-time allocations.
RECORDED_STEP = 2


@dataclass
class Run:
    """Training with one strategy, and its measurements."""

    strategy: str
    trainer: Trainer
    ledger: memory.Ledger = None
    peaks: dict = field(default_factory=dict)
    losses: list = field(default_factory=list)
    scores: list = field(default_factory=list)
    seconds: list = field(default_factory=list)

    def step(self, images, targets):
        """Run a training step; record its memory or its time."""
        if len(self.losses) == RECORDED_STEP:
            with memory.ledger(self.trainer.net, label=self.strategy) as self.ledger:
                loss = self.trainer.step(images, targets)
        else:
            began = time.perf_counter()
            loss = self.trainer.step(images, targets)
            if len(self.losses) > RECORDED_STEP:
                self.seconds.append(time.perf_counter() - began)
        self.losses.append(loss)

    def test(self, setting, images, targets):
        """Append the score on the test data."""
        net, size = self.trainer.net.eval(), setting.batch_size
        with layers.no_grad():
            scores = [net(images[i : i + size]) for i in range(0, len(images), size)]
        self.scores.append(setting.task.score(np.concatenate(scores), targets))
        net.train()


def kept(setting, strategy):
    """Return the bytes that one step of a strategy keeps for its backward, without training."""
    run = Run(
        strategy,
        Trainer(setting.network(strategy), RECORDED_STEP + 1, setting.dtype),
        losses=[0.0] * RECORDED_STEP,
    )
    with one_blas_thread():
        run.step(*setting.noise())
    return run.ledger.kept


def one_blas_thread():
    """Return a context manager that limits the BLAS to one thread.

    The matrix products are too small for several threads, and idle threads of a BLAS spin.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def compare(setting, strategies, progress=True):
    """Train with each strategy, from the same weights and on the same batches.

    Parameters
    ----------
    setting : tasks.Setting
    strategies : sequence of str
    progress : bool
        Show the progress on stderr: a bar in a terminal, else a line for each epoch.

    Returns
    -------
    list of Run
    """
    data = setting.data()
    steps = setting.epochs * data.steps
    if steps <= RECORDED_STEP + 1:
        raise ValueError(
            f"training must have more than {RECORDED_STEP + 1} steps, got {steps}: pass a smaller batch_size"
        )
    runs = [
        Run(strategy, Trainer(setting.network(strategy), steps, setting.dtype)) for strategy in strategies
    ]
    with one_blas_thread(), Progress((steps + 1) * len(runs), progress) as shown:
        for run in runs:
            shown.stage(f"{run.strategy}: memory")
            run.peaks = peaks.in_separate_process(setting, run.strategy)
            shown.step()
        shown.line(f"memory of {len(runs)} {'strategy' if len(runs) == 1 else 'strategies'} measured")
        for epoch in range(setting.epochs):
            name = f"epoch {epoch + 1}/{setting.epochs}"
            shown.stage(name)
            for number, (images, targets) in enumerate(data.batches(epoch)):
                first = number % len(runs)  # rotate the order: the first finds the batch in no cache
                for run in runs[first:] + runs[:first]:
                    run.step(images, targets)
                    shown.step(loss=f"{run.losses[-1]:.3f}")
            for run in runs:
                run.test(setting, *data.test)
            shown.line(f"{name}: {_ranges(setting, runs)}")
    return runs


def _ranges(setting, runs):
    """Return the ranges of the losses and scores of the last epoch as text."""
    losses, scores = [run.losses[-1] for run in runs], [run.scores[-1] for run in runs]
    return (
        f"loss {min(losses):.3f} to {max(losses):.3f}, "
        f"{setting.task.scored} {min(scores):.1%} to {max(scores):.1%}"
    )
