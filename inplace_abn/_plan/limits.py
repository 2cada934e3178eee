"""The largest batch and the largest images whose training step fits into a budget."""

import re

_UNITS = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
#: The search ends at this batch or size.
MOST = 1 << 20


def budget_of(budget):
    """Return a budget in bytes, or None.

    >>> budget_of("16 GiB"), budget_of("500MB")
    (17179869184, 500000000)
    >>> budget_of(16)
    Traceback (most recent call last):
    ValueError: budget: expected a number with a unit, such as '16GiB' or '500MB', got 16
    """
    if budget is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", budget) if isinstance(budget, str) else None
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise ValueError(f"budget: expected a number with a unit, such as '16GiB' or '500MB', got {budget!r}")
    size = int(float(found[1]) * units[found[2].lower()])
    if size == 0:
        raise ValueError(f"budget must be at least 1 byte, got {budget!r}")
    return size


def largest(peak, budget, start=1):
    """Return the largest n of at least 1 with ``peak(n) <= budget``, or 0.

    Parameters
    ----------
    peak : function of int
        Increasing, and nearly linear or quadratic: the next n is extrapolated. It raises a ValueError or
        TypeError for an n that is refused, which is taken as too small.
    budget : int
    start : int

    Examples
    --------
    >>> largest(lambda n: 10 * n + 5, 100), largest(lambda n: n * n, 99), largest(lambda n: n + 5, 4)
    (9, 9, 0)
    """
    known = {}

    def fits(n):
        if n not in known:
            try:
                known[n] = peak(n)
            except (TypeError, ValueError):
                known[n] = 0  # too small, such as one value per channel
        return known[n] <= budget

    low, high, n = 0, MOST, max(1, start)
    while high - low > 1:
        low, high = (n, high) if fits(n) else (low, n)
        n = min(max(_extrapolated(known, budget, n, low), low + 1), high - 1)
    return low if known.get(low) else 0


def _extrapolated(known, budget, last, low):
    """Return where the line through the last n and the nearest other one reaches the budget."""
    others = [n for n in known if n != last and known[n]]
    if not others or not known[last]:
        return 2 * last
    other = min(others, key=lambda n: abs(n - last))
    slope = (known[last] - known[other]) / (last - other)
    return int(last + (budget - known[last]) / slope) if slope > 0 else 2 * max(last, low)


def with_batch(shape, n):
    """Return the shape of a batch of n samples."""
    return (n, *shape[1:])


def with_size(shape, n, multiple, axis):
    """Return the shape of images whose height is n multiples; the width keeps its ratio to the height."""
    at = (2, 3) if axis == 1 else (1, 2)
    size = list(shape)
    width = max(1, round(n * shape[at[1]] / shape[at[0]]))
    size[at[0]], size[at[1]] = n * multiple, width * multiple
    return tuple(size)
