"""Layers on a GPU, through PyTorch's tensors, against float64 batch norm of PyTorch on the same GPU."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and PyTorch for it"),
]
if torch.cuda.is_available():
    from inplace_abn._cuda import torch_calls
    from inplace_abn._cuda.guard import Guard

F = torch.nn.functional
ACTIVATIONS = {
    "identity": lambda y: y,
    "leaky_relu": lambda y: F.leaky_relu(y, 0.01),
    "elu": lambda y: F.elu(y, 0.75),
    "celu": lambda y: F.celu(y, 0.75),
    "selu": F.selu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
}
PARAM = {"leaky_relu": 0.01, "elu": 0.75, "celu": 0.75}
# z, dx, dweight: the norm of the error divided by that of the result.
BOUNDS = {
    torch.float32: (2e-7, 4e-7, 1e-6),
    torch.float64: (1e-15, 1e-14, 1e-13),
    torch.float16: (4e-4, 2e-3, 2e-3),
    torch.bfloat16: (3e-3, 1.5e-2, 1.5e-2),
}
SHAPES = [
    (2, 3, 224, 224),
    (8, 64, 56, 56),
    (4, 96, 28, 28),
    (16, 256, 14, 14),
    (9, 104, 7, 7),
    (64, 512, 7, 7),
    (33, 48),
    (3, 5, 17),
    (2, 8, 3, 5, 7),
]


class Case:
    def __init__(
        self,
        shape,
        dtype,
        channels_last=False,
        activation="leaky_relu",
        strategy="inplace",
        residual=False,
        training=True,
        weight=None,
    ):
        torch.manual_seed(0)
        of = torch.float64 if dtype is torch.float64 else torch.float32
        channels = shape[1]
        self.shape, self.activation, self.strategy, self.training = shape, activation, strategy, training
        self.channels_last = channels_last

        def batch():
            return self.laid_out(torch.randn(shape, device="cuda").to(dtype))

        self.x, self.dz = batch() * 3 + 1, batch()
        self.dz += (self.x - 1) / 3
        self.residual = batch() if residual else None
        self.weight = torch.rand(channels, device="cuda", dtype=of) + 0.5
        self.weight[::2] *= -1
        if weight is not None:
            self.weight = torch.as_tensor(np.resize(weight, channels), device="cuda", dtype=of)
        self.bias = torch.randn(channels, device="cuda", dtype=of)
        self.parameter = of
        self.guard = Guard() if strategy in ("inplace", "pre_activation") else None

    def laid_out(self, tensor):
        if self.channels_last and tensor.ndim >= 4:
            return tensor.to(
                memory_format=torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
            )
        return tensor

    def run(self):
        ones = torch.ones(self.shape[1], device="cuda", dtype=self.parameter)
        self.running = ones, 9 * ones
        kept = self.x.clone(memory_format=torch.preserve_format)
        z = kept if self.strategy == "inplace" else torch.full_like(kept, float("nan"))
        state = torch_calls.forward(
            kept, z, self.residual, self.weight, self.bias, None, *self.running, self.guard, self.training,
            0.1, 1e-5, self.activation, PARAM.get(self.activation, 0.0), self.strategy,
        )  # fmt: skip
        self.z = z.clone(memory_format=torch.preserve_format)
        dx = torch.full_like(kept, float("nan"))
        self.dr = torch.full_like(kept, float("nan")) if self.residual is not None else None
        dweight, dbias = torch.full_like(self.weight, float("nan")), torch.full_like(self.bias, float("nan"))
        torch_calls.backward(state, kept, self.dz, self.residual, dx, self.dr, dweight, dbias, None)
        self.got = dx, dweight, dbias
        return self

    def wanted(self):
        x, weight, bias = (t.double().requires_grad_() for t in (self.x, self.weight, self.bias))
        mean, var = (torch.full_like(r, v).double() for r, v in zip(self.running, (1, 9), strict=True))
        y = F.batch_norm(x, mean, var, weight, bias, self.training, 0.1, 1e-5)
        inputs = [x, weight, bias]
        if self.residual is not None:
            residual = self.residual.double().requires_grad_()
            y, inputs = y + residual, [*inputs, residual]
        z = ACTIVATIONS[self.activation](y)
        return z.detach(), torch.autograd.grad(z, inputs, self.dz.double()), (mean, var)

    def errors(self):
        z, gradients, running = self.wanted()
        found = [relative(self.z, z)]
        found += [relative(got, wanted) for got, wanted in zip(self.got, gradients[:3], strict=True)]
        if self.residual is not None:
            found.append(relative(self.dr, gradients[3]))
        for got, wanted in zip(self.running, running, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)
        return found

    def check(self, bounds=None):
        of_z, of_dx, of_sums = bounds or BOUNDS[self.x.dtype]
        z, dx, dweight, dbias, *dr = self.errors()
        assert z <= of_z
        assert dx <= of_dx
        assert dweight <= of_sums
        assert dbias <= of_sums
        assert all(e <= of_dx for e in dr)


def relative(got, wanted):
    got = got.double()
    assert torch.isfinite(got).all()
    return ((got - wanted).norm() / wanted.norm().clamp_min(1e-300)).item()


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_agrees_with_float64(shape, channels_last, dtype):
    Case(shape, dtype, channels_last, residual=False).run().check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", ["inplace", "pre_activation", "checkpoint_xhat", "standard"])
def test_strategies_with_residual(strategy, training, channels_last, dtype):
    case = Case(
        (16, 64, 14, 14), dtype, channels_last, strategy=strategy, residual=True, training=training
    ).run()
    # The rounding of a kept xhat moves a few y, one in 3,000 in bfloat16, to the other side of the kink.
    case.check((3e-3, 3e-2, 1.5e-2) if strategy == "checkpoint_xhat" and dtype is torch.bfloat16 else None)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_activations(activation, channels_last):
    case = Case((8, 32, 28, 28), torch.float32, channels_last, activation, "pre_activation")
    case.run().check((3e-7, 1e-6, 2e-6))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("strategy", ["inplace", "pre_activation"])
@pytest.mark.parametrize("shape", [(8, 64, 56, 56), (16, 96, 7, 7)], ids=str)
def test_zero_weights_are_exact(shape, strategy, channels_last):
    case = Case(
        shape, torch.float32, channels_last, strategy=strategy, residual=True, weight=[0, 1, 1e-6, -1]
    )
    case.run().check((2e-7, 6e-7, 1e-6))
    torch.cuda.synchronize()
    assert case.guard._report[0] == shape[1] // 2


def test_bits_do_not_change_from_run_to_run():
    case = Case((16, 256, 28, 28), torch.bfloat16, True)
    first = [t.clone() for t in (case.run().z, *case.got)]
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, (case.run().z, *case.got), strict=True))


def test_a_weight_that_becomes_zero_is_reported_and_exact_in_the_next_step():
    case = Case((8, 16, 28, 28), torch.float32)
    case.run().check()
    case.weight[3] = 0
    case.run()
    torch.cuda.synchronize()
    assert case.got[1][3] == 0
    with pytest.warns(RuntimeWarning, match="weight of 1 channels became zero"):
        case.run()
    case.check()


def test_side_stream_and_graph():
    case = Case((8, 64, 28, 28), torch.float32)
    case.run()
    wanted = [t.clone() for t in (case.z, *case.got)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            case.run()
    for t in (case.z, *case.got):
        t.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(wanted, (case.z, *case.got), strict=True))


def test_first_call_in_a_graph_is_refused():
    case = Case((8, 24, 28, 28), torch.float32)
    x = case.x.clone()
    with (
        pytest.raises(RuntimeError, match="call the layer once before"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        case.run()
    assert torch.equal(case.x, x)
