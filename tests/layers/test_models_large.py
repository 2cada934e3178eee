"""ResNet and MobileNetV2: layouts, kept memory, equal results with every strategy."""

import numpy as np
import pytest
from networks import STRATEGIES, normal

from inplace_abn import layers, memory, models

NETWORKS = {
    "bottleneck": lambda **style: models.resnet(3, 5, (2, 1), width=4, **style),
    "basic": lambda **style: models.resnet(3, 5, (2, 1), block="basic", width=4, **style),
    "mobilenet_v2": lambda **style: models.mobilenet_v2(
        3, 5, width=0.25, stages=((1, 16, 1, 1), (6, 24, 2, 2)), **style
    ),
}
FULL = {
    "ResNet-50": lambda **style: models.resnet(3, 10, width=4, rng=0, **style),
    "ResNet-34": lambda **style: models.resnet(3, 10, block="basic", width=4, rng=0, **style),
    "MobileNetV2": lambda **style: models.mobilenet_v2(3, 10, width=0.25, rng=0, **style),
}


def count(net):
    return sum(parameter.data.size for parameter in net.parameters())


def test_numbers_of_parameters_are_those_of_the_papers():
    """As torchvision counts them."""
    assert count(models.resnet(3, 1000)) == 25_557_032
    assert count(models.resnet(3, 1000, block="basic")) == 21_797_672
    assert count(models.mobilenet_v2(3, 1000)) == 3_504_872


def test_the_stride_is_that_of_the_convolution_of_3_x_3():
    block = models.resnet(3, 5, (1, 1), width=4).stage2[0]
    strides = [layer.stride[0] for layer in block.branch if isinstance(layer, layers.Conv2d)]
    assert strides == [1, 2, 1]
    assert block.shortcut[0].stride == (2, 2)


@pytest.mark.parametrize("activation", ["leaky_relu", "elu"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_all_strategies_give_the_same_gradients(kind, activation):
    x, found = normal((3, 3, 32, 32)), {}
    for strategy in STRATEGIES:
        net = NETWORKS[kind](strategy=strategy, activation=activation, dtype=np.float64, rng=0)
        z = net(x.copy())
        dx = net.backward(np.ones_like(z), overwrite=True)
        found[strategy] = dx, z, *(parameter.grad for parameter in net.parameters())
    for strategy in STRATEGIES[1:]:
        for got, want in zip(found[strategy], found["standard"], strict=True):
            atol = 1e-8 * max(1, np.abs(want).max())
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=strategy)


@pytest.mark.parametrize("kind", NETWORKS)
def test_channels_last(kind):
    x = normal((2, 3, 32, 32), dtype=np.float32)
    first, last = (NETWORKS[kind](rng=0, channel_axis=axis) for axis in (1, -1))
    np.testing.assert_allclose(last(np.moveaxis(x, 1, -1).copy()), first(x.copy()), rtol=1e-3, atol=1e-4)


def kept(make, **style):
    """Return bytes kept by the forward, by whether a convolution keeps them and else the role."""
    net = make(**style)
    with memory.ledger() as ledger:
        net(normal((2, 3, 64, 64), dtype=np.float32))
        table = ledger.table()
    found = {}
    for row in table:
        found.setdefault((row.layer.rpartition(" ")[2].strip("()"), row.role), []).append(row)
    return ledger.kept, found, net


@pytest.mark.parametrize("name", FULL)
def test_in_place_networks_keep_the_inputs_of_convolutions_and_little_more(name):
    total, rows, net = kept(FULL[name], strategy="inplace")
    nbytes = {key: sum(row.nbytes for row in found) for key, found in rows.items()}
    convolutions = [layer for _, layer in net.named_layers() if isinstance(layer, layers.Conv2d)]
    arrays = [layer.last_call.saved["input"] for layer in convolutions]
    inputs = sum({id(array): array.nbytes for array in arrays}.values())
    ends = [layer for path, layer in net.named_layers() if path.endswith("shortcut.abn")]
    assert len(ends) == {"ResNet-50": 4, "ResNet-34": 3, "MobileNetV2": 0}[name]
    # Arrays that are not inputs of convolutions: results that are pooled, and those of projections.
    last = net.head_abn if name == "MobileNetV2" else net[-3][-1].branch[-1]
    pooled = [last] if name == "MobileNetV2" else [net.stem.abn, last]
    others = sum(layer.last_call.saved["z"].nbytes for layer in [*pooled, *ends])
    offsets = nbytes.get(("MaxPool2d", "indices"), 0)
    assert inputs + others + offsets <= total < 1.01 * (inputs + others + offsets)
    assert nbytes.get(("ABN", "residual"), 0) == 0


@pytest.mark.parametrize(("name", "share"), [("ResNet-50", 0.62), ("ResNet-34", 0.71), ("MobileNetV2", 0.53)])
def test_share_of_what_standard_layers_keep(name, share):
    assert kept(FULL[name], strategy="inplace")[0] < share * kept(FULL[name], strategy="standard")[0]
