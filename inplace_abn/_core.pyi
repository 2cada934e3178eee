"""The compiled module: the functions that `inplace_abn.functional` documents, and a little more.

``isa`` forces an instruction set, one of ``info()["isa_usable"]``, for one call.
"""

from typing import Any, Final, Literal, SupportsFloat, SupportsIndex, TypeAlias, TypedDict, final

import numpy as np
from numpy.typing import NDArray

_Batch: TypeAlias = NDArray[Any]  # float32, float64, float16 or ml_dtypes.bfloat16; 2 to 5 dimensions
_Vector: TypeAlias = NDArray[Any]  # one element per channel; float64 beside a float64 batch, else float32
_Sums: TypeAlias = NDArray[np.float64]  # one element per channel
_Activation: TypeAlias = Literal["identity", "leaky_relu", "elu", "relu"]
_Strategy: TypeAlias = Literal[
    "standard", "checkpoint", "checkpoint_xhat", "inplace_1", "inplace_2", "inplace"
]
_Saved: TypeAlias = Literal["x", "xhat", "z", "guarded_xhat", "escape_index", "escape_xhat"]

class _Info(TypedDict):
    version: str
    isa_built: list[str]
    isa_usable: list[str]
    isa_active: str
    openmp: bool
    threads: int
    compiler: str
    numpy_api: str

__version__: Final[str]

@final
class Context:
    @property
    def strategy(self) -> _Strategy: ...
    @property
    def activation(self) -> _Activation: ...
    @property
    def activation_param(self) -> float: ...
    @property
    def training(self) -> bool: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def channel_axis(self) -> Literal[1, -1]: ...
    @property
    def saved(self) -> list[tuple[_Saved, NDArray[Any], int]]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def freed(self) -> bool: ...
    def recompute(
        self, out: _Batch | None = None, *, threads: SupportsIndex | None = None, isa: str | None = None
    ) -> _Batch: ...
    def release(self) -> None: ...

def forward(
    x: _Batch,
    weight: _Vector | None = None,
    bias: _Vector | None = None,
    running_mean: _Vector | None = None,
    running_var: _Vector | None = None,
    *,
    training: bool = True,
    momentum: SupportsFloat = 0.1,
    eps: SupportsFloat = 1e-05,
    activation: _Activation = "leaky_relu",
    activation_param: SupportsFloat = 0.01,
    strategy: _Strategy = "inplace",
    channel_axis: Literal[1, -1] = 1,
    threads: SupportsIndex | None = None,
    isa: str | None = None,
) -> tuple[_Batch, Context]: ...
def normalize(
    x: _Batch,
    mean: _Sums,
    var: _Sums,
    count: SupportsFloat,
    weight: _Vector | None = None,
    bias: _Vector | None = None,
    running_mean: _Vector | None = None,
    running_var: _Vector | None = None,
    *,
    momentum: SupportsFloat = 0.1,
    eps: SupportsFloat = 1e-05,
    activation: _Activation = "leaky_relu",
    activation_param: SupportsFloat = 0.01,
    strategy: _Strategy = "inplace",
    channel_axis: Literal[1, -1] = 1,
    threads: SupportsIndex | None = None,
    isa: str | None = None,
) -> tuple[_Batch, Context]: ...
def backward(
    ctx: Context,
    dz: _Batch,
    *,
    overwrite: bool = False,
    threads: SupportsIndex | None = None,
    isa: str | None = None,
) -> tuple[_Batch, _Vector | None, _Vector | None]: ...
def backward_reduce(
    ctx: Context, dz: _Batch, *, threads: SupportsIndex | None = None, isa: str | None = None
) -> tuple[_Sums, _Sums]: ...
def backward_apply(
    ctx: Context,
    dz: _Batch,
    sum_dy: _Sums,
    sum_dy_xhat: _Sums,
    count: SupportsFloat,
    *,
    overwrite: bool = False,
    threads: SupportsIndex | None = None,
    isa: str | None = None,
) -> _Batch: ...
def statistics(
    x: _Batch,
    *,
    channel_axis: Literal[1, -1] = 1,
    threads: SupportsIndex | None = None,
    isa: str | None = None,
) -> tuple[_Sums, _Sums, int]: ...
def stream(
    a: NDArray[np.float32],
    b: NDArray[np.float32] | None = None,
    c: SupportsFloat = 1.0,
    d: SupportsFloat = 0.0,
    *,
    threads: SupportsIndex | None = None,
    isa: str | None = None,
) -> None: ...
def set_num_threads(n: SupportsIndex) -> None: ...
def get_num_threads() -> int: ...
def info() -> _Info: ...
