"""Peers of the benchmarks compute the same layer, and are measured where they are installed."""

import numpy as np
import pytest
from test_benchmarks import SHAPES, positive, run_limit, targets

from benchmarks import accuracy, onednn, peers
from benchmarks.contestants import Batch, InPlaceABN


@pytest.mark.torch
def test_pytorch_runs_silu_with_default_settings(tmp_path):
    pytest.importorskip("torch")
    content = run_limit(
        tmp_path, "--shapes", SHAPES[0], "--peers", "torch-eager", "--activations", "silu", "gelu"
    )
    assert {run["environment"] for run in content["runs"]} == {"as-is"}
    for row in content["summary"]["activations"]:
        assert (row["peer"] is not None) == (row["name"] == "silu")
        assert row["peer"] is None or positive(row["peer"]["times"]["value"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "peer", [pytest.param(name, marks=[pytest.mark.torch] * name.startswith("torch")) for name in peers.PEERS]
)
def test_a_peer_is_measured(peer, tmp_path):
    if peer not in peers.installed():
        pytest.skip(f"{peer} is not installed")
    content = run_limit(tmp_path, "--shapes", SHAPES[0], "--peers", peer, "--limit")
    assert not any("was not measured" in note for note in content["summary"]["notes"])
    environments = {run["environment"] for run in content["runs"]}
    rows = content["summary"]["peers"]
    assert {(row["layout"], row["environment"], row["peer"]) for row in rows} == {
        (layout, environment, peer) for layout in targets.LAYOUTS for environment in environments
    }
    assert all(positive(row["times"]["value"]) for row in rows)


def run_jax(batch, threads):
    peer = peers.Jax(batch, threads)
    peer.both()
    z, (dx, dweight, _), *_ = peer.results
    return {"z": z, "dx": dx, "dweight": dweight}


@pytest.mark.parametrize("layout", targets.LAYOUTS)
@pytest.mark.parametrize(
    ("module", "theirs"),
    [
        pytest.param("torch", accuracy.run_torch, marks=pytest.mark.torch),
        pytest.param("jax", run_jax, marks=pytest.mark.slow),
    ],
)
def test_a_peer_computes_the_same_layer(module, theirs, layout):
    pytest.importorskip(module)
    batch = Batch((4, 6, 5, 5), layout)
    want = theirs(batch, threads=1)
    for name, ours in accuracy.run(batch, threads=1).items():
        np.testing.assert_allclose(ours, want[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", targets.LAYOUTS)
@pytest.mark.parametrize("peer", ["onednn", "onednn-blocked"])
def test_onednn_computes_batch_norm_with_relu(peer, layout):
    if peer not in peers.installed():
        pytest.skip("oneDNN's library is not installed")
    if not peers.takes_part(peer, (4, 32, 5, 5), layout):
        pytest.skip("channels-first only")
    batch = Batch((4, 32, 5, 5), layout)
    make, _ = peers.PEERS[peer]
    blocked = peer == "onednn-blocked"
    peer = make(batch, threads=1)
    for _, call in peer.run():
        call()
    layer = InPlaceABN(batch, 1, activation="relu", strategy="standard")
    layer.forward()
    layer.backward()
    for ours, theirs in (
        (layer.z, peer.z),
        (layer.gradients.dx, peer.dx),
        (layer.gradients.dweight, peer.dweight),
    ):
        if blocked and ours.ndim == 4:
            ours = onednn.to_blocks(ours, onednn.block())
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_unavailable_peer_is_named_and_the_others_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DNNL_LIBRARY", __file__)  # no shared library
    content = run_limit(
        tmp_path, "--shapes", SHAPES[0], "--layouts", "channels-first", "--peers", "onednn", "--limit"
    )
    assert content["summary"]["limit"]
    assert content["summary"]["peers"] == []
    assert any(note.startswith("oneDNN, ReLU is not available: ") for note in content["summary"]["notes"])
    assert "- oneDNN, ReLU is not available: " in capsys.readouterr().out
