"""Masks for tests, and a run of the compiled module with garbage at masked positions.

A masked run must give the results of a batch of the valid positions alone, of shape (M, C).
"""

import numpy as np
from batches import LAYOUTS, Run, lay_out

from inplace_abn import _core


def padded(shape, rng):
    """Sequences of different lengths; the first is full and the last is empty."""
    positions = int(np.prod(shape[1:]))
    lengths = rng.integers(0, positions + 1, shape[0])
    lengths[-1], lengths[0] = 0, positions
    return (np.arange(positions) < lengths[:, None]).reshape(shape)


def scattered(shape, rng):
    return rng.random(shape) < 0.5


def sparse(shape, rng):
    mask = rng.random(shape) < 0.05
    mask.reshape(-1)[::97] = True
    return mask


def with_holes(shape, rng):
    return rng.random(shape) > 0.03


def full(shape, rng):
    return np.ones(shape, bool)


MASKS = {
    "padded": padded,
    "scattered": scattered,
    "sparse": sparse,
    "with_holes": with_holes,
    "full": full,
}


def draw_mask(kind, shape, seed=0):
    """A mask for x of shape (N, C, ...), with at least two valid positions."""
    mask = MASKS[kind]((shape[0], *shape[2:]), np.random.default_rng(seed))
    mask.reshape(-1)[-2:] |= mask.sum() < 2
    return mask


def valid(array, mask):
    """The valid positions of an array of shape (N, C, ...), as (M, C)."""
    return np.moveaxis(array, 1, -1)[mask]


def compact(batch, mask):
    """The batch of the valid positions alone."""
    full_size = {name: getattr(batch, name) for name in ("x", "dz", "residual")}
    return batch._replace(**{n: None if a is None else valid(a, mask).copy() for n, a in full_size.items()})


NOT_FINITE, FINITE = (np.nan, np.inf, -3e4, -np.inf), (100.0, -3000.0, 7.0)


def fill_in(batch, mask, full, garbage=NOT_FINITE):
    """The batch with the arrays of `full`, a compact batch, at valid positions and garbage elsewhere."""
    arrays = {}
    for name in ("x", "dz", "residual"):
        if getattr(full, name) is None:
            continue
        array = np.moveaxis(getattr(batch, name), 1, -1).copy()
        array[~mask] = np.resize(garbage, (int((~mask).sum()), 1))
        array[mask] = getattr(full, name)
        arrays[name] = np.moveaxis(array, -1, 1).copy("C")
    return batch._replace(**arrays)


def run_masked(batch, mask, layout="first", *, isa=None, threads=None, overwrite=False, **options):
    """Forward and backward with a mask. Asserts zeros at masked positions; returns the others, as (M, C)."""
    machine = {"isa": isa, "threads": threads}
    x, axis = LAYOUTS[layout](batch.x)
    residual = None if batch.residual is None else lay_out(batch.residual, layout)
    z, ctx = _core.forward(
        x, weight=batch.weight, bias=batch.bias, channel_axis=axis, residual=residual, mask=mask,
        slope=batch.slope_of(options.get("activation")), **machine, **options,
    )  # fmt: skip
    z_forward = np.moveaxis(z, axis, 1).copy()
    gradients = _core.backward(ctx, lay_out(batch.dz, layout), overwrite=overwrite, **machine)
    full_size = [z_forward, np.moveaxis(gradients[0], axis, 1)]
    if gradients[4] is not None:
        full_size.append(np.moveaxis(gradients[4], axis, 1))
    for array in full_size:
        assert not np.moveaxis(array, 1, -1)[~mask].any()
    z, dx, *dresidual = (valid(array, mask) for array in full_size)
    return Run(z, dx, *gradients[1:4], *dresidual)
