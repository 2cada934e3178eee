"""Batches for tests: dtypes, memory layouts, sizes, instruction sets, and a run of forward and backward.

A batch is drawn as arrays of shape (N, C, ...) in the dtype under test, and laid out in memory afterwards.
Results come back as (N, C, ...) too, whatever the layout.
"""

import itertools
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from cases import in_turn
from keywords import as_parameters

from inplace_abn import _core, functional, reference

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

ISAS = list(functional.info()["isa_usable"])
without_ml_dtypes = pytest.mark.skipif(ml_dtypes is None, reason="ml_dtypes is not installed")
DTYPES = ["float32", "float64", "float16", pytest.param("bfloat16", marks=without_ml_dtypes)]
STRATEGIES = ["standard", "checkpoint", "checkpoint_xhat", "pre_activation", "inplace_1", "inplace_2"]
CHECKPOINTS = ["checkpoint", "checkpoint_xhat", "pre_activation"]  # with ctx.recompute
ACTIVATIONS = list(reference.ACTIVATIONS)
INVERTIBLE = [name for name, activation in reference.ACTIVATIONS.items() if activation.inverse]
# Parameter of each activation in the tests.
PARAM = dict.fromkeys(ACTIVATIONS, 1.0) | {"leaky_relu": 0.01, "elu": 0.75, "celu": 0.75}
SLOPES = 0.25, -0.5, 1.5, 0.0  # of prelu, channel by channel
SCHEMES = [
    (activation, strategy)
    for activation in ACTIVATIONS
    for strategy in STRATEGIES
    if reference.ACTIVATIONS[activation].inverse or reference.KEEPS[strategy] != "z"
]

# Activations tested with all combinations: those with tile kernels, and elu.
THOROUGH = ["identity", "leaky_relu", "elu", "relu"]
HARD = ["relu6", "hardsigmoid", "hardswish"]  # with tile kernels like relu; tested with every fourth case


def sampled(**axes):
    """Run the test with all combinations; for activations not in THOROUGH, with one in four.

    If two axes besides "activation" have four values each, the selected cases contain every pair of them.
    Those that differ in layout and strategy alone are one test.
    """
    inner = [name for name in ("layout", "strategy") if name in axes]
    outer = [name for name in axes if name not in inner]
    cases, parameters = {}, {}
    for numbered in itertools.product(*map(enumerate, axes.values())):
        case = {name: getattr(v, "values", [v])[0] for name, (_, v) in zip(axes, numbered, strict=True)}
        thorough = case["activation"] in THOROUGH or sum(i for i, _ in numbered) % 4 == 0
        if thorough and (case["activation"], case.get("strategy", "standard")) in SCHEMES:
            marks = [
                mark
                for name, (_, value) in zip(axes, numbered, strict=True)
                if name in outer
                for mark in getattr(value, "marks", ())
            ]
            test = tuple(case[name] for name in outer)
            parameters[test] = pytest.param(*test, marks=marks)
            cases.setdefault(test, []).append({name: case[name] for name in inner})

    def cases_of(**others):
        return cases[tuple(others[name] for name in outer)]

    return lambda test: pytest.mark.parametrize(outer, parameters.values())(in_turn(test, inner, cases_of))


def each_scheme(test):
    """Run the test with every activation, and in each of these tests with all strategies that support it."""

    def cases_of(activation, **others):
        return [{"strategy": strategy} for name, strategy in SCHEMES if name == activation]

    return pytest.mark.parametrize("activation", ACTIVATIONS)(in_turn(test, ["strategy"], cases_of))


# Sizes near one, two and four vectors of every width, and near the size of a block.
CHANNELS = [1, 2, 3, 5, 15, 16, 17, 31, 33, 65, 129]
SPATIAL = [1, 2, 7, 15, 16, 17, 31, 33, 49, 65]
SHAPES = [(2 + (c + s) % 2, c, s) for c in CHANNELS for s in SPATIAL]
SHAPES += [(n, c, s) for s in (4095, 4097, 70001) for n, c in ((1, 3), (2, 1))]
SHAPES += [(1, 2, 2), (1, 1, 65), (7, 129), (2, 1), (33, 17), (2, 3, 4, 5), (3, 5, 1, 7), (2, 3, 2, 3, 4)]


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def parameter_dtype(name):
    return np.dtype("float64" if name == "float64" else "float32")


# ---- memory layouts: (N, C, ...) -> (a copy in this layout, its channel_axis) ------------------------------


def channels_first(a):
    return a.copy(), 1


def channels_last(a):
    return np.moveaxis(a, 1, -1).copy("C"), -1


def channels_last_seen_as_first(a):
    return np.moveaxis(channels_last(a)[0], -1, 1), 1


def channels_first_sliced(a):
    """Every second sample and every second channel of a larger array."""
    larger = np.full((2 * a.shape[0] + 1, 2 * a.shape[1] + 1, *a.shape[2:]), 77, a.dtype)
    view = larger[1::2, 1::2]
    view[...] = a
    return view, 1


def channels_last_sliced(a):
    """Every second sample and a range of channels of a larger array."""
    larger = np.full((2 * a.shape[0] + 1, *a.shape[2:], a.shape[1] + 3), 77, a.dtype)
    view = larger[1::2, ..., 2:-1]
    view[...] = np.moveaxis(a, 1, -1)
    return view, -1


LAYOUTS = {
    "first": channels_first,
    "last": channels_last,
    "last_seen_as_first": channels_last_seen_as_first,
    "first_sliced": channels_first_sliced,
    "last_sliced": channels_last_sliced,
}


def lay_out(a, layout):
    return LAYOUTS[layout](a)[0]


# ---- drawing -----------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Of shape (N, C, ...) in the dtype under test, and of shape (C,) in that of its parameters."""

    x: np.ndarray
    dz: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    residual: np.ndarray | None = None
    slope: np.ndarray | None = None  # of prelu: `slope_of` gives one where there is none

    def slope_of(self, activation):
        """Return the argument `slope` of the activation."""
        if activation != "prelu" or self.slope is not None:
            return self.slope
        return np.resize(np.array(SLOPES, self.weight.dtype), len(self.weight))


@cache
def random_batch(shape, dtype, seed=0, mean=2.0, spread=1.0):
    """Return read-only arrays: |mean| up to `mean`, standard deviations near `spread`, |weight| 0.25 to 2."""
    rng = np.random.default_rng(seed)
    channels = shape[1]
    each = (1, channels) + (1,) * (len(shape) - 2)
    x = rng.normal(size=shape) * rng.uniform(0.5, 2, each) * spread + rng.uniform(-mean, mean, each)
    weight = rng.uniform(0.25, 2, channels) * rng.choice([-1, 1], channels)
    full, parameter = dtype_of(dtype), parameter_dtype(dtype)
    batch = Batch(
        x.astype(full), rng.normal(size=shape).astype(full), weight.astype(parameter),
        rng.normal(size=channels).astype(parameter),
    )  # fmt: skip
    for array in batch[:4]:
        array.flags.writeable = False
    return batch


def with_residual(batch, scale=1.0, seed=100):
    """Return the batch with a residual that is drawn like dz."""
    residual = scale * np.random.default_rng(seed).normal(size=batch.x.shape)
    return batch._replace(residual=residual.astype(batch.x.dtype))


# ---- running -----------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Results of forward and backward, as (N, C, ...)."""

    z: np.ndarray
    dx: np.ndarray
    dweight: np.ndarray | None
    dbias: np.ndarray | None
    dslope: np.ndarray | None = None
    dresidual: np.ndarray | None = None


def forward(batch, layout="first", *, affine=True, **options):
    """Forward of the compiled module over a copy of the batch: z as it lies in memory, and the context."""
    x, axis = LAYOUTS[layout](batch.x)
    parameters = (batch.weight, batch.bias) if affine else (None, None)
    residual = None if batch.residual is None else lay_out(batch.residual, layout)
    slope = batch.slope_of(options.get("activation"))
    return _core.forward(
        x, **as_parameters(parameters), channel_axis=axis, residual=residual, slope=slope, **options
    )


def run(batch, layout="first", *, isa=None, threads=None, overwrite=False, **options):
    """Forward and backward of the compiled module over fresh copies of the batch."""
    dz = lay_out(batch.dz, layout)
    machine = {"isa": isa, "threads": threads}
    z, ctx = forward(batch, layout, **machine, **options)
    z_before_backward = np.moveaxis(z, ctx.channel_axis, 1).copy()
    gradients = _core.backward(ctx, dz, overwrite=overwrite, **machine)
    dx, *of_channels, dresidual = gradients
    if dresidual is not None:
        dresidual = np.moveaxis(dresidual, ctx.channel_axis, 1)
    return Run(z_before_backward, np.moveaxis(dx, ctx.channel_axis, 1), *of_channels, dresidual)


def relative_l2(got, want):
    """|got - want| / |want|."""
    got, want = np.asarray(got, np.longdouble), np.asarray(want, np.longdouble)
    return float(np.sqrt(((got - want) ** 2).sum() / (want**2).sum()))
