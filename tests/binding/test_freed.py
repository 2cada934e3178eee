"""What calls keep is freed by their backward, by an error and by `release`; messages say so."""

import numpy as np
import pytest
from entries import added, no_offers_remain, nothing_stays  # noqa: F401
from networks import STRATEGIES, abn, chain, conv, normal

from inplace_abn.layers import (
    Layer,
    LayerContext,
    Sequential,
    no_grad,
)

SHAPE = (2, 4, 3, 3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_contexts_are_freed_as_soon_as_their_backward_ran(strategy):
    live = []

    class Probe(Layer):
        def forward(self, ctx, x):
            return x.copy()

        def gradients(self, ctx, dz, *, overwrite=False):
            live.append(added())
            return dz

    net = Sequential(Probe(), *chain(strategy), Probe(), *chain(strategy), Probe())
    net(normal(SHAPE))
    net.backward(normal(SHAPE))
    assert live[0] > live[1] > live[2] == 0


def test_a_second_backward_names_the_layer():
    net = Sequential({"abn": abn(4, "inplace")})
    net(normal(SHAPE))
    net.backward(normal(SHAPE))
    for layer, name in ((net.abn, r"abn \(ABN\)"), (net, "Sequential")):
        with pytest.raises(
            RuntimeError, match=f"^{name}: .*the backward has run already.*run the forward again"
        ):
            layer.backward(normal(SHAPE))


def test_backward_without_forward():
    with pytest.raises(
        RuntimeError, match=r"Conv2d: .*the layer was not called; call it before its backward$"
    ):
        conv().backward(normal(SHAPE))
    layer = conv()
    with no_grad():
        layer(normal(SHAPE))
    with pytest.raises(
        RuntimeError, match=r"it was called inside no_grad\(\), .*; run the forward outside of it$"
    ):
        layer.backward(normal(SHAPE))


def test_a_freed_context_names_its_operation():
    ctx = LayerContext("square")
    ctx.save_for_backward(input=normal((2, 2)))
    ctx.release()
    with pytest.raises(
        RuntimeError, match=r"square: the context of this call is freed.*run the forward again$"
    ):
        _ = ctx.saved


def test_the_message_about_no_grad_says_where_to_run_the_forward():
    with no_grad():
        ctx = LayerContext("square")
        ctx.save_for_backward(input=normal((2, 2)))
    with pytest.raises(RuntimeError, match=r"square: this call was made inside no_grad\(\).* outside of it$"):
        _ = ctx.saved


def test_the_backward_can_be_repeated_after_a_refused_gradient():
    layer = abn(4, "inplace")
    layer(normal(SHAPE))
    with pytest.raises(
        ValueError, match=r"ABN: dz must be of shape \(2, 4, 3, 3\), the shape of the result .*, got \(2"
    ):
        layer.backward(normal((2, 4, 3, 4)))
    with pytest.raises(TypeError, match=r"dz must be float64, .*; pass dz.astype\(numpy.float64\)"):
        layer.backward(normal(SHAPE, dtype=np.float32))
    with pytest.raises(TypeError, match=r"dz must be a numpy.ndarray, got list"):
        layer.backward([1.0])
    layer.backward(normal(SHAPE))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_error_inside_a_network_releases_everything(strategy):
    net, x = Sequential(*chain(strategy, 2), conv(5, 4)), normal(SHAPE)
    with pytest.raises(ValueError, match=r"^4 \(Conv2d\): "):
        net(x)
    assert added() == 0
    assert x.flags.writeable
    with pytest.raises(RuntimeError, match=r"0 \(ABN\): .*its forward failed"):
        net[0].backward(normal(SHAPE))


def test_an_error_inside_a_backward_releases_everything():
    class Fails(Layer):
        def forward(self, ctx, x):
            return x.copy()

        def gradients(self, ctx, dz, *, overwrite=False):
            raise ArithmeticError("it fails")

    net = Sequential(*chain("inplace"), Fails(), conv())
    net(normal(SHAPE))
    with pytest.raises(ArithmeticError, match="it fails"):
        net.backward(normal(SHAPE))
    assert added() == 0


def test_release():
    net, x = chain("inplace", 2), normal(SHAPE)
    net(x)
    assert net.release() is net
    assert x.flags.writeable
    assert added() == 0
    with pytest.raises(RuntimeError, match="its saved arrays were released"):
        net.backward(normal(SHAPE))
