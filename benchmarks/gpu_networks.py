"""Training steps of ResNet-50 on a GPU: as it is, and after `inplace_abn.torch.convert`."""

import torch

from benchmarks.torch_networks import Training, leaky_relu, vision, with_activation
from benchmarks.torch_timing import in_turn
from inplace_abn.torch import convert

SETTINGS = {
    "float32, channels-first": (torch.contiguous_format, False),
    "bfloat16 autocast, channels-last": (torch.channels_last, True),
    "float32, channels-last": (torch.channels_last, False),
}
STEPS = 3  # in a round, between two readings of the clock


def cases():
    """Return all pairs of setting and activation."""
    return [(setting, activation) for setting in SETTINGS for activation in ("leaky_relu", "relu")]


def resnet50(activation):
    """Return torchvision's ResNet-50, with leaky ReLU on request."""
    model = vision("resnet50")
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
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            self.forward().backward()
            self.optimizer.step()


def contestants(setting, activation, images, size, device):
    """Return both networks with the same weights, by name."""
    models = {"stock": resnet50(activation), "ours": convert(resnet50(activation))}
    return {name: GpuTraining(model, setting, images, size, device) for name, model in models.items()}


def measure(setting, activation, images, size, device, rounds):
    """Return what both networks keep, their peak, and their times of a step, as they are and as a graph."""
    trainings = contestants(setting, activation, images, size, device)
    row = {"setting": setting, "activation": activation, "images": images}
    for name, training in trainings.items():
        kept, peak = training.memory()
        row[name] = {"kept": kept, "peak": peak, "graph": None}
    steps = in_turn({name: t.step for name, t in trainings.items()}, device, rounds, STEPS)
    for name, found in steps.items():
        row[name]["step"] = found
    if device == "cuda":
        for training in trainings.values():
            training.capture()
        graphs = in_turn({name: t.graph.replay for name, t in trainings.items()}, device, rounds, STEPS)
        for name, found in graphs.items():
            row[name]["graph"] = found
    return row


def largest(size, device):
    """Return the largest batches of a multiple of 32 images that fit, float32, by name."""
    found = {}
    for name in ("stock", "ours"):
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
    try:
        model = resnet50("leaky_relu")
        training = GpuTraining(
            convert(model) if name == "ours" else model, next(iter(SETTINGS)), images, size, device
        )
        for _ in range(2):
            training.step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    return True
