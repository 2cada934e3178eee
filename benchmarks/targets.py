"""What the measurements are held against: the one table of shapes, layouts, targets and bounds."""

import math
from typing import NamedTuple

CHANNELS_FIRST = "channels-first"
CHANNELS_LAST = "channels-last"
LAYOUTS = (CHANNELS_FIRST, CHANNELS_LAST)

#: The five shapes of a ResNet-50 with 32 images, (N, C, H, W) whatever the layout in memory.
RESNET = ((32, 64, 112, 112), (32, 256, 56, 56), (32, 512, 28, 28), (32, 1024, 14, 14), (32, 2048, 7, 7))

#: Few channels with huge images, and volumes.
HUGE = ((4, 3, 2048, 2048), (2, 8, 64, 128, 128))


#: The targets are for so many threads.
THREADS = 2


class Row(NamedTuple):
    """One row of the limit table: the speed to reach as a share of the stream's, forward and backward."""

    shape: tuple
    layout: str
    forward: float | None
    backward: float | None


LIMIT = (
    Row(RESNET[0], CHANNELS_FIRST, 0.90, 0.88),
    Row(RESNET[1], CHANNELS_FIRST, 0.90, 0.88),
    Row(RESNET[2], CHANNELS_FIRST, 0.90, 0.88),
    Row(RESNET[3], CHANNELS_FIRST, 0.88, 0.80),
    Row(RESNET[4], CHANNELS_FIRST, 0.65, 0.65),
    *(Row(shape, CHANNELS_LAST, 0.60, 0.54) for shape in RESNET),
    *(Row(shape, CHANNELS_FIRST, 0.80, 0.80) for shape in HUGE),
)

#: What ``--quick`` measures, and for the activations.
QUICK = (LIMIT[1], LIMIT[3], LIMIT[6])
ACTIVATIONS = (LIMIT[1], LIMIT[2], LIMIT[6])
QUICK_ACTIVATIONS = (LIMIT[2],)

#: The machine's bandwidth has states that last as long as a process (50-65 and 75-100 GB/s where the targets
#: were set). Two groups of processes are two states when the faster group's slowest stream is this many times
#: as fast as the slower group's fastest.
STATE_GAP = 1.15

#: Forward + backward against PyTorch eager, at H*W >= 28*28: (layout, allocator) -> times as fast.
PEER_MIN_SPATIAL = 28 * 28
EAGER = {
    (CHANNELS_FIRST, "as-is"): 10.0,
    (CHANNELS_FIRST, "kept"): 4.0,
    (CHANNELS_LAST, "as-is"): 5.0,
    (CHANNELS_LAST, "kept"): 1.9,
}
#: Against every peer, everywhere: not slower.
PEER = 1.0

#: Time of a half type, as a share of float32's.
HALF_TIME = 0.6
#: Speed of an activation as a share of leaky_relu's.
ACTIVATION_SPEED = {"elu": {"forward": 0.5, "backward": 0.35}}
#: Speed of an activation as a share of the stream's.
ACTIVATION_LIMIT = {
    "silu": {"forward": 0.45, "backward": 0.25},
    "gelu_tanh": {"forward": 0.45, "backward": 0.25},
    "leaky_relu + residual": {"forward": 0.85},
}
#: Forward + backward of an activation against PyTorch eager as its users run it: times as fast.
ACTIVATION_EAGER = 3.0
#: Microseconds of one forward + backward on OVERHEAD_SHAPE.
OVERHEAD_SHAPE = (2, 8, 4, 4)
OVERHEAD = {"functional": 8.0, "_core": 3.0}
#: Memory allocated while a pass runs, as a share of x's bytes, for x of at least EXTRA_MEMORY_FROM bytes.
EXTRA_MEMORY = 0.02
EXTRA_MEMORY_FROM = 8 << 20

#: Relative L2 error against float64, float32 data from a normal distribution.
ACCURACY = {"z": 2e-7, "dx": 4e-7, "dweight": 1e-6}
#: The hard cases: mean 1e4 with spread 1, and weights from 1e-6 to 10 of either sign with zeros between.
ACCURACY_OFFSET = {"z": 2e-3, "var": 1e-5}
ACCURACY_WEIGHTS = {"dx": 1e-5}
#: dx of activations with a minimum, float32; and the error in a half type / the standard strategy's.
MINIMUM = ("silu", "gelu", "gelu_tanh", "mish")
ACCURACY_ACTIVATIONS = {"dx": 2e-6, "farthest": 1e-4, "escaped": 0.01}
HALF_ERROR = 4.0


def find(shape, layout):
    """Return the row of `LIMIT` for `shape` and `layout`; one without targets when the table has none."""
    for row in LIMIT:
        if row.shape == tuple(shape) and row.layout == layout:
            return row
    return Row(tuple(shape), layout, None, None)


def select(shapes=None, layouts=None, table=LIMIT):
    """Return the rows to measure.

    Parameters
    ----------
    shapes : sequence of tuple of int, optional
        (N, C, *spatial) each; every layout is measured for them. Default: the rows of the table.
    layouts : sequence of str, optional
        Keep these layouts only.
    table : sequence of Row
        Start from these instead of the full table.

    Returns
    -------
    list of Row

    Examples
    --------
    >>> select([(2, 3, 4, 4)], ["channels-last"])
    [Row(shape=(2, 3, 4, 4), layout='channels-last', forward=None, backward=None)]
    """
    rows = [find(shape, layout) for shape in shapes for layout in LAYOUTS] if shapes else table
    return [row for row in rows if not layouts or row.layout in layouts]


def peer_target(shape, layout, peer, environment):
    """Return how many times as fast as `peer` forward + backward must be; None for a row not in the table."""
    if find(shape, layout).forward is None:
        return None
    if peer == "torch-eager" and math.prod(shape[2:]) >= PEER_MIN_SPATIAL:
        return EAGER[layout, environment]
    return PEER
