"""`InPlaceABNSync` in two processes: the results of one process with both batches."""

import os
import socket
import time
from datetime import timedelta

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from fused_nets import GRADIENT, OUTPUT, relative  # noqa: E402
from torch import nn  # noqa: E402

from inplace_abn.torch import (  # noqa: E402
    InPlaceABN,
    InPlaceABNSync,
    convert,
    convert_sync,
    revert,
    set_active_group,
)
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
        found = {name: results_of(rank, sizes) for name, sizes in SIZES.items()}
        found["model"] = model_step(convert_sync(convert(model())), *parts(rank, (2, 4)))
        found["not converted"] = model_step(convert_sync(model()), *parts(rank, (2, 4)))
        found["averaged"] = averaged_gradients(*parts(rank, (2, 4)))
        found["disagreement"] = [disagreement(rank, name) for name in DIFFERENT]
        found["missing"] = missing(rank)
        queue.put((rank, found))
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


def model():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(4, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 3, 1, bias=False),
        nn.BatchNorm2d(3),
    ]
    return nn.Sequential(*layers).double()


def parts(rank, sizes):
    start = sum(sizes[:rank])
    return [batch[start : start + sizes[rank]] for batch in (batches()[0], batches()[2][:, :3, 1:4, 1:4])]


def model_step(model, x, dz):
    """Return z, the gradients and the running statistics of a model; two backwards of one graph."""
    z = model(x)
    z.backward(dz, retain_graph=True)
    z.backward(dz)
    return [
        [tensor.detach().numpy() for tensor in tensors]
        for tensors in ([z], [p.grad for p in model.parameters()], [b for b in model.buffers() if b.dim()])
    ]


def averaged_gradients(x, dz):
    """Return the gradients that DistributedDataParallel averages between the exchanges of statistics."""
    parallel = nn.parallel.DistributedDataParallel(convert_sync(convert(model())))
    parallel(x).backward(dz)
    return [parameter.grad.numpy() for parameter in parallel.parameters()]


DIFFERENT = {"eps": 1e-3, "activation": "elu", "num_features": 3}


def disagreement(rank, name):
    """Return the message of the error if rank 1 has another setting."""
    options = {"num_features": 4} | ({name: DIFFERENT[name]} if rank == 1 else {})
    module = InPlaceABNSync(**options)
    x = torch.ones(2, module.num_features)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        module(x)
    assert (x == 1).all()
    assert (module.running_mean == 0).all()
    return str(caught.value)


def missing(rank):
    """Return the message of the error if rank 1 does not make the call."""
    group = torch.distributed.new_group(timeout=timedelta(seconds=1))
    x = torch.eye(2)
    if rank == 1:
        time.sleep(2)
        return None
    with pytest.raises(RuntimeError) as caught:
        InPlaceABNSync(2, group=group)(x)
    assert torch.equal(x, torch.eye(2))
    return str(caught.value)


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
    assert all(found[3].startswith("synchronized statistics need a plain tensor") for found in both)


@pytest.mark.parametrize("name", ["model", "not converted"])
def test_convert_sync_normalizes_as_one(results, name):
    z, gradients, statistics = model_step(model(), *(b[:6] for b in parts(0, (6,))))
    both = [found[name] for found in results]
    assert relative(joined([first[0][0] for first in both]), torch.from_numpy(z[0])) < OUTPUT
    for one, two, whole in zip(both[0][1], both[1][1], gradients, strict=True):
        assert relative(torch.from_numpy(one + two), torch.from_numpy(whole)) < GRADIENT
    for found in both:
        assert max(map(relative, tensors(found[2]), tensors(statistics))) < OUTPUT


def test_data_parallel_gradients_are_those_of_the_whole_batch(results):
    gradients = model_step(model(), *(b[:6] for b in parts(0, (6,))))[1]  # of two backwards
    for found in results:
        assert max(map(relative, tensors(found["averaged"]), (g / 4 for g in tensors(gradients)))) < GRADIENT


def test_disagreement_is_an_error_in_both_processes(results):
    for found in results:
        for name, message in zip(DIFFERENT, found["disagreement"], strict=True):
            assert message.startswith(f"{name} must be equal in all processes, got ")
            assert f"{DIFFERENT[name]!r} on rank 1" in message


def test_a_missing_process_is_an_error_after_the_timeout(results):
    assert "imeout" in results[0]["missing"] or "imed out" in results[0]["missing"]


def test_synchronized_batch_norms_survive_conversions():
    converted = convert(convert_sync(model()))
    assert [m.synchronized for m in converted if hasattr(m, "synchronized")] == [True, True]
    group = object()
    set_active_group(revert(converted), group)
    assert converted[1].group is converted[4].group is group
    assert list(converted.state_dict()) == list(model().state_dict())
    with pytest.raises(TypeError, match=r"^model must be a torch.nn.Module"):
        convert_sync(3)


def test_without_processes_it_is_inplace_abn():
    x = batches()[0]
    whole = layer(InPlaceABN, "silu")(x.clone())
    assert torch.equal(layer(InPlaceABNSync, "silu")(x.clone()), whole)
    expected = model_step(model(), x, batches()[2][:, :3, 1:4, 1:4])
    found = model_step(convert_sync(model()), x, batches()[2][:, :3, 1:4, 1:4])
    assert relative(torch.from_numpy(found[0][0]), torch.from_numpy(expected[0][0])) < OUTPUT


def test_batch_norms_of_timm_keep_their_activation():
    pytest.importorskip("zoo")  # imports torchvision, which timm needs
    timm = pytest.importorskip("timm.layers")
    x = batches()[0]
    expected = timm.BatchNormAct2d(4).double()(x)
    assert relative(convert_sync(timm.BatchNormAct2d(4).double())(x), expected) < OUTPUT
