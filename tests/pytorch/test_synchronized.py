"""`InPlaceABNSync` in two processes: the results of one process with both batches."""

import os
import socket

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from fused_nets import GRADIENT, OUTPUT, relative  # noqa: E402

from inplace_abn.torch import InPlaceABN, InPlaceABNSync  # noqa: E402
from inplace_abn.torch.functions import inplace_abn_sync  # noqa: E402

SIZES = {"equal": (3, 3), "different": (1, 4), "one of them empty": (0, 4)}
ACTIVATIONS = ["leaky_relu", "relu", "silu"]


def batches():
    """Return x, residual and dz of all processes."""
    return torch.randn(3, 6, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def layer(cls, activation):
    module = cls(4, activation=activation).double()
    module.weight.data[:] = torch.tensor([1.0, -0.5, 2.0, 0.0])
    module.bias.data[:] = torch.tensor([0.1, 0.2, -0.3, 0.4])
    return module


def step(module, x, residual, dz):
    """Return z and all gradients and statistics as NumPy arrays."""
    x, residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
    z = module(x * 1, residual)
    result = z.detach().clone()
    z.backward(dz)
    of_batch = [result, x.grad, residual.grad]
    return [t.numpy() for t in of_batch], [t.numpy() for t in (module.weight.grad, module.bias.grad)], [
        t.numpy() for t in (module.running_mean, module.running_var)
    ]  # fmt: skip


def process(rank, port, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        queue.put((rank, {name: results_of(rank, sizes) for name, sizes in SIZES.items()}))
    finally:
        torch.distributed.destroy_process_group()


def results_of(rank, sizes):
    start = sum(sizes[:rank])
    own = batches()[:, start : start + sizes[rank]]
    found = {name: step(layer(InPlaceABNSync, name), *own) for name in ACTIVATIONS}
    evaluated = layer(InPlaceABNSync, "leaky_relu").eval()(own[0].clone()).detach().numpy()
    module = layer(InPlaceABNSync, "leaky_relu")
    statistics = module.running_mean.clone(), module.running_var.clone()
    called = inplace_abn_sync(own[0].clone(), module.weight, module.bias, *statistics, weight_mode="signed")
    return found, evaluated, called.detach().numpy(), refusal(module)


def refusal(module):
    try:
        module.to("meta")(torch.empty(2, 4, 5, 5, dtype=torch.float64, device="meta"))
    except NotImplementedError as error:
        return str(error)


@pytest.fixture(scope="module")
def results():
    """Return the results of both processes, by the name of the batch sizes."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=process, args=(rank, port, queue)) for rank in range(2)]
    for started in processes:
        started.start()
    found = dict(queue.get() for _ in processes)
    for started in processes:
        started.join()
        assert started.exitcode == 0
    return found[0], found[1]


def tensors(arrays):
    return [torch.from_numpy(array) for array in arrays]


def joined(arrays):
    return torch.cat(tensors(arrays))


@pytest.mark.parametrize("sizes", SIZES)
def test_two_processes_normalize_as_one(results, sizes):
    both = [of_process[sizes] for of_process in results]
    together = batches()[:, : sum(SIZES[sizes])]
    for activation in ACTIVATIONS:
        of_batch, of_parameters, statistics = map(tensors, step(layer(InPlaceABN, activation), *together))
        first, second = (found[activation] for found, *_ in both)
        assert max(map(relative, map(joined, zip(first[0], second[0], strict=True)), of_batch)) < GRADIENT
        shares = [a + b for a, b in zip(first[1], second[1], strict=True)]
        assert max(map(relative, tensors(shares), of_parameters)) < GRADIENT
        for found in (first, second):
            assert max(map(relative, tensors(found[2]), statistics)) < OUTPUT
    evaluated = layer(InPlaceABN, "leaky_relu").eval()(together[0].clone()).detach()
    assert relative(joined(found[1] for found in both), evaluated) < OUTPUT
    trained = layer(InPlaceABN, "leaky_relu")(together[0].clone()).detach()
    assert relative(joined(found[2] for found in both), trained) < OUTPUT
    assert all(found[3].startswith("synchronized statistics need a plain CPU tensor") for found in both)
