"""Memory layouts through layers, blocks and networks.

A batch is seen with the channels first or last (`channel_axis`) and has them first or last in memory, which
makes two contiguous arrays and two views. For each of the four, results and gradients have the memory layout
of x, and the same bits as from the contiguous array with the same memory.
"""

import inspect
from dataclasses import dataclass, field

import numpy as np
import pytest
from networks import STRATEGIES

from inplace_abn import gradcheck, layers, models
from inplace_abn.layers import (
    ABN,
    Activation,
    AvgPool2d,
    Concat,
    Conv2d,
    ConvTranspose2d,
    CrossEntropy,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Graph,
    GroupNorm,
    Identity,
    InPlaceABN,
    Linear,
    MaxPool2d,
    MSELoss,
    Recompute,
    Residual,
    Sequential,
    Upsample,
)

CHANNELS = 4
SHAPE = (3, CHANNELS, 8, 6)

# ---- the table ---------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A layer to call.

    Attributes
    ----------
    make : callable
        ``make(channel_axis, **options)`` returns the layer, with the same weights in each call.
    inputs : int
        How many batches it takes.
    target : ndarray, optional
        Target of a loss.
    logical : bool
        True if results depend on the order of the axes of x: a view is compared with its C-contiguous copy.
    options : dict
        For `make`.
    """

    make: callable
    inputs: int = 1
    target: np.ndarray | None = None
    logical: bool = False
    options: dict = field(default_factory=dict)


def conv(axis, **options):
    return Conv2d(CHANNELS, CHANNELS, 3, channel_axis=axis, rng=0, **{"padding": 1} | options)


def abn(axis, strategy="inplace", activation="leaky_relu"):
    layer = ABN(CHANNELS, activation=activation, strategy=strategy, channel_axis=axis)
    layer.weight.data[...] = [0.5, -1.5, 1.0, 2.0]
    return layer


def small(name, axis, **options):
    """A small network of `inplace_abn.models`."""
    sizes = {
        "residual_network": {"widths": (4, 8), "blocks": 1},
        "encoder_decoder": {"widths": (4, 8)},
        "resnet": {"blocks": (1,), "width": 4},
        "mobilenet_v2": {"width": 0.25, "stages": ((1, 16, 1, 1), (6, 16, 2, 2))},
    }
    options = sizes[name] | {"channel_axis": axis, "rng": 0} | options
    return getattr(models, name)(CHANNELS, 3, **options)


def block(name, axis, strategy, outputs=CHANNELS, stride=1):
    style = models.Style(strategy=strategy, channel_axis=axis, rng=0)
    return getattr(models, name)(CHANNELS, outputs, stride, style=style)


class Twins:
    """Two processes with the same batch, of which this is one."""

    size, rank = 2, 0

    def all_gather(self, values):
        return np.stack([values, values])


class Fork(Graph):
    """Sums, products with a gate, and joined channels."""

    def __init__(self, axis, strategy):
        self.axis, self.first, self.second = axis, abn(axis, strategy), abn(axis, strategy)
        self.before, self.after = conv(axis), Conv2d(2 * CHANNELS, 3, 1, channel_axis=axis, rng=1)
        self.pool = GlobalAvgPool2d(keepdims=True, channel_axis=axis)

    def compute(self, x):
        left = self.first(self.before(x))
        right = self.second(layers.mul(left, self.pool(left)))
        joined = layers.concat([layers.add(left, right), right], channel_axis=self.axis)
        return self.after(joined)


def each_strategy(make, strategies=STRATEGIES, **options):
    return [Case(make, options={"strategy": strategy} | options) for strategy in strategies]


#: For variants of what is tested with every strategy.
TWO = ["standard", "inplace_2"]


LABELS = np.random.default_rng(5).integers(0, CHANNELS, (SHAPE[0], *SHAPE[2:]))
#: Cases by the name of the layer, block or network: every one of `inplace_abn.layers` and `models`.
CASES = {
    "ABN": each_strategy(abn),
    "InPlaceABN": [
        Case(lambda axis: InPlaceABN(CHANNELS, channel_axis=axis)),
        Case(lambda axis: InPlaceABN(CHANNELS, activation="silu", channel_axis=axis)),
    ],
    "SyncABN": each_strategy(
        lambda axis, strategy: layers.SyncABN(CHANNELS, strategy=strategy, channel_axis=axis, group=Twins()),
        TWO,
    ),
    "InPlaceABNSync": [
        Case(lambda axis: layers.InPlaceABNSync(CHANNELS, channel_axis=axis, group=Twins())),
    ],
    "Activation": [
        Case(lambda _: Activation("elu", 1.0)),
        Case(lambda _: Activation("relu", inplace=True)),
        Case(lambda _: Activation("silu")),
        Case(lambda axis: Activation("prelu", num_slopes=CHANNELS, channel_axis=axis)),
    ],
    "AvgPool2d": [Case(lambda axis: AvgPool2d(3, 2, 1, channel_axis=axis))],
    "MaxPool2d": [Case(lambda axis: MaxPool2d(3, 2, 1, channel_axis=axis))],
    "GlobalAvgPool2d": [
        Case(lambda axis: GlobalAvgPool2d(channel_axis=axis)),
        Case(lambda axis: GlobalAvgPool2d(keepdims=True, channel_axis=axis)),
    ],
    "Upsample": [
        Case(lambda axis: Upsample(scale_factor=2, channel_axis=axis)),
        Case(lambda axis: Upsample((5, 9), align_corners=True, channel_axis=axis)),
        Case(lambda axis: Upsample((5, 9), mode="nearest", channel_axis=axis)),
    ],
    "GroupNorm": [Case(lambda axis: GroupNorm(2, CHANNELS, channel_axis=axis))],
    "Conv2d": [
        Case(conv),
        Case(conv, options={"groups": CHANNELS}),
        Case(conv, options={"groups": 2, "stride": 2}),
        Case(lambda axis: Conv2d(CHANNELS, 5, 1, channel_axis=axis, rng=0)),
    ],
    "ConvTranspose2d": [
        Case(lambda axis: ConvTranspose2d(CHANNELS, 6, 3, 2, 1, channel_axis=axis, rng=0)),
        Case(lambda axis: ConvTranspose2d(CHANNELS, 6, 3, groups=2, channel_axis=axis, rng=0)),
    ],
    "Dropout": [Case(lambda _: Dropout(0.4, rng=0))],
    "Identity": [Case(lambda _: Identity())],
    "Flatten": [Case(lambda _: Flatten(), logical=True)],
    "Linear": [
        Case(lambda _: Sequential(Flatten(), Linear(int(np.prod(SHAPE[1:])), 3, rng=0)), logical=True)
    ],
    "CrossEntropy": [
        Case(lambda axis: CrossEntropy(channel_axis=axis), target=LABELS),
        Case(
            lambda axis: CrossEntropy(weight=np.arange(4.0), label_smoothing=0.1, channel_axis=axis),
            target=LABELS,
        ),
    ],
    "MSELoss": [Case(lambda _: MSELoss(), inputs=2)],
    "Sequential": each_strategy(
        lambda axis, strategy: Sequential(conv(axis), abn(axis, strategy), MaxPool2d(2, channel_axis=axis))
    ),
    "Graph": each_strategy(Fork),
    "Concat": each_strategy(
        lambda axis, strategy: Concat(
            Sequential(conv(axis), abn(axis, strategy)), abn(axis, strategy), Identity(), channel_axis=axis
        )
    ),
    "UNet": each_strategy(
        lambda axis, strategy: models.UNet(
            CHANNELS, 3, widths=(4, 8), strategy=strategy, channel_axis=axis, rng=0
        )
    ),
    "Recompute": each_strategy(lambda axis, strategy: Recompute(abn(axis, strategy), conv(axis))),
    "Residual": [
        *each_strategy(lambda axis, strategy: Residual(Sequential(abn(axis, strategy), conv(axis)))),
        *each_strategy(
            lambda axis, strategy: Residual(
                Sequential(conv(axis), abn(axis, strategy, "identity")),
                Sequential(conv(axis, groups=2), abn(axis, strategy, "identity")),
                preactivation=abn(axis, strategy),
                activation=Activation(inplace=True),
            )
        ),
    ],
    **{
        name: [
            *each_strategy(lambda axis, name=name, **options: block(name, axis, **options)),
            *each_strategy(
                lambda axis, name=name, **options: block(name, axis, **options), TWO, outputs=8, stride=2
            ),
        ]
        for name in ("preactivation_block", "postactivation_block", "inverted_residual")
    },
    **{
        name: each_strategy(lambda axis, name=name, **options: small(name, axis, **options))
        for name in ("residual_network", "encoder_decoder", "resnet", "mobilenet_v2")
    },
}
CASES["residual_network"] += each_strategy(
    lambda axis, **options: small("residual_network", axis, **options), TWO, block="postactivation"
)
CASES["resnet"].append(
    Case(lambda axis, **options: small("resnet", axis, **options), options={"recompute_stem": True})
)
#: In test_models_large.py. With images as small as here the last features of these networks have one pixel,
#: which has no layout; the gradient of a dense block is a slice of a larger array.
LARGE = {"wider_resnet", "densenet", "deeplabv3", "DenseBlock"}
#: `resnet` with other numbers of blocks and groups.
VARIANTS = {"resnet34", "resnet50", "resnet101", "resnet152", "resnext101", "resnext152"}
#: Bases and containers that are not called.
NOT_CALLED = {"Layer", "ModuleList", "ModuleDict"}

PARAMETERS = [
    pytest.param(case, id="-".join([name, *(str(value) for value in case.options.values()), str(number)]))
    for name, cases in CASES.items()
    for number, case in enumerate(cases)
]


def test_every_layer_block_and_network_is_in_the_table():
    known = {name for name in layers.__all__ if _is_layer(getattr(layers, name))}
    made = {name for name in models.__all__ if name != "Style"} - VARIANTS - LARGE
    assert known | made == set(CASES) | (NOT_CALLED & known)


def _is_layer(thing):
    return inspect.isclass(thing) and issubclass(thing, layers.Layer)


# ---- the four layouts of a batch ---------------------------------------------------------------------------


def lay_out(batch, channel_axis, memory_axis):
    """Return a batch (N, C, ...) with the channels at `memory_axis` in memory, seen at `channel_axis`."""
    memory = np.ascontiguousarray(np.moveaxis(batch, 1, memory_axis))
    return np.moveaxis(memory, memory_axis, channel_axis)


def assert_laid_out(array, channel_axis, memory_axis, what):
    memory = np.moveaxis(array, channel_axis, memory_axis)
    assert memory.flags.c_contiguous, f"{what}: strides {array.strides} of shape {array.shape}"


def run(case, channel_axis, memory_axis, *, contiguous=False):
    """Return result, gradients of the inputs and of the parameters, images with the axes (N, C, H, W)."""
    layer = case.make(channel_axis, **case.options)
    rng = np.random.default_rng(1)
    batches = [rng.standard_normal(SHAPE).astype(np.float32) for _ in range(case.inputs)]
    inputs = [lay_out(batch, channel_axis, memory_axis) for batch in batches]
    if contiguous:
        inputs = [np.ascontiguousarray(x) for x in inputs]
    z = layer(*inputs, *([] if case.target is None else [case.target]))
    if isinstance(z, float):
        found, dx = {"z": np.array(z)}, layer.backward()
    else:
        is_image = z.ndim == 4
        if is_image and not contiguous:
            assert_laid_out(z, channel_axis, memory_axis, "z")
        found = {"z": _seen_first(z, channel_axis).copy()}
        dz = rng.standard_normal(found["z"].shape).astype(np.float32)
        dx = layer.backward(lay_out(dz, channel_axis, memory_axis) if is_image else dz)
    for i, gradient in enumerate(dx if isinstance(dx, tuple) else (dx,)):
        if not contiguous:
            assert_laid_out(gradient, channel_axis, memory_axis, "dx")
        found[f"dx{i}"] = _seen_first(gradient, channel_axis)
    return found | {name: parameter.grad for name, parameter in layer.named_parameters()}


def _seen_first(array, channel_axis):
    return np.moveaxis(array, channel_axis, 1) if array.ndim == 4 else array


@pytest.mark.parametrize("memory_axis", [1, -1], ids=["first in memory", "last in memory"])
@pytest.mark.parametrize("case", PARAMETERS)
def test_layout_of_x_and_bits_of_a_contiguous_array(case, memory_axis):
    for channel_axis in (1, -1):
        got = run(case, channel_axis, memory_axis)
        if case.logical:
            want = run(case, channel_axis, memory_axis, contiguous=True)
        elif channel_axis != memory_axis:
            want = run(case, memory_axis, memory_axis)
        else:
            continue
        assert list(got) == list(want)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{name}, {channel_axis=}")


def test_dz_may_have_another_layout_if_no_normalization_reads_it():
    """A dz made by the user is usually C-contiguous; dx has the layout of x."""
    for name in ("AvgPool2d", "MaxPool2d", "Upsample", "GroupNorm", "Conv2d", "Dropout", "Activation"):
        for case in CASES[name]:
            layer, x = case.make(1), lay_out(np.ones(SHAPE, np.float32), 1, -1)
            z = layer(x.copy(order="K"))
            for overwrite in (False, True):
                dx = layer.backward(np.ones(z.shape, np.float32), overwrite=overwrite)
                assert_laid_out(dx, 1, -1, name)
                layer(x.copy(order="K"))
            layer.release()


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("strategy", TWO)
def test_gradcheck_takes_views(strategy, channel_axis):
    style = models.Style(strategy=strategy, channel_axis=channel_axis, dtype=np.float64, rng=0)
    x = lay_out(np.random.default_rng(2).standard_normal((2, 4, 3, 2)), channel_axis, -channel_axis)
    for make in (models.postactivation_block, models.inverted_residual):
        report = gradcheck(make(4, 4, style=style), x, samples=2)
        assert report.ok, report
