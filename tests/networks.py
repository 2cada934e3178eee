"""Small layers and networks for tests, and runs of their forward and backward."""

import numpy as np

from inplace_abn import reference
from inplace_abn.layers import ABN, Activation, Conv2d, Layer, Parameter, Residual, Sequential

STRATEGIES = ["standard", "checkpoint", "checkpoint_xhat", "pre_activation", "inplace_1", "inplace_2"]
CHECKPOINTS = ["checkpoint", "checkpoint_xhat", "pre_activation"]
#: Those that overwrite their input.
OVERWRITING = [name for name in STRATEGIES if reference.KEEPS[name] != "x"]


def normal(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def as_layout(nchw, channel_axis, memory_axis):
    """Return the same batch, with its channels at channel_axis, and at memory_axis in memory."""
    stored = np.ascontiguousarray(np.moveaxis(nchw, 1, memory_axis))
    return np.moveaxis(np.moveaxis(stored, memory_axis, 1), 1, channel_axis)


def abn(features=4, strategy="standard", activation="leaky_relu", **options):
    """ABN in float64 with weights of both signs."""
    layer = ABN(features, activation=activation, strategy=strategy, dtype=np.float64, **options)
    rng = np.random.default_rng(features)
    layer.weight.data[...] = rng.uniform(0.5, 1.5, features) * rng.choice([-1, 1], features)
    layer.bias.data[...] = rng.normal(size=features)
    return layer


def conv(inputs=4, outputs=4, kernel_size=3, seed=0, **options):
    options = {"padding": kernel_size // 2, "dtype": np.float64, "rng": seed, **options}
    return Conv2d(inputs, outputs, kernel_size, **options)


def chain(strategy, units=1, features=4):
    """ABN and convolution, several times."""
    layers = [
        layer for i in range(units) for layer in (abn(features, strategy), conv(features, features, seed=i))
    ]
    return Sequential(*layers)


def blocks(strategy):
    """The four kinds of residual blocks, by name, with 4 channels in and out."""
    return {
        "preactivation": Residual(chain(strategy, 2)),
        "preactivation, projected": Residual(
            Sequential(conv(), abn(4, strategy), conv(seed=1)),
            conv(4, 4, 1, seed=2),
            preactivation=abn(4, strategy),
        ),
        "postactivation": Residual(
            Sequential(conv(), abn(4, strategy), conv(seed=1), abn(4, strategy, "identity")),
            activation=Activation(inplace=True),
        ),
        "postactivation, projected": Residual(
            Sequential(conv(), abn(4, strategy), conv(seed=1), abn(4, strategy, "identity")),
            Sequential(conv(4, 4, 1, seed=2), abn(4, strategy, "identity")),
            activation=Activation("elu", 1.0, inplace=True),
        ),
    }


def run(layer, x, dz, *, overwrite=False):
    """Return z, dx and the gradients of the parameters by name; x and dz are not changed."""
    layer.zero_grad()
    z = layer(x.copy())
    results = {"z": z.copy()}
    results["dx"] = layer.backward(dz.copy(), overwrite=overwrite).copy()
    results.update((name, parameter.grad.copy()) for name, parameter in layer.named_parameters())
    return results


def assert_close(got, want, rtol=1e-12):
    """Compare results by name, each within `rtol` of its largest element, or of 1: a gradient may be zero."""
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_allclose(
            got[name], want[name], rtol=0, atol=rtol * max(1, np.abs(want[name]).max()), err_msg=name
        )


class Pointwise(Layer):
    """A 1 x 1 convolution, which keeps its input for the backward."""

    def __init__(self, inputs, outputs):
        rng = np.random.default_rng(inputs + outputs)
        self.weight = Parameter(rng.normal(size=(outputs, inputs)).astype(np.float32))

    def forward(self, ctx, x):
        ctx.save_for_backward(input=x)
        return np.stack([np.tensordot(self.weight.data, image, 1) for image in x])

    def gradients(self, ctx, dz, *, overwrite=False):
        dx = np.stack([np.tensordot(self.weight.data.T, image, 1) for image in dz])
        return dx, np.tensordot(dz, ctx.saved["input"], ((0, 2, 3), (0, 2, 3)))
