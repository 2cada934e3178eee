"""The bounds themselves: mistakes that others have made must not fit into them."""

import numpy as np
import pytest
from batches import Run, random_batch
from bounds import assert_backward, assert_forward, expected
from keywords import as_parameters

from inplace_abn import reference

N, C, S = 4, 5, 33
M = N * S


class Right:
    """A batch, and what an implementation that is right to the last digit gives for it in float32."""

    def __init__(self):
        self.batch = random_batch((N, C, S), "float32")
        self.weight, self.bias = (a.astype(float)[:, None] for a in (self.batch.weight, self.batch.bias))
        mean, var, _ = reference.statistics(self.batch.x)
        self.deviation, self.std = self.batch.x - mean[:, None], np.sqrt(var + 1e-5)[:, None]
        z, ctx = reference.forward(self.batch.x, **as_parameters(self.batch[2:4]), activation="identity")
        results = z, *reference.backward(ctx, self.batch.dz)
        self.run = Run(*(a.astype(np.float32) for a in results))

    def z(self, std=None, moved=0.0):
        """z from another standard deviation or mean."""
        std = self.std if std is None else std
        return self.run._replace(z=self.weight * (self.deviation + moved) / std + self.bias)

    def dx(self, sum_dy=1.0, sum_dy_xhat=1.0):
        """dx with other factors of its two sums."""
        xhat, m = self.deviation / self.std, M
        means = [self.run.dbias[:, None] / m * sum_dy, xhat * self.run.dweight[:, None] / m * sum_dy_xhat]
        return self.run._replace(dx=self.weight / self.std * (self.batch.dz - means[0] - means[1]))

    def unwritten(self, name, by):
        """The last element left as it was."""
        array = getattr(self.run, name).copy()
        array[-1, -1, -1] = by[-1, -1, -1]
        return self.run._replace(**{name: array})

    def sums(self, dy=0.0, dy_xhat=0.0):
        return self.run._replace(dbias=self.run.dbias + dy, dweight=self.run.dweight + dy_xhat)


right = Right()
sign = np.sign(right.weight)
last = (-1, slice(None), -1)
last_dy, last_xhat = right.batch.dz[last], (right.deviation / right.std)[last]
MISTAKES = {
    "eps left out": right.z(std=np.sqrt(right.std**2 - 1e-5)),
    "eps added to the standard deviation": right.z(std=np.sqrt(right.std**2 - 1e-5) + 1e-5),
    "variance over m - 1": right.z(std=right.std * np.sqrt(M / (M - 1))),
    "last element missing from the mean": right.z(moved=right.deviation[last][:, None] / (M - 1)),
    "a mean rounded to half precision": right.z(moved=2.0**-12),
    "z in half precision": right.run._replace(z=right.run.z.astype(np.float16)),
    "weight and bias of the next channel": right.run._replace(z=np.roll(right.run.z, 1, axis=1)),
    "z with the weight's sign lost": right.run._replace(z=(right.run.z - right.bias) * sign + right.bias),
    "last z not written": right.unwritten("z", right.batch.x),
    "last dx not written": right.unwritten("dx", right.batch.dz),
    "dx of evaluation": right.dx(0, 0),
    "dx without the mean of dy": right.dx(sum_dy=0),
    "dx without the mean of dy * xhat": right.dx(sum_dy_xhat=0),
    "sums over m - 1": right.dx(M / (M - 1), M / (M - 1)),
    "dx with the weight's sign lost": right.run._replace(dx=right.run.dx * sign),
    "last element missing from dbias": right.sums(dy=-last_dy),
    "last element missing from dweight": right.sums(dy_xhat=-last_dy * last_xhat),
    "last element twice in dweight": right.sums(dy_xhat=last_dy * last_xhat),
    "dweight with the weight's sign lost": right.sums(dy_xhat=right.run.dweight * (sign[:, 0] - 1)),
    "dweight off by 1e-4": right.sums(dy_xhat=1e-4 * right.run.dweight),
}  # fmt: skip


def check(run, keeps):
    want = expected(right.batch, "float32", keeps, "identity")
    assert_forward(run, want)
    assert_backward(run, want)


@pytest.mark.parametrize("keeps", ["x", "xhat", "z"])
def test_what_is_right_passes(keeps):
    check(right.run, keeps)


@pytest.mark.parametrize("keeps", ["x", "xhat", "z"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_do_not(mistake, keeps):
    with pytest.raises(AssertionError, match="times what rounding allows"):
        check(MISTAKES[mistake], keeps)
