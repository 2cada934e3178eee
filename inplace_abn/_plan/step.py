"""A training step on shape arrays: what is allocated when, and what is kept."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from .. import _core, layers, memory, optim
from .._shape_arrays import Meter, ShapeArray, planning
from ..layers.calls import running
from ..memory import events
from .network import maker_of

OPTIMIZERS = {
    "sgd": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": optim.Adam,
    "adamw": optim.AdamW,
}


@dataclass
class Step:
    """The memory of one training step.

    Attributes
    ----------
    parameters, buffers, state, batch : int
        Bytes of the parameters, of running statistics, of the state of the optimizer, and of inputs and
        labels: present all the time.
    gradients : int
        Bytes of the gradients of all parameters.
    kept : int
        Bytes of arrays kept for the backward, at most, as of `inplace_abn.memory.Ledger.kept`.
    rows : list of inplace_abn.memory.tables.Row
        These arrays, by layer and role.
    peak : int
        The most bytes in use at a time.
    at_peak : dict
        What is in use at the peak: "phase", "layer", and the bytes of "gradients", "kept" and "temporaries".
        Temporaries are results and gradients of results that are about to be used, and scratch memory.
    timeline : list of (str, int, int, float)
        After each change: the phase, bytes in use, bytes kept, and the work until then.
    work : float
        Estimate of the time: bytes moved, and operations of matrix products divided by `FLOPS_PER_BYTE`.
    """

    parameters: int = 0
    buffers: int = 0
    state: int = 0
    batch: int = 0
    gradients: int = 0
    kept: int = 0
    rows: list = field(default_factory=list)
    peak: int = 0
    at_peak: dict = field(default_factory=dict)
    timeline: list = field(default_factory=list)
    work: float = 0.0

    @property
    def by_role(self):
        """Bytes kept by role, the largest first."""
        found = {}
        for row in self.rows:
            found[row.role] = found.get(row.role, 0) + row.nbytes
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def by_layer(self):
        """Bytes kept by layer, the largest first."""
        found = {}
        for row in self.rows:
            found[row.layer] = found.get(row.layer, 0) + row.nbytes
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def shortened(step, most=600):
    """Return the timeline of a step with at most about `most` points: the highest of consecutive ones."""
    every = -(-len(step.timeline) // most) or 1
    groups = (step.timeline[i : i + every] for i in range(0, len(step.timeline), every))
    return [max(group, key=lambda point: point[1]) for group in groups]


#: Operations of matrix products in the time of one byte moved: the order of processors and of GPUs.
FLOPS_PER_BYTE = 20


class Planner:
    """Runs training steps of one network on shape arrays.

    Parameters
    ----------
    make : function of no arguments
        Returns the network, a `Layer` of shape arrays.
    optimizer : str, function of a list of parameters, or None
    loss : {"cross_entropy", "mse", None}
    """

    def __init__(self, make, optimizer="sgd", loss="cross_entropy"):
        meter = Meter()
        with planning(meter):
            self._network = make()
            parameters = self._network.parameters()
            before = meter.live
            self._optimizer = OPTIMIZERS.get(optimizer, optimizer)
            self._optimizer = self._optimizer and self._optimizer(parameters)
            if self._optimizer is not None:
                for parameter in parameters:
                    parameter.grad = np.zeros_like(parameter.data)
                self._optimizer.step()
                self._optimizer.zero_grad()
        self.parameters = sum(parameter.data.nbytes for parameter in parameters)
        self.buffers, self.state = before - self.parameters, meter.live - before
        self._loss = loss
        self._trained = parameters

    def step(self, shape, dtype=np.float32):
        """Return the `Step` for inputs of a shape and dtype.

        Raises
        ------
        TypeError, ValueError
            As a call of the network, with the path of the layer.
        """
        step, ledger = self._followed(shape, dtype)
        step.kept, step.rows, step.peak = ledger.kept, list(ledger.table()), ledger.meter.peak
        step.work = _work(ledger.meter)
        step.timeline = ledger.timeline_of_step()
        step.at_peak = ledger.at_peak(step)
        return step

    def peak(self, shape, dtype=np.float32):
        """Return the peak of `step`, in less time."""
        return self._followed(shape, dtype)[1].meter.peak

    def _followed(self, shape, dtype):
        """Follow a step; return a `Step` with the sizes that do not depend on time, and the ledger."""
        ledger = _Ledger()
        step = Step(self.parameters, self.buffers, self.state)
        with planning(ledger.meter), ledger.active():
            ledger.meter.allocated(self.parameters + self.buffers + self.state)
            try:
                self._run(ledger, step, ShapeArray(shape, np.dtype(dtype)))
            finally:
                self._network.release()
                self._network.zero_grad()
        return step, ledger

    def _run(self, ledger, step, x):
        net, loss = self._network, _loss(self._loss, self._network)
        ledger.gradients_of = self._trained
        ledger.phase, step.batch = "forward", x.nbytes
        ledger.batch.add(id(x))
        z = net(x)
        if loss is None or not isinstance(z, np.ndarray) or z.ndim < 2:
            dz = tuple(map(np.empty_like, z)) if isinstance(z, tuple) else np.empty_like(z)
            del z
        else:
            ledger.phase = "loss"
            labels = _labels(loss, z)
            step.batch += labels.nbytes
            ledger.batch.add(id(labels))
            loss(z, labels)
            del z
            dz = loss.backward()
        ledger.phase = "backward"
        net.backward(dz, overwrite=True)
        del dz
        ledger.phase = "optimizer"
        step.gradients = sum(p.grad.nbytes for p in self._trained if p.grad is not None)
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()


def planner_of(network, strategy, shape, *, optimizer="sgd", loss="cross_entropy", classes=None, axis=1):
    """Return the `Planner` of a network with a strategy; see `network.maker_of`."""
    make = maker_of(network, shape[axis], classes)
    return Planner(lambda: make(strategy), optimizer, loss)


def _work(meter):
    """Return the estimate of the time so far: see `Step.work`."""
    return meter.moved + meter.flops / FLOPS_PER_BYTE


def _loss(name, network):
    """Return the layer of a loss, or None."""
    if name == "mse":
        return layers.MSELoss()
    if name is None:
        return None
    axes = {getattr(layer, "channel_axis", 1) for _, layer in network.named_layers()}
    return layers.CrossEntropy(channel_axis=-1 if axes == {-1} else 1)


def _labels(loss, z):
    """Return labels or targets for a result, as a shape array."""
    if isinstance(loss, layers.MSELoss):
        return np.empty_like(z)
    shape = list(z.shape)
    del shape[loss.channel_axis]
    return ShapeArray(tuple(shape), np.int64)


class _Ledger(memory.Ledger):
    """A ledger of a step on shape arrays, and the meter of what is allocated."""

    def __init__(self):
        super().__init__()
        self.meter, self.phase, self.gradients_of = Meter(), "before", ()
        self.meter.at_peak, self.meter.after = self._note_peak, self._note
        self.batch = set()  # ids of inputs and labels
        self._steps, self._peak = [], None

    @contextmanager
    def active(self):
        """Let contexts report to this ledger alone."""
        before, memory.recorder = memory.recorder, self
        _core.set_recorder(self)
        try:
            yield
        finally:
            memory.recorder = before
            _core.set_recorder(before)

    def _note(self, used):
        """Enter a point of the timeline: the meter calls this after each change."""
        self._steps.append((self.phase, used, len(self._events), _work(self.meter)))

    def _note_peak(self):
        """Store what is in use: the meter calls this at each new peak."""
        gradients = 0
        if self.phase in ("backward", "optimizer"):
            gradients = sum(p.grad.nbytes for p in self.gradients_of if p.grad is not None)
        name = "" if running.call is None else running.call._name
        self._peak = self.phase, name, gradients, len(self._events)

    def timeline_of_step(self):
        """Return (phase, bytes in use, bytes kept, work) after each change."""
        count, done, found = events.Count(), 0, []
        for phase, used, until, work in self._steps:
            for event in self._events[done:until]:
                count.add(event)
            done = until
            found.append((phase, used, count.live, work))
        return found

    def at_peak(self, step):
        """Return what is in use at the peak."""
        phase, name, gradients, until = self._peak
        count = events.at(self._events, until)
        kept = count.live
        # Inputs and labels that layers keep are part of `batch` and of `kept`: count them once.
        duplicates = {entry.buffer: entry.nbytes for entry in count.entries() if entry.buffer in self.batch}
        rest = step.parameters + step.buffers + step.state + step.batch + gradients + kept
        rest -= sum(duplicates.values())
        return {
            "phase": phase,
            "layer": name() if callable(name) else name,
            "gradients": gradients,
            "kept": kept,
            "temporaries": step.peak - rest,
        }
