"""The entries of the registry in the ledger."""

import numpy as np
import pytest
from entries import added, nothing_stays  # noqa: F401

from inplace_abn import functional, layers, memory

pytestmark = [pytest.mark.essential, pytest.mark.usefixtures("nothing_stays")]


def batch(seed=0, shape=(4, 3, 5)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def listed(ledger):
    return [(row.layer, row.role, row.nbytes) for row in ledger.table("now")]


def test_the_ledger_counts_contexts_of_functional():
    x, residual = batch(shape=(4, 8, 16)), batch(1, (4, 8, 16))
    with memory.ledger() as ledger:
        z, ctx = functional.forward(x, residual=residual, activation="silu")
        assert ledger.live == ctx.nbytes > 2 * x.nbytes
        assert listed(ledger)[:2] == [
            ("functional.forward", "z", x.nbytes), ("functional.forward", "residual", x.nbytes),
        ]  # fmt: skip
        functional.backward(ctx, np.ones_like(z))
        assert ledger.live == 0
        _, ctx = functional.normalize(
            batch(), mean=np.zeros(3), var=np.ones(3), count=20, strategy="standard"
        )
        assert listed(ledger) == [("functional.normalize", "x", ctx.nbytes)]
        ctx.release()
        _, ctx = functional.forward(x)
        del ctx
        assert ledger.live == 0
    assert ledger.kept > 2 * x.nbytes


def test_an_array_kept_by_functional_and_a_layer_is_counted_once():
    net, x = layers.Sequential(layers.ABN(3), layers.InPlaceABN(3)), batch()
    with memory.ledger() as ledger:
        net(x)
        assert listed(ledger) == [("0 (ABN)", "x", x.nbytes), ("1 (InPlaceABN)", "z", x.nbytes)]
        assert "functional" not in str(ledger.table())
        net.release()
        assert ledger.live == 0
        with layers.no_grad():
            net(batch())
    assert ledger.kept == 2 * x.nbytes


def test_nested_ledgers_and_earlier_contexts():
    _, before = functional.forward(batch(), strategy="standard")
    with memory.ledger() as outer:
        with memory.ledger() as inner:
            _, ctx = functional.forward(batch())
            assert inner.live == outer.live == ctx.nbytes
        ctx.release()
        before.release()
        assert (inner.live, outer.live) == (inner.kept, 0)
    functional.forward(batch())
    assert outer.live == 0


def test_a_ledger_that_fails_fails_no_call(monkeypatch):
    reported = []
    monkeypatch.setattr("sys.unraisablehook", lambda problem: reported.append(problem.exc_value))
    with memory.ledger() as ledger:
        monkeypatch.setattr(ledger, "_events", None)
        z, ctx = functional.forward(batch())
        functional.backward(ctx, np.ones_like(z))
    assert [type(error) for error in reported] == [AttributeError, AttributeError]
