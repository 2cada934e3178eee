"""The compiled module: the functions that `inplace_abn.functional` documents, and a little more.

``isa`` forces an instruction set, one of ``info()["isa_usable"]``, for one call.
"""

from types import MappingProxyType
from typing import Any, Final, Literal, SupportsIndex, TypeAlias, TypedDict, final

import numpy as np
from numpy.typing import NDArray

from ._types import Activation, Batch, ChannelAxis, Mask, Number, Strategy, Sums, Threads, Vector

_Saved: TypeAlias = Literal[
    "x", "xhat", "z", "residual", "mask", "branch_mask", "guarded_xhat", "escape_index", "escape_xhat"
]

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
    def strategy(self) -> Strategy: ...
    @property
    def activation(self) -> Activation: ...
    @property
    def activation_param(self) -> float: ...
    @property
    def training(self) -> bool: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def channel_axis(self) -> ChannelAxis: ...
    @property
    def saved(self) -> MappingProxyType[_Saved, NDArray[Any]]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def freed(self) -> bool: ...
    def recompute(
        self, *, out: Batch | None = None, threads: Threads = None, isa: str | None = None
    ) -> Batch: ...
    def release(self) -> None: ...

def forward(
    x: Batch,
    *,
    weight: Vector | None = None,
    bias: Vector | None = None,
    running_mean: Vector | None = None,
    running_var: Vector | None = None,
    training: bool = True,
    momentum: Number = 0.1,
    eps: Number = 1e-05,
    activation: Activation = "leaky_relu",
    activation_param: Number = 0.01,
    strategy: Strategy = "inplace",
    channel_axis: ChannelAxis = 1,
    residual: Batch | None = None,
    slope: Vector | None = None,
    mask: Mask | None = None,
    threads: Threads = None,
    isa: str | None = None,
) -> tuple[Batch, Context]: ...
def normalize(
    x: Batch,
    *,
    mean: Sums,
    var: Sums,
    count: int,
    weight: Vector | None = None,
    bias: Vector | None = None,
    running_mean: Vector | None = None,
    running_var: Vector | None = None,
    momentum: Number = 0.1,
    eps: Number = 1e-05,
    activation: Activation = "leaky_relu",
    activation_param: Number = 0.01,
    strategy: Strategy = "inplace",
    channel_axis: ChannelAxis = 1,
    residual: Batch | None = None,
    slope: Vector | None = None,
    mask: Mask | None = None,
    threads: Threads = None,
    isa: str | None = None,
) -> tuple[Batch, Context]: ...
def backward(
    ctx: Context,
    dz: Batch,
    *,
    overwrite: bool = False,
    residual_grad: Batch | None = None,
    threads: Threads = None,
    isa: str | None = None,
) -> tuple[Batch, Vector | None, Vector | None, Vector | None, Batch | None]: ...
def backward_reduce(
    ctx: Context, dz: Batch, *, threads: Threads = None, isa: str | None = None
) -> tuple[Sums, Sums, Sums | None]: ...
def backward_apply(
    ctx: Context,
    dz: Batch,
    *,
    sum_dy: Sums,
    sum_dy_xhat: Sums,
    count: int,
    overwrite: bool = False,
    residual_grad: Batch | None = None,
    threads: Threads = None,
    isa: str | None = None,
) -> Batch: ...
def statistics(
    x: Batch,
    *,
    channel_axis: ChannelAxis = 1,
    mask: Mask | None = None,
    threads: Threads = None,
    isa: str | None = None,
) -> tuple[Sums, Sums, int]: ...
def stream(
    a: NDArray[np.float32],
    *,
    b: NDArray[np.float32] | None = None,
    c: Number = 1.0,
    d: Number = 0.0,
    threads: Threads = None,
    isa: str | None = None,
) -> None: ...
def set_num_threads(n: SupportsIndex) -> None: ...
def get_num_threads() -> int: ...
def info() -> _Info: ...
