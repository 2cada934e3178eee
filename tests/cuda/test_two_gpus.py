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
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return [t.detach().cpu().numpy() for t in (z, *(p.grad for p in model.parameters()), *buffers)]


def images_of(rank):
    return slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))


def process(rank, port, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", rank=rank, world_size=2)
    try:
        found = [
            step(convert_sync(network(activation)), rank, images_of(rank))
            for activation in (nn.LeakyReLU, nn.ReLU)
        ]
        queue.put((rank, found))
    finally:
        torch.distributed.destroy_process_group()


def test_two_gpus_normalize_as_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=process, args=(rank, port, queue)) for rank in range(2)]
    for started in processes:
        started.start()
    found = dict(queue.get() for _ in processes)
    for started in processes:
        started.join()
        assert started.exitcode == 0
    for index, activation in enumerate((nn.LeakyReLU, nn.ReLU)):
        whole = [torch.from_numpy(t) for t in step(network(activation), 0, slice(None))]
        first, second = ([torch.from_numpy(t) for t in found[rank][index]] for rank in range(2))
        assert relative(torch.cat([first[0], second[0]]), whole[0]) < BOUND
        parameters = len(list(network(activation).parameters()))
        for one, two, both in zip(first[1:][:parameters], second[1:][:parameters], whole[1:], strict=False):
            assert relative(one + two, both) < BOUND
        for one, two, both in zip(*(each[1 + parameters :] for each in (first, second, whole)), strict=True):
            assert relative(one, both) < BOUND
            assert relative(two, both) < BOUND
