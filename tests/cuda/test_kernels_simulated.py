"""Layers on a simulated GPU against the reference: arithmetic, indices, guarded channels, thread order."""

import ctypes

import numpy as np
import pytest
from batches import ACTIVATIONS, INVERTIBLE, PARAM, SLOPES, dtype_of, parameter_dtype, without_ml_dtypes
from simulated import Layer, needs_compiler

from inplace_abn import reference

pytestmark = [needs_compiler, pytest.mark.usefixtures("simulated")]

BFLOAT16 = pytest.param("bfloat16", marks=without_ml_dtypes)
# z, dx, dweight: the norm of the error divided by that of the result.
BOUNDS = {
    "float32": (2e-7, 4e-7, 1e-6),
    "float64": (1e-15, 1e-14, 1e-14),
    "float16": (4e-4, 2e-3, 2e-3),
    "bfloat16": (3e-3, 2e-2, 2e-2),
}
# Planes with vectors of every width; tiles of whole channels; channels-last with a tail, and with several
# tiles.
SHAPES = {
    "planes": ((2, 3, 2048), False),
    "planes of odd length": ((3, 2, 1025), False),
    "planes, many parts": ((2, 1, 40000), False),
    "images of 49": ((9, 8, 49), False),
    "images of 49, last tile in part": ((33, 20, 49), False),
    "images of 2": ((40, 96, 2), False),
    "channels last": ((2, 64, 35), True),
    "channels last, odd": ((3, 5, 50), True),
    "channels last, several tiles": ((2, 336, 30), True),
    "no spatial dimensions": ((70, 24, 1), False),
}
PIECEWISE = ["identity", "leaky_relu", "prelu"]


def error(got, wanted):
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert np.isfinite(got).all()
    return np.linalg.norm(got - wanted) / max(np.linalg.norm(wanted), 1e-300)


class Case:
    """Random arrays of a case, the layer's results, and those of the reference in float64."""

    def __init__(self, dtype, activation, strategy, shape, channels_last, *, residual=False, guard=0,
                 training=True, weight=None):  # fmt: skip
        random = np.random.default_rng(3)
        n, c, s = shape
        self.axis = -1 if channels_last else 1
        dims = (n, s, c) if channels_last else shape
        self.x, self.dz, self.r = (random.normal(size=dims).astype(dtype_of(dtype)) for _ in range(3))
        # The gradient depends on x, so that no sum is much smaller than its terms.
        self.dz = (self.dz.astype(np.float64) + self.x).astype(dtype_of(dtype))
        self.x = (self.x.astype(np.float64) * 3 + 1).astype(dtype_of(dtype))
        of = parameter_dtype(dtype)
        self.weight = (
            random.uniform(0.5, 2, c).astype(of) * random.choice([-1, 1], c) if weight is None else weight
        )
        self.weight = self.weight.astype(of)
        self.bias = random.normal(size=c).astype(of)
        self.mean, self.var = np.full(c, 1, of), np.full(c, 9, of)
        slopes = np.resize(SLOPES if guard else SLOPES[:1], c).astype(of)
        self.slope = slopes if activation == "prelu" else None
        self.layer = Layer(
            dtype,
            activation,
            strategy,
            shape,
            channels_last=channels_last,
            residual=residual,
            guard=guard,
            param=PARAM[activation],
            training=training,
        )
        self.settings = {
            "weight": self.weight.astype(np.float64),
            "bias": self.bias.astype(np.float64),
            "activation": activation,
            "activation_param": PARAM[activation],
            "channel_axis": self.axis,
            "training": training,
            "running_mean": self.mean.astype(np.float64),
            "running_var": self.var.astype(np.float64),
            "slope": None if self.slope is None else self.slope.astype(np.float64),
            "strategy": "standard",
            "residual": self.r.astype(np.float64) if residual else None,
        }
        self.residual = self.r if residual else None

    def run(self):
        kept = self.x.copy()
        z = kept if self.is_inplace else np.full_like(kept, np.nan)
        self.running = self.mean.copy(), self.var.copy()
        self.layer.forward(
            kept,
            z,
            weight=self.weight,
            bias=self.bias,
            slope=self.slope,
            residual=self.residual,
            running_mean=self.running[0],
            running_var=self.running[1],
        )
        self.z, self.kept = z.copy(), kept
        self.dr = np.full_like(self.dz, np.nan) if self.residual is not None else None
        self.got = self.layer.backward(kept, self.dz, residual=self.residual, residual_gradient=self.dr)
        return self

    def check(self, bounds):
        z, ctx = reference.forward(self.x.astype(np.float64), **self.settings)
        wanted = reference.backward(ctx, self.dz.astype(np.float64))
        assert error(self.z, z) <= bounds[0]
        dx, dweight, dbias, dslope = self.got
        assert error(dx, wanted.dx) <= bounds[1]
        assert error(dweight, wanted.dweight) <= bounds[2]
        assert error(dbias, wanted.dbias) <= bounds[2]
        if wanted.dslope is not None:
            assert error(dslope, wanted.dslope) <= bounds[2]
        if self.dr is not None:
            assert error(self.dr, wanted.dresidual) <= bounds[1]


def case(dtype, activation, strategy, *args, **more):
    made = Case(dtype, activation, strategy, *args, **more)
    made.is_inplace = strategy == "inplace"
    return made.run()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", BFLOAT16])
def test_layer_agrees_with_the_reference(dtype, name):
    case(dtype, "leaky_relu", "inplace", *SHAPES[name]).check(BOUNDS[dtype])


@pytest.mark.slow  # a compilation each
@pytest.mark.parametrize("strategy", ["inplace", "pre_activation", "checkpoint_xhat", "standard"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, strategy):
    if strategy == "inplace" and activation not in PIECEWISE:
        pytest.skip("on a GPU inplace serves identity, leaky_relu and prelu")
    for name in ("planes", "channels last"):
        case("float32", activation, strategy, *SHAPES[name], residual=True).check((3e-7, 1e-6, 2e-6))


@pytest.mark.parametrize("name", ["planes", "images of 49", "channels last"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", ["inplace", "pre_activation", "checkpoint_xhat", "standard"])
def test_residual_and_given_statistics(strategy, training, name):
    ran = case("float32", "leaky_relu", strategy, *SHAPES[name], residual=True, training=training)
    ran.check((2e-7, 4e-7, 1e-6))
    if not training:
        assert (ran.running[0] == ran.mean).all()


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16])
@pytest.mark.parametrize("strategy", ["inplace", "pre_activation"])
@pytest.mark.parametrize("activation", ["leaky_relu", "prelu"])
@pytest.mark.parametrize("name", ["planes", "images of 49", "channels last"])
def test_guarded_channels_are_exact(activation, strategy, name, dtype):
    shape, last = SHAPES[name]
    weight = np.resize([0, 1, 1e-6, -1], shape[1])
    ran = case(dtype, activation, strategy, shape, last, residual=True, weight=weight, guard=shape[1])
    ran.check(BOUNDS[dtype] if dtype == "bfloat16" else (2e-7, 6e-7, 1e-6))
    assert ran.layer.report[0] == (np.abs(weight) < 1e-3).sum() + (
        (ran.slope[np.abs(weight) > 1e-3] <= 0).sum()
        if activation == "prelu" and strategy == "inplace"
        else 0
    )


def test_a_full_side_buffer_is_reported_and_loses_only_what_it_must():
    shape, last = SHAPES["channels last"]
    weight = np.ones(shape[1])
    weight[3:7] = 0
    ran = case("float32", "leaky_relu", "inplace", shape, last, weight=weight, guard=3)
    assert ran.layer.report.tolist() == [4, 1]
    slots = ran.layer.saved[-4 * shape[1] :].view(np.int32)
    assert sorted(slots[3:7]) == [-2, 0, 1, 2]
    lost = slots == -2
    assert (ran.got[1][lost] == 0).all()
    assert (ran.got[1][~lost] != 0).all()
    _, ctx = reference.forward(ran.x.astype(np.float64), **ran.settings)
    assert (
        error(ran.got[0], reference.backward(ctx, ran.dz.astype(np.float64)).dx) < 4e-7
    )  # dx of weight 0 is 0


@pytest.mark.parametrize("name", SHAPES)
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(simulated, name):
    reverse = ctypes.c_int.in_dll(simulated, "simulated_reverse")
    first = case("float32", "prelu", "inplace", *SHAPES[name], residual=True)
    reverse.value = 1
    second = case("float32", "prelu", "inplace", *SHAPES[name], residual=True)
    reverse.value = 0
    for a, b in zip(
        (first.z, *first.got, *first.running), (second.z, *second.got, *second.running), strict=True
    ):
        assert a.tobytes() == b.tobytes()


def test_statistics_far_from_zero():
    ran = case("float32", "identity", "inplace", (4, 2, 4096), False)
    ran.x = (np.random.default_rng(1).normal(size=ran.x.shape) + 1e4).astype(np.float32)
    ran.run()
    ran.check((2e-7, 4e-7, 1e-6))
    x = ran.x.astype(np.float64)
    count = x.size / 2
    np.testing.assert_allclose(ran.running[0], 0.9 + 0.1 * x.mean((0, 2)), rtol=2e-7)
    np.testing.assert_allclose(ran.running[1], 0.9 * 9 + 0.1 * x.var((0, 2)) * count / (count - 1), rtol=2e-7)


def test_recomputed_z_has_the_same_bits():
    ran = case("float16", "relu", "pre_activation", *SHAPES["planes"])
    assert (np.maximum(ran.kept, 0) == ran.z).all()


assert set(PIECEWISE) < set(INVERTIBLE)
