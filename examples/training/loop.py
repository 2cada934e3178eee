"""The training loop: steps, evaluations, checkpoints, logs. A killed run ends with the same bits."""

import math
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from inplace_abn.torch import report

from . import checkpoint
from .logs import Logs
from .options import check_equal, settings


def train(options, group, model, batches, evaluate, loss):
    """Train a model, from the checkpoint in ``options.output`` on if there is one.

    Parameters
    ----------
    options : argparse.Namespace
        Of `options.parser`.
    group : Processes
    model : torch.nn.Module
        Trained in place.
    batches : TrainingBatches
    evaluate : callable
        ``evaluate(model)`` returns {name: score}, the same in all processes.
    loss : callable
        ``loss(result, labels)`` returns the mean loss of a batch.

    Returns
    -------
    dict
        The scores of the last epoch.
    """
    if group.is_first and not options.stock:
        print(report(model).summary(), flush=True)
    run = Run(options, group, model, batches, loss)
    try:
        run.resume()
        while run.epoch < options.epochs:
            run.train_epoch()
            run.end_epoch(evaluate)
        run.finish()
    finally:
        if run.logs is not None:
            run.logs.close()
    return run.scores


class Run:
    """A model in training with everything that a checkpoint holds; the parameters are those of `train`."""

    def __init__(self, options, group, model, batches, loss):
        self.options, self.group, self.model, self.batches, self.loss = options, group, model, batches, loss
        self.path = Path(options.output, "checkpoint.pt")
        self.parallel = group.parallel(model, options.sync)
        self.optimizer = torch.optim.SGD(
            model.parameters(), options.learning_rate, options.momentum, weight_decay=options.weight_decay,
            nesterov=options.momentum > 0,
        )  # fmt: skip
        factor = partial(SCHEDULES[options.schedule], batches.steps * options.epochs)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=options.autocast == "float16")
        self.settings = settings(options, processes=group.size, images=batches.images)
        self.epoch, self.step = 0, 0  # steps of this epoch that are done
        self.losses, self.scores, self.logs = [], {}, None
        checkpoint.seed_all(options.seed + group.rank)

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def resume(self):
        """Load the checkpoint, if there is one, and open the logs."""
        state = checkpoint.read(self.path)
        if state is not None:
            check_equal(state["settings"], self.settings, self.path)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            self.epoch, self.step, self.scores = state["epoch"], state["step"], state["scores"]
            own = state["processes"][self.group.rank]
            self.losses = own["losses"]
            self.batches.problems.update(dict.fromkeys(own["problems"]))
            checkpoint.set_random_states(own["random"])
        if self.group.is_first:
            self.options.output.mkdir(parents=True, exist_ok=True)
            sizes = {} if state is None else state["logs"]
            self.logs = Logs(self.options.output, self.options.tensorboard, sizes, self.total_steps)
            if state is not None:
                print(f"{self.path}: continues in epoch {self.epoch} after step {self.step}", flush=True)

    def save(self):
        """Write the checkpoint; all processes call it after the same step."""
        own = {"random": checkpoint.random_states(), "losses": self.losses}
        processes = self.group.gather(own | {"problems": list(self.batches.problems)})
        if self.group.is_first:
            checkpoint.write(self.path, {
                "settings": self.settings, "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(), "epoch": self.epoch, "step": self.step,
                "scores": self.scores, "processes": processes, "logs": self.logs.sizes(),
            })  # fmt: skip

    @property
    def total_steps(self):
        """Return the steps since the start of the training."""
        return self.epoch * self.batches.steps + self.step

    # ---- training ------------------------------------------------------------------------------------------

    def train_epoch(self):
        """Make the steps of this epoch that are left."""
        self.model.train()
        steps = tqdm(
            self.batches.from_step(self.epoch, self.step), f"epoch {self.epoch}", self.batches.steps,
            initial=self.step, disable=None if self.group.is_first else True,
        )  # fmt: skip
        self._timed = time.perf_counter(), self.step
        for parts in steps:
            rate = self.schedule.get_last_lr()[0]
            self.losses.append(self._step(parts))
            self.step += 1
            if self.total_steps % self.options.log_every == 0:
                steps.set_postfix(loss=f"{self._log(rate):.3f}")
            if self.total_steps % self.options.checkpoint_every == 0 or self.step == self.batches.steps:
                self.losses = self._numbers()
                self.save()

    def _step(self, parts):
        """Make one step of the optimizer from a list of batches; return the mean loss, a tensor."""
        self.optimizer.zero_grad()
        total = 0
        for number, (images, labels) in enumerate(parts):
            is_last = number == len(parts) - 1
            # Gradients are averaged over the processes with the last batch only.
            with nullcontext() if is_last or self.group.size == 1 else self.parallel.no_sync():
                with self.group.autocast(self.options.autocast):
                    value = self.loss(self.parallel(images), labels) / len(parts)
                self.scaler.scale(value).backward()
            total = total + value.detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return total

    # ---- logs ----------------------------------------------------------------------------------------------

    def _numbers(self):
        """Return the losses since the last row as numbers, or exit if one is not finite."""
        numbers = [float(value) for value in self.losses]
        if not all(map(math.isfinite, numbers)):
            raise SystemExit(
                f"the loss is not finite in epoch {self.epoch}, at or before step {self.step}: run again "
                "with a lower --learning-rate, or without --autocast; the last checkpoint is from before"
            )
        return numbers

    def _log(self, rate):
        """Add a row with the mean loss since the last row; return that loss."""
        numbers = self._numbers()
        mean = torch.tensor(sum(numbers) / len(numbers), dtype=torch.float64, device=self.group.device)
        loss = float(self.group.sum(mean)) / self.group.size
        started, first = self._timed
        self.losses, self._timed = [], (time.perf_counter(), self.step)
        images = self.options.batch_size * self.options.accumulate * self.group.size * (self.step - first)
        row = {
            "epoch": self.epoch, "step": self.total_steps, "loss": loss, "learning_rate": rate,
            "images_per_second": images / (self._timed[0] - started),
        }  # fmt: skip
        if self.group.is_first:
            self.logs.write("train", row)
        return loss

    def end_epoch(self, evaluate):
        """Evaluate, and write a checkpoint at the start of the next epoch."""
        self.group.copy_first(self.model.buffers())  # of batch norms with statistics of each process
        self.scores = evaluate(self.model.eval())
        if self.group.is_first:
            row = {"epoch": self.epoch, "step": self.total_steps} | self.scores
            self.logs.write("validation", row)
            print(", ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
        self.epoch, self.step = self.epoch + 1, 0
        self.save()

    def finish(self):
        """Write the weights, and report bad files."""
        problems = dict.fromkeys(
            message for own in self.group.gather(list(self.batches.problems)) for message in own
        )
        if self.group.is_first:
            checkpoint.write(self.options.output / "weights.pt", self.model.state_dict())
            if problems:
                Path(self.options.output, "bad_files.txt").write_text("\n".join(problems) + "\n", "utf-8")
                print(f"{len(problems)} bad files were skipped, see {self.options.output / 'bad_files.txt'}")


#: The learning rate after some of all steps, relative to the one at the start.
SCHEDULES = {
    "step": lambda steps, done: 0.1 ** (3 * done // steps),  # a tenth after each third, as of 90 epochs
    "linear": lambda steps, done: 1 - done / steps,
    "poly": lambda steps, done: (1 - done / steps) ** 0.9,
    "cosine": lambda steps, done: 0.5 * (1 + math.cos(math.pi * done / steps)),
}
