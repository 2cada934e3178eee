"""Networks in half precision: float32 parameters, and a quarter of the memory in place."""

import numpy as np
import pytest
from batches import DTYPES, dtype_of

from inplace_abn import memory, models
from inplace_abn.layers import (
    CrossEntropy,
    Dropout,
    Flatten,
    GroupNorm,
    Linear,
    Sequential,
    Upsample,
)
from inplace_abn.optim import SGD

HALF = DTYPES[2:]
SHAPE = (8, 3, 32, 32)


def head(**_):
    """Layers that no network of `models` has."""
    return Sequential(
        GroupNorm(1, 3),
        Upsample((8, 8), mode="nearest"),
        Dropout(0.2, rng=0),
        Flatten(),
        Linear(192, 4, rng=0),
    )


NETWORKS = {
    "head": head,
    "residual_network": lambda **style: models.residual_network(3, 4, (4, 8), 1, **style),
    "encoder_decoder": lambda **style: models.encoder_decoder(3, 4, (4, 8), **style),
    "resnet": lambda **style: models.resnet(3, 4, (1, 1), width=4, **style),
    "mobilenet_v2": lambda **style: models.mobilenet_v2(
        3, 4, width=0.25, stages=((1, 16, 1, 1), (6, 16, 2, 2)), **style
    ),
}
SCALE = 256.0  # of the loss, so that float16 gradients do not underflow


def step(make, dtype, **style):
    """Return the loss and the gradients of the input and of all parameters, flat and in float64."""
    network, criterion = make(rng=0, **style), CrossEntropy()
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16).astype(dtype)
    scores = network(x)
    loss = criterion(scores, np.random.default_rng(1).integers(0, 4, (SHAPE[0], *scores.shape[2:])))
    dscores = criterion.backward(SCALE)
    dx = network.backward(dscores, overwrite=True)
    assert scores.dtype == dscores.dtype == dx.dtype == dtype
    assert {parameter.grad.dtype for parameter in network.parameters()} == {np.dtype(np.float32)}
    gradients = [dx, *(parameter.grad for parameter in network.parameters())]
    return loss, [np.ravel(gradient).astype(np.float64) for gradient in gradients]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("strategy", ["standard", "inplace"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_float32_to_the_precision_of_the_type(name, strategy, dtype):
    """With elu, whose slope is continuous: leaky_relu has another slope where rounding changes a sign."""
    style = {"strategy": strategy, "activation": "elu", "activation_param": 1.0}
    loss, gradients = step(NETWORKS[name], dtype_of(dtype), **style)
    want_loss, want = step(NETWORKS[name], np.dtype(np.float32), **style)
    eps = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    assert abs(loss - want_loss) <= eps
    norms = [np.linalg.norm(gradient) for gradient in want]
    pairs = zip(gradients, want, norms, strict=True)
    # The gradient of a bias before a normalization is zero except for rounding: compare it with the others.
    errors = [np.linalg.norm(one - two) / max(norm, 1e-3 * max(norms)) for one, two, norm in pairs]
    # Most gradients have the error of a few roundings; sums whose terms cancel have a larger one.
    assert np.median(errors) <= 8 * eps
    assert max(errors) <= 128 * eps


@pytest.mark.parametrize("dtype", HALF)
def test_in_place_half_types_keep_about_a_quarter_of_standard_float32(dtype):
    """In place, normalizations keep nothing of their own; a half type halves the rest."""
    kept = {}
    for strategy, kind in (("standard", "float32"), ("inplace", dtype)):
        network = models.residual_network(3, 4, (8, 16), 3, strategy=strategy, rng=0)
        with memory.ledger() as ledger:
            network(np.zeros((4, 3, 32, 32), dtype_of(kind)))
        kept[strategy] = ledger.kept
    assert kept["inplace"] < 0.27 * kept["standard"]


@pytest.mark.parametrize("dtype", HALF)
def test_training_with_master_weights(dtype):
    network, criterion = models.residual_network(3, 4, (4, 8), 1, rng=0), CrossEntropy()
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, 32)
    x = (rng.standard_normal((32, 3, 8, 8)) + target[:, None, None, None]).astype(dtype_of(dtype))
    losses = []
    for _ in range(15):
        losses.append(criterion(network(x.copy()), target))
        optimizer.zero_grad()
        network.backward(criterion.backward(), overwrite=True)
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    assert {parameter.data.dtype for parameter in network.parameters()} == {np.dtype(np.float32)}
