"""What `_core.pyi` and `functional` call their arguments' types."""

from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

Batch: TypeAlias = NDArray[Any]  # float32, float64, float16 or ml_dtypes.bfloat16; 2 to 5 dimensions
Vector: TypeAlias = NDArray[Any]  # one element per channel; float64 beside a float64 batch, else float32
Sums: TypeAlias = NDArray[np.float64]  # one element per channel
Activation: TypeAlias = Literal["identity", "leaky_relu", "elu", "relu"]
Strategy: TypeAlias = Literal[
    "standard", "checkpoint", "checkpoint_xhat", "inplace_1", "inplace_2", "inplace"
]
ChannelAxis: TypeAlias = Literal[1, -1]
Number: TypeAlias = SupportsFloat
Threads: TypeAlias = SupportsIndex | None
