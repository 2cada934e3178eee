"""The compiled module: the functions that `inplace_abn.functional` documents, `stream`, and the registry.

``isa`` forces an instruction set, one of ``info()["isa_usable"]``, for one call. ``owner`` names the context
in messages and in the ledger; a function is called when the name is needed.

Every array of the functions from `forward` to `statistics`, and of `Context.recompute`, may be given by its
address, as memory of another library: ``(address, shape, strides, dtype)``, with strides in elements. Nothing
keeps or locks such memory; `forward` needs ``hold=False`` then. bfloat16 needs no ml_dtypes; new arrays like
it have the dtype uint16. A result that is written to such memory is returned as the tuple that was given.

The registry has the exact bytes of every array that a live `Context` or `SavedArray` keeps.
`saved_by` and `refuse_if_saved` search it, and so does every function here before it writes in place.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final, Literal, SupportsIndex, TypeAlias, TypedDict, final

import numpy as np
from numpy.typing import NDArray

from ._types import Activation, Batch, ChannelAxis, Mask, Number, Strategy, Sums, Threads, Vector

_Saved: TypeAlias = Literal[
    "x", "xhat", "y", "z", "residual", "mask", "branch_mask", "guarded_xhat", "escape_index", "escape_xhat"
]

_Owner: TypeAlias = str | Callable[[], str]
# (address, shape, strides in elements, dtype) of memory that the caller owns
_Addressed: TypeAlias = tuple[
    int,
    tuple[int, ...],
    tuple[int, ...],
    Literal["float32", "float64", "float16", "bfloat16", "bool"],
]
_Batch: TypeAlias = Batch | _Addressed
_Vector: TypeAlias = Vector | _Addressed
_Mask: TypeAlias = Mask | _Addressed
_Memory: TypeAlias = NDArray[Any] | tuple[int, int]

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
    def owner(self) -> str: ...
    @property
    def saved(self) -> MappingProxyType[_Saved, NDArray[Any]]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def freed(self) -> bool: ...
    def recompute(
        self,
        *,
        out: _Batch | None = None,
        kept: _Batch | None = None,
        residual: _Batch | None = None,
        threads: Threads = None,
        isa: str | None = None,
    ) -> Batch: ...
    def release(self) -> None: ...
    def state(self) -> dict[str, Any]: ...

@final
class SavedArray:
    @property
    def array(self) -> _Memory | None: ...
    @property
    def owner(self) -> str | None: ...
    @property
    def role(self) -> str | None: ...
    def release(self) -> None: ...

def forward(
    x: _Batch,
    *,
    weight: _Vector | None = None,
    bias: _Vector | None = None,
    running_mean: _Vector | None = None,
    running_var: _Vector | None = None,
    training: bool = True,
    momentum: Number = 0.1,
    eps: Number = 1e-05,
    activation: Activation = "leaky_relu",
    activation_param: Number = 0.01,
    strategy: Strategy = "inplace",
    channel_axis: ChannelAxis = 1,
    residual: _Batch | None = None,
    slope: _Vector | None = None,
    mask: _Mask | None = None,
    out: _Batch | None = None,
    hold: bool = True,
    threads: Threads = None,
    isa: str | None = None,
    owner: _Owner | None = None,
) -> tuple[Batch, Context]: ...
def normalize(
    x: _Batch,
    *,
    mean: Sums | _Addressed,
    var: Sums | _Addressed,
    count: int,
    weight: _Vector | None = None,
    bias: _Vector | None = None,
    running_mean: _Vector | None = None,
    running_var: _Vector | None = None,
    momentum: Number = 0.1,
    eps: Number = 1e-05,
    activation: Activation = "leaky_relu",
    activation_param: Number = 0.01,
    strategy: Strategy = "inplace",
    channel_axis: ChannelAxis = 1,
    residual: _Batch | None = None,
    slope: _Vector | None = None,
    mask: _Mask | None = None,
    out: _Batch | None = None,
    hold: bool = True,
    threads: Threads = None,
    isa: str | None = None,
    owner: _Owner | None = None,
) -> tuple[Batch, Context]: ...
def backward(
    ctx: Context,
    dz: _Batch,
    *,
    overwrite: bool = False,
    out: _Batch | None = None,
    residual_grad: _Batch | None = None,
    residual_out: _Batch | None = None,
    keep: bool = False,
    kept: _Batch | None = None,
    residual: _Batch | None = None,
    residual_activation: Activation = "identity",
    residual_activation_param: Number = 0.01,
    threads: Threads = None,
    isa: str | None = None,
) -> tuple[Batch, Vector | None, Vector | None, Vector | None, Batch | None]: ...
def backward_reduce(
    ctx: Context,
    dz: _Batch,
    *,
    kept: _Batch | None = None,
    residual: _Batch | None = None,
    residual_activation: Activation = "identity",
    residual_activation_param: Number = 0.01,
    threads: Threads = None,
    isa: str | None = None,
) -> tuple[Sums, Sums, Sums | None]: ...
def backward_apply(
    ctx: Context,
    dz: _Batch,
    *,
    sum_dy: Sums | _Addressed,
    sum_dy_xhat: Sums | _Addressed,
    count: int,
    overwrite: bool = False,
    out: _Batch | None = None,
    residual_grad: _Batch | None = None,
    residual_out: _Batch | None = None,
    keep: bool = False,
    kept: _Batch | None = None,
    residual: _Batch | None = None,
    residual_activation: Activation = "identity",
    residual_activation_param: Number = 0.01,
    threads: Threads = None,
    isa: str | None = None,
) -> Batch: ...
def statistics(
    x: _Batch,
    *,
    channel_axis: ChannelAxis = 1,
    mask: _Mask | None = None,
    threads: Threads = None,
    isa: str | None = None,
) -> tuple[Sums, Sums, int]: ...
def stream(
    a: NDArray[np.float32],
    *,
    b: NDArray[np.float32] | None = None,
    c: Number = 1.0,
    d: Number = 0.0,
    prefetch: SupportsIndex = 0,
    threads: Threads = None,
    isa: str | None = None,
) -> None: ...
def save(array: _Memory, *, owner: _Owner, role: str) -> SavedArray: ...
def saved_by(array: _Memory) -> tuple[str, str] | None: ...
def refuse_if_saved(array: _Memory, *, writer: str) -> None: ...
def restore_writeable(array: _Memory) -> bool: ...
def saved_count() -> int: ...
def set_recorder(recorder: Any) -> None: ...
def context_from_state(state: dict[str, Any]) -> Context: ...
def set_num_threads(n: SupportsIndex) -> None: ...
def get_num_threads() -> int: ...
def info() -> _Info: ...
