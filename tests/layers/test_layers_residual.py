"""A residual added by the normalization: results, gradients, locks, memory; blocks that are fused."""

import numpy as np
import pytest
from networks import CHECKPOINTS, STRATEGIES, abn, assert_close, conv, normal, run

from inplace_abn import functional, gradcheck, memory, models
from inplace_abn.layers import ABN, Activation, InPlaceABN, Parameter, Residual, Sequential, no_grad

IN_PLACE = ["inplace_1", "inplace_2"]
SHAPE = (3, 4, 5, 6)


def post(strategy, *, activation="leaky_relu", projected=False, first=()):
    """A post-activation block. `activation` is applied to the sum; None for no activation."""
    branch = Sequential(*first, conv(), abn(4, strategy), conv(seed=1), abn(4, strategy, "identity"))
    shortcut = Sequential(conv(4, 4, 1, seed=2), abn(4, strategy, "identity")) if projected else None
    options = {"num_slopes": 4, "activation_param": -0.5} if activation == "prelu" else {}
    end = activation and Activation(activation, inplace=True, dtype=np.float64, **options)
    return Residual(branch, shortcut, activation=end)


def apart(block):
    """The same block with separate sum and activation."""
    block.branch.append(Sequential(), "nothing")
    return block


# ---- one layer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "elu", "prelu"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_layer_with_a_residual_equals_layer_sum_and_activation(strategy, activation):
    x, r, dz = (normal(SHAPE, seed) for seed in range(3))
    layer, plain = abn(strategy=strategy, activation=activation), abn(activation="identity")
    end = Activation(activation, dtype=np.float64)
    want = end(plain(x) + r)
    z = layer(x.copy(), residual=r)
    np.testing.assert_allclose(z, want, atol=1e-12)
    dx, dr = layer.backward(dz)
    want_dr = end.backward(dz)
    np.testing.assert_allclose(dr, want_dr, atol=1e-12)
    np.testing.assert_allclose(dx, plain.backward(want_dr), atol=1e-11)
    np.testing.assert_allclose(layer.weight.grad, plain.weight.grad, atol=1e-11)
    if activation == "prelu":
        np.testing.assert_allclose(layer.slope.grad, end.slope.grad, atol=1e-11)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_of_layer_and_residual_against_finite_differences(strategy):
    x, r = normal((3, 4, 3)), normal((3, 4, 3), 1)
    report = gradcheck(abn(strategy=strategy), (x, r), samples=12)
    assert report.ok, report
    assert [row.name for row in report.rows][:4] == ["x", "residual", "weight", "bias"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_of_functions_with_residual_and_slope(strategy):
    def forward(x, weight, bias, residual, slope):
        arrays = {"residual": residual, "slope": slope, "activation": "prelu"}
        return functional.forward(x, weight=weight, bias=bias, strategy=strategy, **arrays)

    def backward(ctx, dz, *, overwrite=False):
        found = functional.backward(ctx, dz, overwrite=overwrite)
        return (*found, found.dresidual, found.dslope)

    x, r = normal((4, 3, 5)), normal((4, 3, 5), 1)
    inputs = x, normal(3, 2), normal(3, 3), r, np.array([0.25, -0.5, 1.5])
    report = gradcheck((forward, backward), inputs, samples=12)
    assert report.ok, report
    assert [row.name for row in report.rows] == ["x", "weight", "bias", "residual", "slope"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_residual_is_locked_until_the_backward(strategy):
    layer, r = abn(strategy=strategy), normal(SHAPE, 1)
    z = layer(normal(SHAPE), residual=r)
    with pytest.raises(ValueError, match="read-only"):
        r += 1
    layer.backward(np.ones_like(z))
    assert r.flags.writeable
    layer(normal(SHAPE), residual=r)
    layer.release()
    assert r.flags.writeable
    with no_grad():
        layer(normal(SHAPE), residual=r)
    assert r.flags.writeable


def test_a_residual_that_two_layers_keep_is_locked_until_both_backwards_have_run():
    first, second, r = abn(), abn(strategy="inplace"), normal(SHAPE, 1)
    z = first(normal(SHAPE), residual=r)
    second(normal(SHAPE, 2), residual=r)
    first.backward(np.ones_like(z))
    assert not r.flags.writeable
    second.backward(np.ones_like(z))
    assert r.flags.writeable


def test_a_read_only_residual_stays_read_only():
    layer, r = abn(strategy="inplace"), normal(SHAPE, 1)
    r.flags.writeable = False
    z = layer(normal(SHAPE), residual=r)
    layer.backward(np.ones_like(z))
    assert not r.flags.writeable


def test_a_kept_residual_is_not_overwritten_and_the_message_names_both_layers():
    net = Sequential({"sum": abn(strategy="inplace"), "next": InPlaceABN(4, dtype=np.float64)})
    r = normal(SHAPE, 1)
    net.sum(normal(SHAPE), residual=r)
    before = r.copy()
    with pytest.raises(ValueError, match=r"next \(InPlaceABN\).*sum \(ABN\) keeps that memory as 'residual'"):
        net.next(r)
    with pytest.raises(ValueError, match=r"'residual'"):
        Activation(inplace=True)(r[1:])
    assert np.array_equal(r, before)


@pytest.mark.parametrize("strategy", CHECKPOINTS)
def test_checkpoints_recompute_with_the_residual(strategy):
    layer, after, r = abn(strategy=strategy), conv(), normal(SHAPE, 1)
    z = layer(normal(SHAPE), residual=r)
    want = z.copy()
    with memory.ledger() as ledger:
        after(z)
    assert ledger.live == 0  # the convolution keeps nothing: the normalization can recompute z
    del z
    context = after.last_call
    np.testing.assert_allclose(context.saved["input"], want, atol=1e-12)


def test_a_residual_of_another_shape_is_refused_with_the_name_of_the_layer():
    net = Sequential({"abn": abn()})
    with pytest.raises(ValueError, match=r"abn \(ABN\).*residual"):
        net(normal(SHAPE), residual=normal((3, 4, 5, 5)))
    with pytest.raises(TypeError, match=r"abn \(ABN\).*residual"):
        net(normal(SHAPE), residual=5)


# ---- blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "identity", "leaky_relu", "elu", "prelu", "relu"])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_fused_block_equals_separate_sum_and_activation(strategy, projected, activation):
    x, dz = normal(SHAPE), normal(SHAPE, 1)
    block = post(strategy, projected=projected, activation=activation)
    other = apart(post("standard", projected=projected, activation=activation))
    assert list(block.state_dict()) == list(other.state_dict())
    want = run(other, x, dz)
    assert_close(run(block, x, dz), want, 1e-11)
    assert_close(run(block, x, dz, overwrite=True), want, 1e-11)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_in_place_blocks_with_an_inverse_are_fused(strategy):
    for activation in (None, "leaky_relu", "relu"):
        block = post(strategy, activation=activation)
        assert block._fused == (strategy in IN_PLACE and activation != "relu")
        assert not apart(block)._fused
    block = post(strategy)
    block.branch[-1].activation = "elu"
    assert not block._fused


def test_dz_is_not_changed_unless_overwrite_is_true():
    for block in (post("inplace"), post("inplace", projected=True), Residual(abn(4, "inplace", "identity"))):
        block(normal(SHAPE))
        dz = normal(SHAPE, 1)
        before = dz.copy()
        block.backward(dz)
        assert np.array_equal(dz, before)


def test_the_shortcut_of_a_branch_that_overwrites_its_input_is_a_copy():
    x, dz = normal(SHAPE), normal(SHAPE, 1)
    got = run(Residual(abn(4, "inplace", "identity"), activation=Activation()), x, dz)
    want = run(Residual(abn(4, "standard", "identity"), activation=Activation()), x, dz)
    assert_close(got, want)


@pytest.mark.parametrize("projected", [False, True])
def test_in_place_a_block_keeps_inputs_of_convolutions_its_result_and_a_projection(projected):
    """Only the result, the input of the next convolution, and the shortcut, that of the first one."""
    x = normal(SHAPE)
    block = post("inplace", projected=projected)
    with memory.ledger() as ledger:
        z = block(x)
        table = ledger.table()
    assert ledger.kept == (4 if projected else 3) * z.nbytes
    (row,) = [row for row in table if row.role == "residual"]
    assert row.nbytes == 0
    keeper = "shortcut.1 (ABN)" if projected else "branch.0 (Conv2d)"
    assert row.shared_with == (keeper, "z" if projected else "input")
    assert "that a normalization adds before the activation" in ledger.explain()


def test_a_block_of_blocks():
    x, dz = normal(SHAPE), normal(SHAPE, 1)
    make = lambda strategy: Sequential(  # noqa: E731
        post(strategy), Residual(Sequential(conv(), post(strategy, activation=None))), post(strategy)
    )
    assert_close(run(make("inplace"), x, dz), run(make("standard"), x, dz), 1e-10)


def test_an_error_in_a_block_releases_everything():
    x = normal(SHAPE)
    block = post("inplace")
    block.branch[-1].weight = Parameter(np.ones(3))
    with memory.ledger() as ledger, pytest.raises(ValueError, match="weight"):
        block(x)
    assert ledger.live == 0
    assert x.flags.writeable


def test_explain_names_a_residual_that_no_other_layer_keeps():
    layer = ABN(4, strategy="inplace")
    with memory.ledger() as ledger:
        layer(normal((2, 4, 3), dtype=np.float32), residual=normal((2, 4, 3), 1, np.float32))
    assert ledger.live == 2 * 2 * 4 * 3 * 4
    assert "a shortcut that is kept anyway" in ledger.explain()


def test_mobilenets_block_adds_its_input_without_an_activation():
    block = models.inverted_residual(4, 4, style=models.Style(dtype=np.float64, rng=0))
    assert block._fused
    report = gradcheck(block, normal((3, 4, 3, 3)), samples=6)
    assert report.ok, report
