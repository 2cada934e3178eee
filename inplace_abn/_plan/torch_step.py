"""A training step of a PyTorch model on fake tensors: what is allocated when, and what is kept."""

import copy
import sys
import weakref
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._shape_arrays import Meter
from ..memory.tables import Row
from ..torch import _fake_kernels
from ..torch.conversion import convert
from .advice import Advice
from .step import FLOPS_PER_BYTE, Step

_UNKNOWN = DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException
#: Strategy -> function that changes a model.
STRATEGIES = {
    None: lambda model: model,
    "inplace": convert,
    "inplace, recompute": lambda model: convert(model, recompute_stem=True, recompute_projections=True),
    "inplace, leaky_relu": lambda model: convert(model, activation="leaky_relu"),
}
#: Strategy -> the change of the code that it stands for, for advice.
CHANGES = {
    "inplace": "inplace_abn.torch.convert(model)",
    "inplace, recompute": "convert(model, recompute_stem=True, recompute_projections=True)",
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=False),
    "adam": lambda parameters: torch.optim.Adam(parameters, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
}


class TorchPlanner:
    """Runs training steps of a copy of a model on fake tensors.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.
    strategy : str or None
        A key of `STRATEGIES`.
    optimizer : str, function of a list of parameters, or None
    loss : {"cross_entropy", "mse", None}
    """

    def __init__(self, model, strategy, optimizer="sgd", loss="cross_entropy"):
        self._mode, self._loss = FakeTensorMode(), loss
        self._model = STRATEGIES[strategy](_fake_copy(model, self._mode).train())
        self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self.parameters = _bytes_of(self._model.parameters())
        self.buffers = _bytes_of(self._model.buffers())
        self.state, self._optimizer = 0, None
        make = OPTIMIZERS.get(optimizer, optimizer)
        if make is not None:
            self._optimizer = make(self._trained)
            with self._mode:
                for parameter in self._trained:
                    parameter.grad = torch.empty_like(parameter)
                self._optimizer.step()
                self._optimizer.zero_grad()
            self.state = _bytes_of(self._states())

    def _states(self):
        """Return the tensors in the state of the optimizer."""
        states = {} if self._optimizer is None else self._optimizer.state
        found = (tree_leaves(state) for state in states.values())
        return [leaf for leaves in found for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def always_present(self):
        """Return parameters, buffers and the state of the optimizer."""
        return [*self._model.parameters(), *self._model.buffers(), *self._states()]

    def step(self, shape, dtype="float32"):
        """Return the `Step` for an input of a shape and dtype; see `Planner.step`."""
        dtype = getattr(torch, np.dtype(dtype).name)
        step, counter = self._followed(shape, dtype)
        step.kept, step.rows = self._kept(shape, dtype)
        meter = counter.meter
        step.peak, step.work = meter.peak, meter.moved + meter.flops / FLOPS_PER_BYTE
        step.timeline, (phase, layer, gradients, kept) = counter.timeline, counter.peak
        base = self.parameters + self.buffers + self.state
        rest = max(0, step.peak - base - step.batch - gradients - kept)
        step.at_peak = {
            "phase": phase, "layer": layer, "gradients": gradients, "kept": kept, "temporaries": rest,
        }  # fmt: skip
        return step

    def peak(self, shape, dtype="float32"):
        """Return the peak of `step`, in less time."""
        return self._followed(shape, getattr(torch, np.dtype(dtype).name))[1].meter.peak

    def _followed(self, shape, dtype):
        step, counter = Step(self.parameters, self.buffers, self.state), _StorageCounter(self)
        with counter.active(self._mode):
            self._run(counter, step, torch.empty(shape, dtype=dtype))
        return step, counter

    def _kept(self, shape, dtype):
        """Return the bytes that a forward keeps for its backward, and their rows."""
        counter = _StorageCounter(self)
        with counter.active(self._mode):
            x = torch.empty(shape, dtype=dtype)
            results = [leaf for leaf in tree_leaves(self._model(x)) if isinstance(leaf, torch.Tensor)]
            # Delete the results: those that the graph saved are still alive then, and count as kept.
            graph = [result.grad_fn for result in results]
            del x, results
            rows = counter.rows()
            del graph
        return sum(row.nbytes for row in rows), rows

    def _run(self, counter, step, x):
        counter.phase, step.batch = "forward", x.untyped_storage().nbytes()
        results = [leaf for leaf in tree_leaves(self._model(x)) if isinstance(leaf, torch.Tensor)]
        counter.phase = "loss"
        loss = self._loss_of(results, step)
        counter.kept_now()
        del results
        counter.phase = "backward"
        loss.backward()
        del loss
        counter.phase = "optimizer"
        step.gradients = _bytes_of(p.grad for p in self._trained if p.grad is not None)
        if self._optimizer is not None:
            self._optimizer.step()
        for parameter in self._trained:
            parameter.grad = None

    def _loss_of(self, results, step):
        first = results[0]
        if self._loss == "cross_entropy" and first.dim() > 1:
            labels = torch.empty((first.shape[0], *first.shape[2:]), dtype=torch.int64)
            step.batch += labels.untyped_storage().nbytes()
            return nn.functional.cross_entropy(first, labels)
        if self._loss == "mse":
            return nn.functional.mse_loss(first, torch.empty_like(first))
        return sum(result.sum() for result in results if result.is_floating_point())


class _StorageCounter(TorchDispatchMode):
    """Counts the storages that operations allocate and free."""

    def __init__(self, planner):
        super().__init__()
        self.meter, self.phase, self.timeline, self.peak = Meter(), "before", [], ("before", "", 0, 0)
        self._planner, self._known, self._kept = planner, {}, 0
        self.meter.at_peak, self.meter.after = self._note_peak, self._note
        self._fixed = {_key(tensor) for tensor in planner.always_present()}

    @contextmanager
    def active(self, mode):
        """Count inside the block, in which all tensors are fake."""
        self._names = {module: name for name, module in self._planner._model.named_modules()}
        self.meter.allocated(self._planner.parameters + self._planner.buffers + self._planner.state)
        with ExitStack() as stack:
            stack.enter_context(_fake_kernels.planning())
            stack.enter_context(mode)
            stack.enter_context(self)
            yield

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        try:
            result = function(*args, **(kwargs or {}))
        except _UNKNOWN as error:
            raise TypeError(
                f"{self._module()}: a plan has shapes alone, and {function} needs the values of a tensor"
            ) from error
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self._estimate(function, args, tensors)
        for tensor in tensors:
            self._add(tensor, function)
        return result

    def _estimate(self, function, args, results):
        """Count the work: bytes of inputs and results, and the products of convolutions and matrices."""
        inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        self.meter.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *results))
        name = function.overloadpacket.__name__
        if name.startswith("convolution") and len(inputs) > 1:
            backward = name.endswith("backward")
            out, weight = (inputs[0], inputs[2]) if backward else (results[0], inputs[1])
            self.meter.multiplied((1 + backward) * out.numel() * weight.numel() / weight.shape[0])
        elif name in ("mm", "addmm", "bmm") and results:
            self.meter.multiplied(results[0].numel() * inputs[-1].shape[-2])

    def _add(self, tensor, function):
        key, storage = _key(tensor), tensor.untyped_storage()
        if key in self._known or key in self._fixed:
            return
        nbytes = storage.nbytes()
        made_by, dtype = function.overloadpacket.__name__, str(tensor.dtype).removeprefix("torch.")
        row = self._module(), made_by, tuple(tensor.shape), dtype, nbytes
        self._known[key] = weakref.ref(storage, lambda _: self._freed(key, nbytes)), row
        self.meter.allocated(nbytes)

    def _freed(self, key, nbytes):
        self._known.pop(key, None)
        self.meter.allocated(-nbytes)

    def rows(self):
        """Return the rows of what is alive: by module, with the operation that allocated it as role."""
        counts = {}
        for _, row in self._known.values():
            counts[row] = counts.get(row, 0) + 1
        return [
            Row(layer, role, shape, dtype, count, count * nbytes, None)
            for (layer, role, shape, dtype, nbytes), count in counts.items()
        ]

    def kept_now(self):
        """Note that everything alive now is kept for the backward."""
        self._kept = sum(row[4] for _, row in self._known.values())

    def _module(self):
        """Return the path and type of the innermost module whose forward runs.

        It is found in the frames of the stack. Hooks would change what is measured: a converted model with
        hooks on its modules runs without fusion.
        """
        frame = sys._getframe(1)
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and module in self._names:
                name = self._names[module]
                return f"{name} ({type(module).__name__})" if name else type(module).__name__
            frame = frame.f_back
        return ""

    def _note(self, used):
        work = self.meter.moved + self.meter.flops / FLOPS_PER_BYTE
        self.timeline.append((self.phase, used, 0, work))

    def _note_peak(self):
        gradients = 0
        if self.phase in ("backward", "optimizer"):
            gradients = _bytes_of(p.grad for p in self._planner._trained if p.grad is not None)
        self.peak = self.phase, self._module(), gradients, self._kept


def advice_for(network, before, shape, dtype, options):
    """Return the list of `Advice`: what the conversions save of a model as it is."""
    found = []
    for strategy, change in CHANGES.items():
        step = TorchPlanner(network, strategy, **options).step(shape, dtype)
        if step.peak < before.peak:
            time = (step.work - before.work) / before.work
            found.append(Advice(change, before.peak - step.peak, time, step.peak))
    return sorted(found, key=lambda advice: (-advice.rate, -advice.saves))


def _key(tensor):
    """Return the identity of the storage of a tensor."""
    return tensor.untyped_storage()._cdata


def _bytes_of(tensors):
    """Return the bytes of the storages of tensors, each storage once."""
    return sum({_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _fake_copy(model, mode):
    """Return a copy of a model whose parameters and buffers are fake tensors."""
    memo = {}
    with mode:
        for tensor in (*model.parameters(), *model.buffers()):
            fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = fake
    return copy.deepcopy(model, memo)
