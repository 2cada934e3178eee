"""Small networks for the tests of the export, with weights and statistics as after training."""

import numpy as np

from inplace_abn import models
from inplace_abn.layers import ABN, no_grad

#: name -> (function that makes the network from keyword arguments, shape of one sample)
NETWORKS = {
    "preactivation": (lambda **style: models.residual_network(1, 5, (4, 8), **style), (1, 12, 16)),
    "postactivation": (
        lambda **style: models.residual_network(1, 5, (4, 8), block="postactivation", **style),
        (1, 12, 16),
    ),
    "encoder_decoder": (lambda **style: models.encoder_decoder(1, 5, (4, 8), **style), (1, 12, 16)),
    "unet": (lambda **style: models.UNet(1, 5, (4, 8), **style), (1, 12, 16)),
    "resnet": (
        lambda **style: models.resnet(3, 5, (1, 1), width=4, recompute_stem=True, **style),
        (3, 24, 32),
    ),
    "resnext": (
        lambda **style: models.resnet(
            3, 5, (1, 1, 1), width=8, groups=4, group_width=2, output_stride=8, **style
        ),
        (3, 24, 32),
    ),
    "wider_resnet": (lambda **style: models.wider_resnet(3, 5, (1,) * 6, width=1 / 32, **style), (3, 32, 48)),
    "densenet": (lambda **style: models.densenet(3, 5, (2, 2), growth=4, width=8, **style), (3, 32, 48)),
    "mobilenet_v2": (
        lambda **style: models.mobilenet_v2(3, 5, width=0.25, stages=((1, 16, 1, 1), (6, 16, 2, 2)), **style),
        (3, 24, 32),
    ),
    "deeplabv3": (
        lambda **style: models.deeplabv3(
            3, 5, channels=8, rates=(1, 2, 3), body_options={"blocks": (1, 1, 1, 1), "width": 4}, **style
        ),
        (3, 32, 48),
    ),
}


def network(name, channel_axis=1, **style):
    """Return a network, and the shape of one sample."""
    make, shape = NETWORKS[name]
    net = trained(make(rng=0, channel_axis=channel_axis, **style))
    return net, (shape if channel_axis == 1 else (*shape[1:], shape[0]))


def trained(net, seed=0):
    """Set weights and statistics of all normalizations to random values; return the network."""
    rng = np.random.default_rng(seed)
    for _, layer in net.named_layers():
        if not isinstance(layer, ABN):
            continue
        size = layer.num_features
        if layer.weight is not None:
            layer.weight.data[...] = rng.uniform(0.5, 1.5, size) * rng.choice([-1, 1], size)
            layer.bias.data[...] = rng.normal(0, 0.5, size)
        if layer.running_mean is not None:
            layer.running_mean[...] = rng.normal(0, 0.5, size)
            layer.running_var[...] = rng.uniform(0.1, 2, size)
    return net


def samples(shape, dtype=np.float32, number=3):
    return np.random.default_rng(1).normal(size=(number, *shape)).astype(dtype)


def evaluated(net, *inputs):
    """Return the result of a network in evaluation; the inputs are not changed."""
    with no_grad():
        return net.eval()(*(one.copy() for one in inputs))


def remaining(net):
    """Return the number of normalizations in a network."""
    return sum(isinstance(layer, ABN) for _, layer in net.named_layers())


def assert_near(got, want, rtol):
    """Compare two results; `rtol` is relative to the spread of the wanted one."""
    assert got.shape == want.shape
    assert want.std() > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want - want.mean()).max())
