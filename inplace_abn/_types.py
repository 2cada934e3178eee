"""Names of the types of arguments in `_core.pyi` and `functional`.

They are written without `numpy.typing`, whose import would make the import of this package slower.
"""

from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias

import numpy as np

# float32, float64, float16 or ml_dtypes.bfloat16; 2 to 5 dimensions
Batch: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[Any]]
# (C,), or (1,) for a slope; float64 for a float64 batch, else float32
Vector: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[Any]]
# (N, *spatial); True for valid positions
Mask: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]
# (C,)
Sums: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
# one (C,) per batch, for `merge_statistics`
Rows: TypeAlias = Sequence[Sequence[float] | Sums] | Sums
Activation: TypeAlias = Literal[
    "identity", "leaky_relu", "prelu", "elu", "celu", "selu", "softplus", "sigmoid", "tanh", "silu", "gelu",
    "gelu_tanh", "mish", "relu", "relu6", "hardsigmoid", "hardswish",
]  # fmt: skip
Strategy: TypeAlias = Literal[
    "standard", "checkpoint", "checkpoint_xhat", "pre_activation", "inplace_1", "inplace_2", "inplace"
]
ChannelAxis: TypeAlias = Literal[1, -1]
Number: TypeAlias = SupportsFloat
Threads: TypeAlias = SupportsIndex | None
