"""Training with several strategies, a step of each in turn, so that the times can be compared."""

import time
from dataclasses import dataclass, field

import numpy as np

from .. import layers, memory, optim
from . import peaks

#: The step during which the ledger is on: what is done only once has been done then.
WATCHED = 2


class Trainer:
    """A network, a loss and an optimizer.

    Parameters
    ----------
    net : Layer
    steps : int
        That will be made.
    """

    def __init__(self, net, steps):
        self.net, self.loss = net, layers.CrossEntropy()
        self._optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self._schedule = optim.CosineSchedule(self._optimizer, steps)

    def step(self, images, targets):
        """Make a step; returns the loss."""
        loss = self.loss(self.net(images), targets)
        self.net.backward(self.loss.backward(), overwrite=True)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()
        return loss


@dataclass
class Run:
    """Everything about one strategy."""

    strategy: str
    trainer: Trainer
    ledger: memory.Ledger = None
    peaks: dict = field(default_factory=dict)
    losses: list = field(default_factory=list)
    scores: list = field(default_factory=list)
    seconds: list = field(default_factory=list)

    def step(self, images, targets):
        """Make a step of training, with the ledger or with the clock."""
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


def compare(setting, strategies, progress=True):
    """Train with each of the strategies, from the same weights and on the same batches.

    Parameters
    ----------
    setting : tasks.Setting
    strategies : sequence of str
    progress : bool
        Show how far it is.

    Returns
    -------
    list of Run
    """
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    data = setting.data()
    steps = setting.epochs * data.steps
    if steps <= WATCHED + 1:
        raise ValueError(
            f"training must have more than {WATCHED + 1} steps, got {steps}: take a smaller batch_size"
        )
    runs = [Run(strategy, Trainer(setting.network(strategy), steps)) for strategy in strategies]
    # The products of these convolutions are too small to share, and threads of a BLAS spin while they wait.
    one_thread = threadpool_limits(1, user_api="blas")
    with (
        one_thread,
        tqdm(total=(steps + 1) * len(runs), unit="step", disable=None if progress else True) as bar,
    ):
        for run in runs:
            bar.set_description(f"{run.strategy}: memory")
            run.peaks = peaks.in_a_process_of_its_own(setting, run.strategy)
            bar.update()
        for epoch in range(setting.epochs):
            bar.set_description(f"epoch {epoch + 1}/{setting.epochs}")
            for number, (images, targets) in enumerate(data.batches(epoch)):
                first = number % len(runs)  # no strategy always comes after the same one
                for run in runs[first:] + runs[:first]:
                    run.step(images, targets)
                    bar.update()
                bar.set_postfix(loss=f"{runs[0].losses[-1]:.3f}")
            for run in runs:
                run.test(setting, *data.test)
    return runs
