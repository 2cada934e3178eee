"""Training steps of networks on a GPU: as they are, converted, compiled, and with checkpointed blocks."""

import contextlib
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.gpu_timing import recording_stream
from benchmarks.torch_networks import Training, leaky_relu, vision, with_activation
from benchmarks.torch_timing import in_turn
from inplace_abn.torch import convert

SETTINGS = {
    "float32, channels-first": (torch.contiguous_format, False),
    "bfloat16 autocast, channels-last": (torch.channels_last, True),
    "float32, channels-last": (torch.channels_last, False),
}
STEPS = 3  # in a round, between two readings of the clock
BUDGET = 0.7  # of the memory that torch.compile would keep
EAGER = "stock", "ours"
COMPILED = "stock compiled", f"stock compiled, budget {BUDGET}", "ours compiled"


class Case(NamedTuple):
    """What is trained, and by whom."""

    network: str
    setting: str
    activation: str
    images: int
    contestants: tuple


def cases(images, with_compile):
    """Return all cases; those of another number of images than `images` follow from it."""
    found = []
    for setting in SETTINGS:
        for activation in ("leaky_relu", "relu"):
            names = EAGER
            if setting != "float32, channels-last":
                names += COMPILED * with_compile + ("stock, blocks checkpointed",) * (activation == "relu")
            found.append(Case("resnet50", setting, activation, images, names))
    found.append(Case("resnet50", "bfloat16 autocast, channels-last", "leaky_relu", 4 * images, EAGER))
    for setting in list(SETTINGS)[:2]:
        found.append(Case("resnext101_64x4d", setting, "leaky_relu", images // 2, EAGER))
    return found


def network(name, activation):
    """Return a model of torchvision, with leaky ReLU on request."""
    model = vision(name)
    return with_activation(model, leaky_relu) if activation == "leaky_relu" else model


class GpuTraining(Training):
    """A training whose memory is known to PyTorch, and whose step can be recorded as a CUDA graph."""

    def __init__(self, model, setting, images, size, device):
        memory_format, self.is_half = SETTINGS[setting]
        super().__init__(model, memory_format, images, size, device)
        self.graph = None

    def forward(self):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.is_half):
            return super().forward()

    def memory(self):
        """Return the bytes that the forward keeps, and the peak of a step; zeros without a GPU."""
        self.step()
        if self.device != "cuda":
            return 0, 0
        self.optimizer.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss = self.forward()
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        return kept, torch.cuda.max_memory_allocated() - before

    def capture(self):
        """Record a step as a CUDA graph, after some steps in the stream of the capture."""
        with recording_stream(self.device):
            for _ in range(3):
                self.step()
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            self.forward().backward()
            self.optimizer.step()


@contextlib.contextmanager
def memory_budget(name):
    """Let torch.compile recompute within a budget, for the contestant of that name."""
    # The keys of the cache of compiled graphs lack the budget.
    settings = {"activation_memory_budget": BUDGET, "enable_autograd_cache": False}
    with torch._functorch.config.patch(settings) if "budget" in name else contextlib.nullcontext():
        yield


def checkpoint_blocks(model):
    """Run each residual block of a model of torchvision in `torch.utils.checkpoint`; returns the model."""
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            block.forward = lambda x, run=block.forward: checkpoint(run, x, use_reentrant=False)
    return model


def training(name, case, size, device):
    """Return the training of a contestant."""
    model = network(case.network, case.activation)
    if name.startswith("ours"):
        model = convert(model)
    elif "checkpointed" in name:
        model = checkpoint_blocks(model)
    made = GpuTraining(model, case.setting, case.images, size, device)
    if "compiled" in name:
        made.model = torch.compile(calling(made.model), dynamic=False)
    return made


def calling(model):
    """Return a function that calls a model, with code of its own.

    torch.compile keeps what it has compiled by code, and would run one graph for two models of a class.
    """
    names = {"model": model}
    exec("def call(x):\n    return model(x)", names)
    return names["call"]


def measure(case, size, device, rounds):
    """Return what each contestant keeps, its peak, and its times of a step, as it is and as a graph.

    A contestant that fails has its error instead.
    """
    row = case._asdict() | {"errors": {}}
    trainings, row["found"] = {}, {}
    if any("compiled" in name for name in case.contestants):
        torch.compiler.reset()  # it compiles a function for a few models only

    def attempt(name, action):
        try:
            return action()
        except Exception as error:  # the other contestants still run
            row["errors"][name] = f"{type(error).__name__}: {error}"[:300]
            trainings.pop(name, None)
            return None

    for name in case.contestants:
        with memory_budget(name):
            made = attempt(name, lambda name=name: training(name, case, size, device))
            found = made and attempt(name, made.memory)
        if found:
            trainings[name] = made
            row["found"][name] = {"kept": found[0], "peak": found[1], "step": None, "graph": None}
    for name, time in in_turn({name: t.step for name, t in trainings.items()}, device, rounds, STEPS).items():
        row["found"][name]["step"] = time
    if device == "cuda":
        for name, one in list(trainings.items()):
            attempt(name, one.capture)
        replays = {name: one.graph.replay for name, one in trainings.items()}
        for name, time in in_turn(replays, device, rounds, STEPS).items():
            row["found"][name]["graph"] = time
    return row


def largest(size, device):
    """Return the largest batches of a multiple of 32 images that fit, float32, by name."""
    found = {}
    for name in EAGER:
        fits, fails = 0, None
        images = 512
        while fails is None or fails - fits > 32:
            if _fits(name, images, size, device):
                fits = images
            else:
                fails = images
            images = 2 * fits if fails is None else (fits + fails) // 64 * 32
        found[name] = fits
    return found


def _fits(name, images, size, device):
    torch.cuda.empty_cache()
    case = Case("resnet50", next(iter(SETTINGS)), "leaky_relu", images, EAGER)
    try:
        made = training(name, case, size, device)
        for _ in range(2):
            made.step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    return True
