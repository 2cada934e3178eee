"""The networks of the paper: parameters, layouts, kept memory, equal results with every strategy."""

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
    "resnext": lambda **style: models.resnet(3, 5, (1, 1), width=8, groups=4, group_width=2, **style),
    "dilated": lambda **style: models.resnet(3, 5, (1, 1, 2, 2), width=2, output_stride=8, **style),
    "wider_resnet": lambda **style: models.wider_resnet(3, 5, (1,) * 6, width=1 / 32, **style),
    "densenet": lambda **style: models.densenet(3, 5, (2, 2), growth=4, width=8, **style),
    "deeplabv3": lambda **style: models.deeplabv3(3, 5, channels=4, dropout=0.0, body_options=TINY, **style),
    "deeplabv3 over wider_resnet": lambda **style: models.deeplabv3(
        3, 5, "wider_resnet38", channels=4, dropout=0.0, body_options={"blocks": (1,) * 6, "width": 1 / 32},
        **style,
    ),
}  # fmt: skip
TINY = {"blocks": (1, 1, 1, 1), "width": 2}
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
    assert count(models.resnet101()) == 44_549_160
    assert count(models.resnext101()) == 83_455_272
    assert count(models.densenet()) == 7_978_856
    assert count(models.densenet(blocks=(6, 12, 64, 48))) == 33_337_704


@pytest.mark.slow  # their weights take half a gigabyte
def test_numbers_of_parameters_of_the_largest_networks():
    assert count(models.resnet152()) == 60_192_808
    assert count(models.resnext101(groups=32, group_width=8)) == 88_791_336


def test_dilations_replace_the_strides_of_the_last_stages():
    body = models.deeplabv3(3, 5, body_options=TINY).body
    found = [
        (layer.stride[0], layer.dilation[0], layer.padding[0])
        for path, layer in body.named_layers()
        if path.endswith("0.branch.conv2")
    ]
    assert found == [(1, 1, 1), (2, 1, 1), (1, 1, 1), (1, 2, 2)]
    with pytest.raises(ValueError, match="output_stride must be one of"):
        models.resnet(3, 5, output_stride=4)
    with pytest.raises(ValueError, match="output_stride must be 32 or 8, got 16"):
        models.deeplabv3(3, 5, "wider_resnet38", output_stride=16)
    with pytest.raises(ValueError, match="body must be one of"):
        models.deeplabv3(3, 5, "resnet18")
    with pytest.raises(ValueError, match="groups: expected 1 for block 'basic'"):
        models.resnet34(groups=2)


def test_a_dense_block_keeps_its_features_once():
    x = normal((2, 8, 8, 8), dtype=np.float32)
    block = models.DenseBlock(8, 4, 4, 2, models.Style(rng=0))
    with memory.ledger() as ledger:
        z = block(x)
        features = [row for row in ledger.table() if row.role == "x"]
        assert sum(row.nbytes for row in features) <= z.nbytes
    assert block.backward(np.ones_like(z)).shape == x.shape


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
    got, want = last(np.moveaxis(x, 1, -1).copy()), first(x.copy())
    np.testing.assert_allclose(np.moveaxis(got, -1, 1), want, rtol=1e-3, atol=1e-4)


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
