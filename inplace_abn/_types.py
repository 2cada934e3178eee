"""What `_core.pyi` and `functional` call their arguments' types.

Spelled out, where `numpy.typing` has short names: importing that costs every user of the package time.
"""

from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias

import numpy as np

# float32, float64, float16 or ml_dtypes.bfloat16; 2 to 5 dimensions
Batch: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[Any]]
# one element per channel (a slope: or one for all); float64 beside a float64 batch, else float32
Vector: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[Any]]
# which positions are valid, of shape (N, *spatial)
Mask: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]
# one element per channel
Sums: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
# for `merge_statistics`
Rows: TypeAlias = Sequence[Sequence[float] | Sums] | Sums
Activation: TypeAlias = Literal[
    "identity", "leaky_relu", "prelu", "elu", "celu", "selu", "softplus", "sigmoid", "tanh", "silu", "gelu",
    "gelu_tanh", "mish", "relu",
]  # fmt: skip
Strategy: TypeAlias = Literal[
    "standard", "checkpoint", "checkpoint_xhat", "inplace_1", "inplace_2", "inplace"
]
ChannelAxis: TypeAlias = Literal[1, -1]
Number: TypeAlias = SupportsFloat
Threads: TypeAlias = SupportsIndex | None
