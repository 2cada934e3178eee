"""Shapes, layouts and targets of the measurements."""

import math
from typing import NamedTuple

CHANNELS_FIRST = "channels-first"
CHANNELS_LAST = "channels-last"
LAYOUTS = (CHANNELS_FIRST, CHANNELS_LAST)

#: The five shapes of a ResNet-50 with 32 images: (N, C, H, W), independent of the layout in memory.
RESNET = ((32, 64, 112, 112), (32, 256, 56, 56), (32, 512, 28, 28), (32, 1024, 14, 14), (32, 2048, 7, 7))

#: Few channels with huge images, and volumes.
HUGE = ((4, 3, 2048, 2048), (2, 8, 64, 128, 128))

#: Small batches of the last stage of a ResNet.
SMALL = ((8, 512, 7, 7), (8, 2048, 7, 7))

#: The targets are for this number of threads, except those of `INTEL`.
THREADS = 2


class Row(NamedTuple):
    """A row of the limit table. `forward` and `backward` are targets: speed as a share of the stream's."""

    shape: tuple
    layout: str
    forward: float | None
    backward: float | None


LIMIT = (
    Row(RESNET[0], CHANNELS_FIRST, 0.82, 0.72),
    Row(RESNET[1], CHANNELS_FIRST, 0.86, 0.76),
    Row(RESNET[2], CHANNELS_FIRST, 0.90, 0.78),
    Row(RESNET[3], CHANNELS_FIRST, 0.86, 0.68),
    Row(RESNET[4], CHANNELS_FIRST, 0.63, 0.60),
    Row(RESNET[0], CHANNELS_LAST, 0.52, 0.49),
    Row(RESNET[1], CHANNELS_LAST, 0.53, 0.50),
    Row(RESNET[2], CHANNELS_LAST, 0.51, 0.48),
    Row(RESNET[3], CHANNELS_LAST, 0.60, 0.53),
    Row(RESNET[4], CHANNELS_LAST, 0.55, 0.52),
    *(Row(shape, CHANNELS_FIRST, 0.80, 0.70) for shape in HUGE),
    *(Row(shape, layout, None, None) for shape in SMALL for layout in LAYOUTS),
)

#: Targets on processors of Intel, by number of threads: (shape, layout) -> forward, backward.
INTEL = {
    2: {
        (RESNET[1], CHANNELS_FIRST): (1.00, 0.63),
        (RESNET[2], CHANNELS_FIRST): (1.10, 0.88),
        (RESNET[3], CHANNELS_FIRST): (1.05, 0.93),
        (RESNET[1], CHANNELS_LAST): (0.58, 0.52),
    },
    16: {
        (RESNET[1], CHANNELS_FIRST): (0.93, 0.86),
        (RESNET[2], CHANNELS_FIRST): (0.85, 0.82),
        (RESNET[3], CHANNELS_FIRST): (1.00, 0.95),
        (RESNET[1], CHANNELS_LAST): (0.72, 0.64),
    },
}

#: Rows of ``--quick``, and rows of the activations.
QUICK = (LIMIT[1], LIMIT[3], LIMIT[6])
ACTIVATIONS = (LIMIT[1], LIMIT[2], LIMIT[6])
QUICK_ACTIVATIONS = (LIMIT[2],)

#: On some machines, memory bandwidth is in one of two states for the lifetime of a process (50-65 and 75-100
#: GB/s where the targets were set). Two groups of processes count as two states if the slowest stream of the
#: faster group is at least this many times as fast as the fastest stream of the slower group.
STATE_GAP = 1.15

#: Forward + backward at H*W >= 28*28: (layout, allocator) -> time of PyTorch eager / time of inplace_abn.
PEER_MIN_SPATIAL = 28 * 28
EAGER = {
    (CHANNELS_FIRST, "as-is"): 10.0,
    (CHANNELS_FIRST, "kept"): 4.0,
    (CHANNELS_LAST, "as-is"): 5.0,
    (CHANNELS_LAST, "kept"): 1.9,
}
#: The same ratio for all other peers and shapes: a peer is not faster.
PEER = 1.0

#: Time of a prototype (``--prototype``) / time of inplace_abn.
PROTOTYPE = 0.97
#: Time of a half type / time of float32.
HALF_TIME = 0.6
#: Speed of an activation as a share of leaky_relu's speed.
ACTIVATION_SPEED = {"elu": {"forward": 0.5, "backward": 0.35}}
#: Speed of an activation as a share of the stream's speed.
ACTIVATION_LIMIT = {
    "silu": {"forward": 0.50, "backward": 0.32},
    "gelu_tanh": {"forward": 0.45, "backward": 0.28},
    "leaky_relu + residual": {"forward": 0.80, "backward": 0.70},
}
#: Forward + backward with an activation: time of PyTorch eager with default settings / time of inplace_abn.
ACTIVATION_EAGER = 3.0
#: Microseconds of one forward + backward on OVERHEAD_SHAPE.
OVERHEAD_SHAPE = (2, 8, 4, 4)
OVERHEAD = {"functional": 8.0, "_core": 3.0}
#: Peak of memory allocated during a pass / bytes of x, for x of at least EXTRA_MEMORY_FROM bytes.
EXTRA_MEMORY = 0.02
EXTRA_MEMORY_FROM = 8 << 20

#: Relative L2 error against float64, for normally distributed float32 data.
ACCURACY = {"z": 2e-7, "dx": 4e-7, "dweight": 1e-6}
#: Hard cases: mean 1e4 with standard deviation 1; weights from 1e-6 to 10 of either sign with some zeros.
ACCURACY_OFFSET = {"z": 2e-3, "var": 1e-5}
ACCURACY_WEIGHTS = {"dx": 1e-5}
#: dx of activations with a minimum, float32: relative L2 error, max |error| / max |value|, share of escaped
#: elements. Half types: error / error of the strategy standard.
MINIMUM = ("silu", "gelu", "gelu_tanh", "mish")
ACCURACY_ACTIVATIONS = {"dx": 2e-6, "farthest": 1e-4, "escaped": 0.01}
HALF_ERROR = 4.0

#: `benchmarks.torch` with TORCH_IMAGES images: kept and time of a step, converted / original, by network; the
#: times in the order of LAYOUTS. Times may exceed their targets by the factor TORCH_NOISE.
TORCH_IMAGES = 8
TORCH_NOISE = 1.05
TORCH_KEPT = {
    "resnet50": 0.54, "resnet50-leaky-relu": 0.54, "resnet50-silu": 0.39, "mobilenet-v2": 0.36,
    "regnet-y-400mf": 0.49, "efficientnet-b0": 0.34, "mobilenet-v3-large": 0.42, "densenet121": 0.52,
    "resnet50-recompute": 0.44,
}  # fmt: skip
TORCH_STEP = {
    "resnet50": (0.95, 1.00), "resnet50-leaky-relu": (0.90, 1.00), "resnet50-silu": (0.95, 1.00),
    "mobilenet-v2": (0.90, 0.92), "regnet-y-400mf": (0.95, 1.00), "efficientnet-b0": (0.85, 1.00),
    "mobilenet-v3-large": (0.95, 0.95), "densenet121": (1.00, 1.03), "resnet18-32": (1.10, 1.10),
}  # fmt: skip
#: The same for the normalizations alone, by layout, and for a layer on OVERHEAD_SHAPE.
TORCH_NORMALIZATIONS = {CHANNELS_FIRST: 0.60, CHANNELS_LAST: 0.80}
TORCH_TINY = 1.2
#: By how much the peak of the process is lower / by how much less is kept.
TORCH_PEAK = 0.8


def find(shape, layout, machine=None):
    """Return the row of `LIMIT` for `shape` and `layout`, or a row without targets if there is none.

    With the description of a machine (`benchmarks.machine.describe`) the row has that machine's targets.
    """
    shape = tuple(shape)
    if machine and "Intel" in machine.get("cpu", ""):
        return Row(shape, layout, *INTEL.get(machine["threads"], {}).get((shape, layout), (None, None)))
    for row in LIMIT:
        if row.shape == shape and row.layout == layout:
            return row
    return Row(shape, layout, None, None)


def has_targets(cpu, threads):
    """Return True if there are targets for this processor and number of threads."""
    return threads in (INTEL if "Intel" in cpu else (THREADS,))


def select(shapes=None, layouts=None, table=LIMIT):
    """Return the rows to measure.

    Parameters
    ----------
    shapes : sequence of tuple of int, optional
        (N, C, *spatial) each, measured in every layout. Default: the rows of `table`.
    layouts : sequence of str, optional
        Keep only these layouts.
    table : sequence of Row

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
    """Return the target for time of `peer` / time of inplace_abn; None if the row is not in the table."""
    if not any((row.shape, row.layout) == (tuple(shape), layout) for row in LIMIT):
        return None
    if peer == "torch-eager" and math.prod(shape[2:]) >= PEER_MIN_SPATIAL:
        return EAGER[layout, environment]
    return PEER
