"""Losses: labels that they refuse, and values that are not finite."""

import numpy as np
import pytest
from networks import normal

from inplace_abn import memory, models
from inplace_abn.layers import (
    CrossEntropy,
    watch_nonfinite,
)

SHAPE = (2, 4, 3, 3)


def test_labels_out_of_range():
    with pytest.raises(ValueError, match=r"CrossEntropy: target\[1\] is 5: labels must be from 0 to 4"):
        CrossEntropy()(np.zeros((2, 5)), np.array([0, 5]))


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("dtype", [int, np.float32])
def test_the_message_for_one_hot_targets_suggests_argmax(axis, dtype):
    criterion = CrossEntropy(channel_axis=axis)
    target = np.moveaxis(np.eye(3, dtype=dtype)[np.zeros((2, 5), int)], -1, axis)
    scores = np.zeros(target.shape)
    message = rf"target must be a label .*, got the shape of x, \(2, .*pass target.argmax\({axis}\)"
    with pytest.raises(ValueError, match=message):
        criterion(scores, target)
    criterion(scores, target.argmax(axis))


def poisoned():
    net = models.residual_network(1, 3, (4,), 1, dtype=np.float64, rng=0)
    net.stage1[0].branch.conv1.weight.data[0] = np.nan
    return net


def test_a_loss_that_is_not_finite_suggests_watch_nonfinite():
    scores = poisoned()(normal((2, 1, 4, 4)))
    with pytest.raises(
        FloatingPointError, match=r"CrossEntropy: the loss is nan; .* inplace_abn.layers.watch_nonfinite\(\)"
    ):
        CrossEntropy()(scores, np.array([0, 1]))


def test_watch_nonfinite_names_the_first_layer():
    net, criterion, target = poisoned(), CrossEntropy(), np.array([0, 1])
    x = normal((2, 1, 4, 4))
    with watch_nonfinite() as watch:
        with pytest.raises(FloatingPointError, match=r"in the result of stage1.0.branch.conv1 \(Conv2d\)"):
            criterion(net(x.copy()), target)
        net.stage1[0].branch.conv1.weight.data[...] = 0
        assert np.isfinite(criterion(net(x.copy()), target))
        x[0, 0, 0, 0] = np.inf
        with pytest.raises(FloatingPointError, match="in the input of Sequential"):
            criterion(net(x), target)
        with pytest.raises(FloatingPointError, match="in the input of CrossEntropy"):
            criterion(np.full((2, 3), np.nan), target)
        assert watch.first == "the input of CrossEntropy"
    not_watched = pytest.raises(FloatingPointError, match="watch_nonfinite")
    with memory.ledger(), not_watched:
        criterion(np.full((2, 3), np.nan), target)


def test_loss_and_gradients_are_zero_if_all_labels_are_ignored():
    criterion = CrossEntropy(label_smoothing=0.1)
    assert criterion(np.zeros((2, 5)), np.array([-100, -100])) == 0
    assert not criterion.backward().any()


def test_a_loss_that_overflows_although_every_layer_is_finite():
    finite = pytest.raises(FloatingPointError, match="all layers before the loss returned finite results")
    with watch_nonfinite(), np.errstate(over="ignore"), finite:
        CrossEntropy()(np.float32([[3e38, -3e38]]), np.array([1]))
