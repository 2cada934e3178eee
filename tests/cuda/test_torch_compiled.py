"""`torch.compile` on a GPU: one graph with the operator of `_compiled_gpu`."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from inplace_abn.torch import InPlaceABN, convert  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),  # of PyTorch 2.11
]


class Residual(nn.Module):
    def __init__(self, activation, channels=8):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.first, self.second = InPlaceABN(channels, activation=activation), InPlaceABN(channels)

    def forward(self, x):
        x = self.first(self.conv(x))
        return self.second(x * 2, x)


def train(model, net, device, channels_last):
    """Return the loss, the gradients and the running statistics of two steps."""
    torch.manual_seed(1)
    found = []
    for _ in range(2):
        x = torch.randn(4, 3, 6, 6, dtype=torch.float64).to(device)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        net.zero_grad()
        loss = model(x).pow(3).sum()
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in net.parameters())]
    return found + [b.clone() for b in net.buffers()]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "identity"])
def test_a_compiled_network_trains_as_in_eager_mode(gpu, activation, zero, channels_last):
    torch.compiler.reset()
    torch.manual_seed(0)
    nets = [Residual(activation).double().to(gpu) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    if zero:
        with torch.no_grad():
            for net in nets:
                net.second.weight[::2] = 0
    compiled = torch.compile(nets[1], backend="aot_eager", fullgraph=True)
    wanted = train(nets[0], nets[0], gpu, channels_last)
    found = train(compiled, nets[1], gpu, channels_last)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_graph_has_the_operator_and_keeps_one_tensor(gpu):
    torch.compiler.reset()
    net = convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.01))).to(gpu)
    names, sizes = [], []

    def backend(graph, inputs):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    x = torch.randn(2, 3, 8, 8).to(gpu)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        torch.compile(net, backend=backend, fullgraph=True)(x).sum().backward()
    assert any("gpu_batch_norm" in name for name in names)
    assert sizes.count(2 * 8 * 6 * 6) == 1
