"""What training scripts do with a model: checkpointing, offloading, copies, processes, half types."""

import copy
import io
import os
import socket

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn, F = torch.nn, torch.nn.functional

from fused_nets import (  # noqa: E402
    GRADIENT,
    OUTPUT,
    Net,
    assert_equal_steps,
    fuse,
    images,
    pair,
    relative,
    step,
)
from torch.utils.checkpoint import checkpoint, checkpoint_sequential  # noqa: E402

from inplace_abn import _core  # noqa: E402
from inplace_abn.torch import InPlaceABN, convert, report  # noqa: E402

ACTIVATIONS = ["relu", "leaky_relu", "silu"]


# ---- checkpointing and offloading --------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_checkpoint_of_the_model(activation, reentrant):
    """The second forward updates the running statistics again, in both."""
    net, fused = pair(activation)
    z, gradients = step(net, images(), lambda x: checkpoint(net, x, use_reentrant=reentrant))
    found, found_gradients = step(fused, images(), lambda x: checkpoint(fused, x, use_reentrant=reentrant))
    assert relative(found, z) < OUTPUT
    assert max(map(relative, found_gradients, gradients)) < GRADIENT
    assert relative(fused.bn2.running_var, net.bn2.running_var) < OUTPUT


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_checkpoint_inside_of_the_model(activation, reentrant):
    class Checkpointed(Net):
        def forward(self, x):
            y = checkpoint(lambda x: self.normalize(self.bn1, self.conv1(x)), x, use_reentrant=reentrant)
            y = checkpoint(lambda y: self.normalize(self.bn2, self.conv2(y), y), y, use_reentrant=reentrant)
            return self.conv3(y)

    torch.manual_seed(0)
    net = Checkpointed(activation)
    assert_equal_steps(net, fuse(net), images())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_checkpoint_whose_first_operation_is_in_place(activation, reentrant):
    """The second forward starts from the input, so it must not have been overwritten."""
    gradients = []
    for in_place in (False, True):
        torch.manual_seed(0)
        layer, conv = InPlaceABN(3, activation=activation).double(), nn.Conv2d(3, 3, 1, dtype=torch.float64)
        act = {"relu": F.relu, "leaky_relu": lambda y: F.leaky_relu(y, 0.01), "silu": F.silu}[activation]

        def block(x, layer=layer, act=act, conv=conv, in_place=in_place):
            if in_place:
                return conv(layer(x))
            return conv(act(F.batch_norm(x, None, None, layer.weight, layer.bias, True)))

        x = images().requires_grad_()
        checkpoint(block, x * 1, use_reentrant=reentrant).pow(2).sum().backward()
        gradients.append([x.grad, *(p.grad for p in (layer.weight, layer.bias, conv.weight))])
    assert max(map(relative, *gradients)) < GRADIENT


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_sequential(reentrant):
    results = []
    for activation in (nn.LeakyReLU(0.01), None):
        torch.manual_seed(0)
        layers = []
        for _ in range(4):
            conv = nn.Conv2d(3, 3, 3, padding=1, bias=False, dtype=torch.float64)
            bn = InPlaceABN(3) if activation is None else nn.Sequential(nn.BatchNorm2d(3), activation)
            layers += [conv, bn.double()]
        net, x = nn.Sequential(*layers), images().requires_grad_()
        checkpoint_sequential(net, 2, x, use_reentrant=reentrant).pow(2).sum().backward()
        results.append([x.grad, *(p.grad for p in net.parameters())])
    assert max(map(relative, *results)) < GRADIENT


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_save_on_cpu(activation):
    net, fused = pair(activation)

    def offloaded(x):
        with torch.autograd.graph.save_on_cpu():
            return fused(x)

    assert_equal_steps(net, fused, images(), offloaded)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hooks_that_serialize(activation):
    def pack(tensor):
        file = io.BytesIO()
        torch.save(tensor.detach().clone(), file)
        return file

    def unpack(file):
        file.seek(0)
        return torch.load(file)

    net, fused = pair(activation)

    def offloaded(x):
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return fused(x)

    assert_equal_steps(net, fused, images(), offloaded)


class LiveContexts:
    """Counts the bytes that contexts of the core hold."""

    def __init__(self):
        self.nbytes = {}

    def saved(self, context, layer, role, array, activation=None):
        self.nbytes[context] = self.nbytes.get(context, 0) + array.nbytes

    def freed(self, context):
        self.nbytes.pop(context, None)


@pytest.mark.parametrize(("activation", "side"), [("silu", "uint8"), ("tanh", "int64"), ("relu", None)])
def test_hooks_see_all_that_is_kept(activation, side):
    """Also bits of SiLU, elements of a saturated tanh and channels of weight 0."""
    net, fused = pair(activation)
    for each in (net, fused):
        with torch.no_grad():
            each.bn1.weight[1:3] = torch.tensor([0.0, 6.0])
    files = []

    def pack(tensor):
        files.append(tensor.clone().numpy())
        return len(files) - 1

    def offloaded(x):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda place: torch.from_numpy(files[place])):
            z = fused(x)
        assert not live.nbytes
        return z

    live = LiveContexts()
    _core.set_recorder(live)
    try:
        assert_equal_steps(net, fused, images(), offloaded)
    finally:
        _core.set_recorder(None)
    assert side is None or side in {array.dtype.name for array in files}
    assert any(array.ndim == 3 for array in files)


# ---- copies ------------------------------------------------------------------------------------------------


def test_a_copy_has_its_own_weights():
    net, fused = pair()
    duplicate = copy.deepcopy(fused)
    net.load_state_dict(duplicate.state_dict())
    for parameter in fused.parameters():
        parameter.data.zero_()
    assert_equal_steps(net, duplicate, images())


def test_a_model_is_saved_and_loaded():
    net, fused = pair()
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    assert_equal_steps(net, torch.load(file, weights_only=False), images())


def test_the_state_of_a_model_is_that_of_the_original_model():
    net, fused = pair()
    assert list(net.state_dict()) == list(fused.state_dict())
    net.load_state_dict(fused.state_dict())
    fused.load_state_dict(net.state_dict())


def test_averaged_model():
    results = []
    for model in pair():
        averaged = torch.optim.swa_utils.AveragedModel(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            step(model, images())
            optimizer.step()
            averaged.update_parameters(model)
        torch.optim.swa_utils.update_bn([images()], averaged)
        results.append(averaged.eval()(images()).detach())
    assert relative(*results) < 1e-9


def test_convert_sync_batchnorm_sees_a_batch_norm():
    _, fused = pair()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    assert type(converted.bn1) is nn.SyncBatchNorm


# ---- processes ---------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


def full(gradient):
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def converted_pair():
    """Return a model and its conversion."""
    net, _ = pair()
    converted = convert(copy.deepcopy(net))
    assert all(row.state != "left" for row in report(converted).rows)
    return net, converted


def steps_of_rank(rank, wrap, models):
    """Return result and gradients of the second step of each model, on half of the batch."""
    results = []
    for model in map(wrap, models()):
        for _ in range(2):
            z, gradients = step(model, images(8)[4 * rank : 4 * rank + 4])
        results.append([t.numpy() for t in (z, *map(full, gradients))])
    return results


def distributed_steps(rank, port, wrap, models, queue):
    """Run steps of the original and of the fused model in one process of two."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        # The models are freed while the group exists. If a model holds the group's last reference, freeing it
        # waits for gloo's threads with the GIL held, which they may need to free their last sums.
        queue.put(steps_of_rank(rank, wrap, models))
    finally:
        torch.distributed.destroy_process_group()


SHARDED = pytest.param(
    sharded,
    marks=pytest.mark.skipif(
        torch.torch_version.TorchVersion(torch.__version__) < (2, 6), reason="fully_shard needs PyTorch 2.6"
    ),
)


@pytest.mark.parametrize("models", [pair, converted_pair])
@pytest.mark.parametrize("wrap", [distributed, SHARDED])
def test_two_processes(wrap, models):
    context = torch.multiprocessing.get_context("spawn")
    queue, port = context.Queue(), free_port()
    processes = [
        context.Process(target=distributed_steps, args=(rank, port, wrap, models, queue), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=300) for _ in processes]  # a process that failed puts nothing
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for expected, found in results:
        assert len(found) > 5
        for e, f in zip(expected, found, strict=True):
            assert relative(torch.from_numpy(f), torch.from_numpy(e)) < GRADIENT


# ---- half types --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autocast(activation):
    """bfloat16 between the layers, float32 parameters: as close to float32 as the original model."""
    exact = step(pair(activation, torch.float32)[0], images(dtype=torch.float32))

    def error(model):
        def autocast(x):
            with torch.autocast("cpu", torch.bfloat16):
                z = model(x)
            assert z.dtype is torch.bfloat16
            return z.float()

        z, gradients = step(model, images(dtype=torch.float32), autocast)
        assert all(p.grad.dtype is torch.float32 for p in model.parameters())
        differences = [(z - exact[0]).norm() / exact[0].norm()]
        differences += [(g - e).norm() / e.norm() for g, e in zip(gradients, exact[1], strict=True)]
        return torch.stack(differences)

    original, fused = (error(model) for model in pair(activation, torch.float32))
    assert (fused < 2 * original + 2**-8).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_model_of_half_types(activation, dtype):
    net, fused = (model.to(dtype) for model in pair(activation, torch.float32))
    z, gradients = step(net, images(dtype=dtype))
    found, found_gradients = step(fused, images(dtype=dtype))
    unit = torch.finfo(dtype).eps
    assert found.dtype is dtype
    assert (found - z).float().norm() < 4 * unit * z.float().norm()
    for g, h in zip(found_gradients, gradients, strict=True):
        assert g.dtype is dtype
        assert (g - h).float().norm() < 16 * unit * h.float().norm()
    for buffer, expected in zip(fused.buffers(), net.buffers(), strict=True):
        assert buffer.dtype is expected.dtype
        assert relative(buffer.float(), expected.float()) < 4 * unit


def test_a_residual_of_another_dtype_or_shape_is_promoted_as_in_pytorch():
    x = torch.randn(4, 3, 5, 5, dtype=torch.bfloat16)
    for residual in (torch.randn(4, 3, 5, 5), torch.randn(3, 1, 1, dtype=torch.bfloat16)):
        layer = InPlaceABN(3, activation="relu")
        expected = F.relu(F.batch_norm(x, None, None, layer.weight, layer.bias, True) + residual)
        found = layer(x.clone(), residual)
        assert found.dtype is expected.dtype
        assert relative(found.float(), expected.float()) < 2**-6


# ---- optimization ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_the_loss_of_some_steps_is_that_of_the_original_model(activation):
    losses = []
    target = torch.randn(4, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for model in pair(activation):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        losses.append([])
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.mse_loss(model(images()), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    found, expected = torch.tensor(losses[1]), torch.tensor(losses[0])
    assert ((found - expected).abs() / expected).max() < 1e-9
    assert expected[-1] < 0.9 * expected[0]
