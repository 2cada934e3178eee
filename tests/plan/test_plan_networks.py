"""Plans of networks against the ledger, to the byte, and against tracemalloc."""

import gc
import tracemalloc

import numpy as np
import pytest

from inplace_abn import layers, memory, models, optim
from inplace_abn._plan.step import planner_of

SMALL = {"blocks": (1, 1, 1, 1), "width": 4}
NETWORKS = {
    "resnet": (lambda **style: models.resnet(3, 10, (1, 2), width=4, **style), (2, 3, 32, 32)),
    "resnet stem again": (
        lambda **style: models.resnet(3, 10, (1, 1), width=4, recompute_stem=True, **style),
        (2, 3, 32, 32),
    ),
    "resnet basic": (
        lambda **style: models.resnet(3, 10, (1, 1), width=4, block="basic", **style),
        (2, 3, 32, 32),
    ),
    "resnext": (
        lambda **style: models.resnet(3, 10, (1, 1), width=8, groups=4, group_width=2, **style),
        (2, 3, 32, 32),
    ),
    "wider_resnet": (
        lambda **style: models.wider_resnet(3, 10, (1,) * 6, width=1 / 32, **style),
        (2, 3, 64, 64),
    ),
    "densenet": (lambda **style: models.densenet(3, 10, (2, 2), growth=4, width=8, **style), (2, 3, 32, 32)),
    "deeplabv3": (
        lambda **style: models.deeplabv3(3, 5, channels=8, body_options=SMALL, **style),
        (2, 3, 32, 32),
    ),
    "mobilenet_v2": (lambda **style: models.mobilenet_v2(3, 10, width=0.125, **style), (2, 3, 64, 64)),
    "residual_network": (
        lambda **style: models.residual_network(1, 10, widths=(4, 8), **style),
        (2, 1, 16, 16),
    ),
    "encoder_decoder": (
        lambda **style: models.encoder_decoder(1, 10, widths=(4, 8), **style),
        (2, 1, 16, 16),
    ),
    "UNet": (lambda **style: models.UNet(1, 3, widths=(4, 8), **style), (2, 1, 16, 16)),
}
LARGE = (
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext101",
    "resnext152",
    "densenet",
    "deeplabv3",
)
#: "checkpoint_xhat" and "pre_activation" keep what "checkpoint" keeps, under another name.
CASES = [(name, strategy) for name in NETWORKS for strategy in ("standard", "checkpoint", "inplace")]
CASES += [("resnet", "checkpoint_xhat"), ("resnet", "pre_activation"), ("UNet", "pre_activation")]


def ledger_of(net, shape, dtype=np.float32):
    """Return the ledger of one forward with random images."""
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    with memory.ledger() as ledger:
        z = net(x)
    net.release()
    return ledger, z


def check_kept(make, shape, strategy, dtype=np.float32, axis=1):
    ledger, _ = ledger_of(make(strategy=strategy, rng=0), shape, dtype)
    planner = planner_of(lambda chosen: make(strategy=chosen, rng=0), strategy, shape, loss=None, axis=axis)
    step = planner.step(shape, dtype)
    assert [tuple(row) for row in step.rows] == [tuple(row) for row in ledger.table()]
    assert step.kept == ledger.kept


@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_kept_arrays_are_those_of_the_ledger(name, strategy):
    check_kept(*NETWORKS[name], strategy)


@pytest.mark.parametrize(("dtype", "strategy"), [(np.float16, "checkpoint"), (np.float64, "inplace")])
@pytest.mark.parametrize("name", ["resnet", "densenet"])
def test_kept_arrays_of_other_dtypes(name, dtype, strategy):
    make, shape = NETWORKS[name]
    parameters = np.float64 if dtype == np.float64 else np.float32
    check_kept(lambda **style: make(dtype=parameters, **style), shape, strategy, dtype)


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_kept_arrays_of_other_activations(activation):
    # silu keeps a branch mask; float64 has no escaped elements, which depend on the data.
    make, shape = NETWORKS["resnet"]
    strategy = "inplace" if activation == "silu" else "pre_activation"
    check_kept(
        lambda **style: make(activation=activation, dtype=np.float64, **style), shape, strategy, np.float64
    )


def test_kept_arrays_of_channels_last():
    make, (n, channels, *size) = NETWORKS["resnet"]
    check_kept(lambda **style: make(channel_axis=-1, **style), (n, *size, channels), "inplace", axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_kept_arrays_of_large_networks(name):
    make = getattr(models, name)
    check_kept(make, (2, 3, 64, 64), "inplace")


@pytest.mark.slow
def test_kept_arrays_of_wider_resnet38():
    check_kept(models.wider_resnet, (1, 3, 64, 64), "inplace")


# ---- tracemalloc -------------------------------------------------------------------------------------------

MEASURED = {
    "residual_network": (lambda **style: models.residual_network(3, 10, **style), (16, 3, 32, 32), ()),
    "resnet": (lambda **style: models.resnet(3, 10, (1, 2, 1), width=16, **style), (8, 3, 128, 128), ()),
    "encoder_decoder": (lambda **style: models.encoder_decoder(1, 10, **style), (8, 1, 64, 64), (64, 64)),
}


def peak_of_step(net, shape, pixels):
    """Return the peak of the second training step above the level before it, by tracemalloc."""
    loss, optimizer = layers.CrossEntropy(), optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=shape).astype(np.float32), rng.integers(0, 3, (shape[0], *pixels))

    def step():
        loss(net(x), labels)
        net.backward(loss.backward(), overwrite=True)
        optimizer.step()
        optimizer.zero_grad()

    step()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    step()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("strategy", ["standard", "checkpoint", "inplace"])
@pytest.mark.parametrize("name", MEASURED)
def test_the_peak_is_that_of_tracemalloc(name, strategy):
    make, shape, pixels = MEASURED[name]
    measured = peak_of_step(make(strategy=strategy, rng=0), shape, pixels)
    step = planner_of(lambda chosen: make(strategy=chosen, rng=0), strategy, shape).step(shape)
    planned = step.peak - step.parameters - step.buffers - step.state - step.batch
    assert planned == pytest.approx(measured, rel=0.03)


def test_planning_allocates_nothing():
    tracemalloc.start()
    step = planner_of("wider_resnet", "standard", (16, 3, 672, 672)).step((16, 3, 672, 672))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert step.peak > 20 << 30
    assert used < 16 << 20


def test_the_parts_of_the_peak_add_up():
    shape = (8, 3, 64, 64)
    step = planner_of("resnet50", "inplace", shape, optimizer="adam").step(shape)
    at_peak = step.at_peak
    parts = step.parameters + step.buffers + step.state + step.batch
    assert parts + at_peak["gradients"] + at_peak["kept"] + at_peak["temporaries"] == step.peak
    assert step.gradients == step.parameters
    assert step.state == 2 * step.parameters
    assert step.timeline[0][0] == "before"
    assert [phase for phase, *_ in step.timeline[:: len(step.timeline) - 1]][-1] == "optimizer"
    assert max(used for _, used, *_ in step.timeline) == step.peak
    assert at_peak["temporaries"] >= 0
