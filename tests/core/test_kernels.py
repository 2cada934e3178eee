"""Forward and backward against the reference: every kernel, odd sizes, batches drawn by hypothesis."""

import numpy as np
import pytest
from batches import (
    ACTIVATIONS,
    DTYPES,
    ISAS,
    LAYOUTS,
    PARAM,
    SCHEMES,
    SHAPES,
    STRATEGIES,
    dtype_of,
    parameter_dtype,
    random_batch,
    run,
    sampled,
)
from bounds import assert_backward, assert_forward, expected, expected_of_random, without_kinks
from cases import each
from hypothesis import given
from hypothesis import strategies as st

from inplace_abn import reference

pytestmark = [pytest.mark.arithmetic, pytest.mark.essential]


@sampled(isa=ISAS, layout=LAYOUTS, dtype=DTYPES, activation=ACTIVATIONS, strategy=STRATEGIES)
def test_every_kernel(isa, layout, dtype, activation, strategy):
    want = expected_of_random((3, 37, 5, 7), dtype, activation, reference.KEEPS[strategy])
    options = {"activation": activation, "activation_param": PARAM[activation], "strategy": strategy}
    got = run(want.batch, layout, isa=isa, **options)
    assert got.z.dtype == got.dx.dtype == dtype_of(dtype)
    assert got.dweight.dtype == got.dbias.dtype == parameter_dtype(dtype)
    assert_forward(got, want)
    assert_backward(got, want)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("isa", ISAS)
@each(shape=SHAPES)
def test_every_size(isa, layout, shape):
    want = expected_of_random(shape, "float32", "leaky_relu", "z")
    got = run(want.batch, layout, isa=isa, overwrite=True)
    assert_forward(got, want)
    assert_backward(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@each(shape=[(1, 17, 33), (5, 3, 2049), (33, 31), (2, 5, 65)], layout=["first", "last"])
def test_tails_of_every_dtype(isa, dtype, layout, shape):
    want = expected_of_random(shape, dtype, "elu", "z")
    got = run(want.batch, layout, isa=isa, activation="elu", activation_param=PARAM["elu"])
    assert_forward(got, want)
    assert_backward(got, want)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)).filter(
        lambda shape: shape[0] * shape[2] * shape[3] > 1
    ),
    dtype=st.sampled_from(["float32", "float64", "float16"]),
    layout=st.sampled_from(list(LAYOUTS)),
    isa=st.sampled_from(ISAS),
    scheme=st.sampled_from(SCHEMES),
    param=st.floats(0.001, 3),
    eps=st.floats(1e-12, 1),
    mean=st.floats(0, 100),
    spread=st.floats(0.1, 100),
    affine=st.booleans(),
    training=st.booleans(),
    overwrite=st.booleans(),
    seed=st.integers(0, 3),
)
def test_any_batch(
    shape, dtype, layout, isa, scheme, param, eps, mean, spread, affine, training, overwrite, seed
):
    activation, strategy = scheme
    keeps = reference.KEEPS[strategy]
    batch = random_batch.__wrapped__(shape, dtype, seed, mean, spread)
    running = batch.bias + 1, np.abs(batch.weight)
    statistics = None if training else running
    terms = {"activation": activation, "param": param, "eps": eps, "affine": affine, "statistics": statistics}
    batch = without_kinks(batch, dtype, keeps, **terms)
    want = expected(batch, dtype, keeps, **terms)
    got = run(
        batch, layout, isa=isa, activation=activation, activation_param=param, eps=eps, strategy=strategy,
        affine=affine, overwrite=overwrite, training=training, running_mean=running[0],
        running_var=running[1], momentum=0,
    )  # fmt: skip
    assert_forward(got, want)
    assert_backward(got, want, affine)
