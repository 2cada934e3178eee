"""The error bounds of tests/bounds.py: correct results are within them, common mistakes are not."""

import numpy as np
import pytest
from batches import Run, random_batch
from bounds import assert_backward, assert_forward, expected
from keywords import as_parameters

from inplace_abn import reference

N, C, S = 4, 5, 33
M = N * S


class Correct:
    """A batch, and its exact results rounded to float32."""

    def __init__(self):
        self.batch = random_batch((N, C, S), "float32")
        self.weight, self.bias = (a.astype(float)[:, None] for a in (self.batch.weight, self.batch.bias))
        mean, var, _ = reference.statistics(self.batch.x)
        self.deviation, self.std = self.batch.x - mean[:, None], np.sqrt(var + 1e-5)[:, None]
        z, ctx = reference.forward(self.batch.x, **as_parameters(self.batch[2:4]), activation="identity")
        results = z, *reference.backward(ctx, self.batch.dz)
        self.run = Run(*(a.astype(np.float32) for a in results))

    def z(self, std=None, moved=0.0):
        """Return results with z for another standard deviation, or with `moved` added to x - mean."""
        std = self.std if std is None else std
        return self.run._replace(z=self.weight * (self.deviation + moved) / std + self.bias)

    def dx(self, sum_dy=1.0, sum_dy_xhat=1.0):
        """Return results with the two sums in dx multiplied by these factors."""
        xhat, m = self.deviation / self.std, M
        means = [self.run.dbias[:, None] / m * sum_dy, xhat * self.run.dweight[:, None] / m * sum_dy_xhat]
        return self.run._replace(dx=self.weight / self.std * (self.batch.dz - means[0] - means[1]))

    def unwritten(self, name, by):
        """Return results in which the last element of `name` is that of `by`, as if not written."""
        array = getattr(self.run, name).copy()
        array[-1, -1, -1] = by[-1, -1, -1]
        return self.run._replace(**{name: array})

    def sums(self, dy=0.0, dy_xhat=0.0):
        return self.run._replace(dbias=self.run.dbias + dy, dweight=self.run.dweight + dy_xhat)


correct = Correct()
sign = np.sign(correct.weight)
last = (-1, slice(None), -1)
last_dy, last_xhat = correct.batch.dz[last], (correct.deviation / correct.std)[last]
MISTAKES = {
    "eps left out": correct.z(std=np.sqrt(correct.std**2 - 1e-5)),
    "eps added to the standard deviation": correct.z(std=np.sqrt(correct.std**2 - 1e-5) + 1e-5),
    "variance over m - 1": correct.z(std=correct.std * np.sqrt(M / (M - 1))),
    "last element missing from the mean": correct.z(moved=correct.deviation[last][:, None] / (M - 1)),
    "a mean rounded to half precision": correct.z(moved=2.0**-12),
    "z in half precision": correct.run._replace(z=correct.run.z.astype(np.float16)),
    "weight and bias of the next channel": correct.run._replace(z=np.roll(correct.run.z, 1, axis=1)),
    "z with the weight's sign lost": correct.run._replace(
        z=(correct.run.z - correct.bias) * sign + correct.bias
    ),
    "last z not written": correct.unwritten("z", correct.batch.x),
    "last dx not written": correct.unwritten("dx", correct.batch.dz),
    "dx of evaluation": correct.dx(0, 0),
    "dx without the mean of dy": correct.dx(sum_dy=0),
    "dx without the mean of dy * xhat": correct.dx(sum_dy_xhat=0),
    "sums over m - 1": correct.dx(M / (M - 1), M / (M - 1)),
    "dx with the weight's sign lost": correct.run._replace(dx=correct.run.dx * sign),
    "last element missing from dbias": correct.sums(dy=-last_dy),
    "last element missing from dweight": correct.sums(dy_xhat=-last_dy * last_xhat),
    "last element twice in dweight": correct.sums(dy_xhat=last_dy * last_xhat),
    "dweight with the weight's sign lost": correct.sums(dy_xhat=correct.run.dweight * (sign[:, 0] - 1)),
    "dweight off by 1e-4": correct.sums(dy_xhat=1e-4 * correct.run.dweight),
}  # fmt: skip


def check(run, keeps):
    want = expected(correct.batch, "float32", keeps, "identity")
    assert_forward(run, want)
    assert_backward(run, want)


@pytest.mark.parametrize("keeps", ["x", "xhat", "z"])
def test_correct_results_pass(keeps):
    check(correct.run, keeps)


@pytest.mark.parametrize("keeps", ["x", "xhat", "z"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_fail(mistake, keeps):
    with pytest.raises(AssertionError, match="times what rounding allows"):
        check(MISTAKES[mistake], keeps)
