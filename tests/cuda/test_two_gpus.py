"""Synchronized statistics of two GPUs, over NCCL: the results of one GPU with both batches."""

import os
import socket

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from fused_nets import relative  # noqa: E402
from torch import nn  # noqa: E402

from inplace_abn.torch import convert, convert_sync  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]
SIZES = 3, 5  # images of the processes
ACTIVATIONS = nn.LeakyReLU, nn.ReLU
BOUND = 1e-12


def network(activation):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), activation(),
        nn.Conv2d(16, 8, 3, bias=False), nn.BatchNorm2d(8), activation(),
    )  # fmt: skip
    return convert(model.double())


def step(model, rank, images):
    """Return the result, the gradients and the running statistics of one step, on the CPU."""
    device = torch.device("cuda", rank)
    x = torch.randn(sum(SIZES), 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = model.to(device)(x[images].to(device))
    z.pow(3).sum().backward()
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return z.detach().cpu(), [p.grad.cpu() for p in model.parameters()], [s.cpu() for s in statistics]


def images_of(rank):
    return slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))


def process(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", rank=rank, world_size=2)
    try:
        for activation in ACTIVATIONS:
            found = step(convert_sync(network(activation)), rank, images_of(rank))
            torch.save(found, folder / f"{activation.__name__} {rank}")
    finally:
        torch.distributed.destroy_process_group()


def test_two_gpus_normalize_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, tmp_path), nprocs=2)
    for activation in ACTIVATIONS:
        z, gradients, statistics = step(network(activation), 0, slice(None))
        found = [torch.load(tmp_path / f"{activation.__name__} {rank}") for rank in range(2)]
        assert relative(torch.cat([found[0][0], found[1][0]]), z) < BOUND
        for first, second, both in zip(found[0][1], found[1][1], gradients, strict=True):
            assert relative(first + second, both) < BOUND
        for _, _, of_process in found:
            assert all(relative(*pair) < BOUND for pair in zip(of_process, statistics, strict=True))
