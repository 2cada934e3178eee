"""Finite differences, and their comparison with analytic gradients."""

import math

import numpy as np

EPS = np.finfo(np.float64).eps
#: Divisors of the step. A small step is less likely to cross a kink; a deep network has thousands of them.
SHRINK = (1, 10, 100, 1000, 10_000)


class Check:
    """The check of the gradients of one subject in one mode.

    Parameters
    ----------
    subject : Subject
    step, rtol, samples
        As for `gradcheck`.
    rng : numpy.random.Generator

    Attributes
    ----------
    problems : list of str
    """

    def __init__(self, subject, step, rtol, samples, rng):
        self.subject, self.step, self.rtol, self.samples, self.rng = subject, step, rtol, samples, rng
        self.problems = []
        self._z = self._evaluate()
        second = self._evaluate()
        if np.abs(second - self._z).max(initial=0) > 1e-9 * np.abs(self._z).max(initial=0):
            raise ValueError(
                "target must give the same result for the same inputs, but two calls differ; make a random "
                "generator an attribute of a layer or an argument of a functools.partial"
            )
        self._dz = np.empty_like(self._z)
        self._dz[...] = rng.standard_normal(self._z.shape)
        self._size = float(np.linalg.norm(self._dz * self._z))  # rounding error of the objective / EPS

    def run(self):
        """Yield for each gradient the values of a `Row`, without the mode."""
        gradients = self._analytic()
        for name, array in self.subject.arrays().items():
            analytic = gradients[name]
            if analytic is None:
                self.problems.append(f"{name} has no gradient: None was returned")
            elif analytic.shape != array.shape:
                self.problems.append(f"{name} has shape {array.shape}, its gradient {analytic.shape}")
            elif array.size:
                yield name, array.shape, *self._compare(array, analytic)

    # ---- analytic gradients ----------------------------------------------------------------------------

    def _analytic(self):
        """Return gradients by name; check that dz is unchanged, and that overwriting it gives the same."""
        dz = self._dz.copy(order="K")
        gradients = self.subject.gradients(dz)
        if not np.array_equal(dz, self._dz):
            self.problems.append("the backward changed dz, without overwrite=True")
        if self.subject.can_overwrite:
            second = self.subject.gradients(self._dz.copy(order="K"), overwrite=True)
            for name, gradient in gradients.items():
                other = second[name]
                if gradient is None or other is None or gradient.shape != other.shape:
                    continue
                if not np.allclose(
                    gradient, other, rtol=self.rtol, atol=self.rtol * _rms(gradient), equal_nan=True
                ):
                    self.problems.append(f"the gradient of {name} differs with overwrite=True")
        return gradients

    # ---- numeric gradients -----------------------------------------------------------------------------

    def _compare(self, array, analytic):
        """Return (checked, wrong, kinks, worst index, analytic, numeric, excess) of one array."""
        chosen = self._choose(array.size)
        unit = _unit(array)
        first = [self._slopes(array, flat, self.step * unit) for flat in chosen]
        scale = _rms(np.array([slopes[0] for slopes in first]))
        wrong, kinks, worst = 0, 0, (-1.0, 0, 0.0, 0.0)
        for flat, slopes in zip(chosen, first, strict=True):
            claimed = float(analytic[np.unravel_index(flat, array.shape)])
            excess, numeric, kink = self._judge(array, flat, claimed, slopes, scale, unit)
            kinks += kink
            wrong += excess > 1 and not kink
            if not kink and excess > worst[0]:
                worst = excess, flat, claimed, numeric
        index = tuple(map(int, np.unravel_index(worst[1], array.shape)))
        return len(chosen), int(wrong), int(kinks), index, worst[2], worst[3], max(worst[0], 0.0)

    def _choose(self, size):
        """Return the indices of the elements to check, in flattened order."""
        if self.samples is None or self.samples >= size:
            return range(size)
        return sorted(map(int, self.rng.choice(size, self.samples, replace=False)))

    def _judge(self, array, flat, claimed, slopes, scale, unit):
        """Return (difference / allowed difference, numeric gradient, True at a kink) of one element."""
        results = []
        for step, rounding in self._steps(unit, scale):
            numeric, error = self._slopes(array, flat, step) if results else slopes
            size = max(abs(numeric), scale)
            allowed = self.rtol * size + min(error, 1e-4 * size) + rounding + 1e-300
            difference = abs(claimed - numeric)
            results.append((difference / allowed if math.isfinite(difference) else math.inf, numeric))
            if results[-1][0] <= 1:
                return *results[-1], False
        left, right = self._sides(array, flat, step)
        slack = 1e-3 * max(abs(left), abs(right), scale) + 100 * EPS * self._size / step
        is_kink = abs(left - right) > 2 * slack and (
            min(left, right) - slack <= claimed <= max(left, right) + slack
            or self._is_limit(array, flat, claimed, unit, slack)
        )
        return *min(results), is_kink

    def _is_limit(self, array, flat, claimed, unit, slack):
        """Return True if `claimed` is the derivative at a point nearby: after a shift of one of the arrays.

        Many elements may be at a kink at once: in a channel with weight 0 and bias 0, every y is 0. A step of
        the weight moves some of them to the left and others to the right, while an analytic gradient uses
        the derivative of one side for all. It need not lie between the one-sided derivatives. A shift of the
        bias moves all elements to the same side, where the derivatives can be compared.
        """
        for other in self.subject.arrays().values():
            before = other.copy(order="K")
            shift = self.step * _unit(other)
            for sign in (1, -1):
                try:
                    other += sign * shift
                    near = self._slopes(array, flat, self.step * unit / 100)[0]
                finally:
                    other[...] = before
                if abs(claimed - near) <= slack:
                    return True
        return False

    def _steps(self, unit, scale):
        """Yield ever smaller steps and the rounding error of their slopes, until that error is too large."""
        for shrink in SHRINK:
            step = self.step * unit / shrink
            rounding = 16 * EPS * self._size / step
            if shrink > 100 and rounding > 1e-4 * scale:
                return
            yield step, rounding

    def _slopes(self, array, flat, step):
        """Return the derivative by one element from five points, and its difference from that of three."""
        near, width = self._span(array, flat, step, -step)
        far, double = self._span(array, flat, 2 * step, -2 * step)
        three = near / width
        five = three + (three - far / double) / 3
        return five, abs(five - three)

    def _sides(self, array, flat, step):
        """Return the derivatives to the left and to the right of one element."""
        below, left = self._span(array, flat, 0, -step)
        above, right = self._span(array, flat, step, 0)
        return below / left, above / right

    def _span(self, array, flat, up, down):
        """Return the difference of the objective between two values of one element, and their distance."""
        index = np.unravel_index(flat, array.shape)
        middle = array[index]
        try:
            array[index] = high = middle + up
            above = self._evaluate()
            array[index] = low = middle + down
            below = self._evaluate()
        finally:
            array[index] = middle
        if high == low:
            raise ValueError(f"step is too small to change elements like {middle}, got {self.step}")
        return float(np.sum(self._dz * (above - below))), float(high - low)

    def _evaluate(self):
        """Return the result for the current arrays; raise an error unless it is finite and float64."""
        z = self.subject.evaluate()
        if z.dtype != np.float64:
            raise TypeError(f"the result of target must be float64, as its inputs are, got {z.dtype}")
        if not np.isfinite(z).all():
            raise ValueError("the result of target must be finite, got NaN or infinity")
        return z


def _unit(array):
    """Return the unit of steps: the standard deviation, or the largest value of a constant array, or 1."""
    spread, largest = float(np.std(array)), float(np.abs(array).max(initial=0))
    return spread if spread > 1e-12 * largest else largest or 1.0


def _rms(array):
    """Return the root mean square."""
    return math.sqrt(float(np.mean(np.square(array)))) if array.size else 0.0
