"""In-place activated batch normalization for PyTorch 2.4 and newer.

>>> import torch
>>> from inplace_abn.torch import InPlaceABN
>>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), InPlaceABN(8), torch.nn.Conv2d(8, 4, 3))
>>> net(torch.randn(2, 3, 8, 8)).sum().backward()

On tensors of the CPU and of NVIDIA GPUs, of float32, float64, float16 and bfloat16, in both memory formats,
the kernels of this package compute; on the CPU also in training under `torch.compile` from PyTorch 2.7 on.
Everywhere else, and under `torch.func`, tracers and dispatch modes, PyTorch's own operations do, with the
same results.
"""

_NEEDED = "inplace_abn.torch needs PyTorch 2.4 or newer: pip install 'torch>=2.4'"

try:
    import torch as _torch
except ImportError as error:
    raise ImportError(f"{_NEEDED} (no module named 'torch' was found)") from error
if _torch.torch_version.TorchVersion(_torch.__version__) < (2, 4):
    raise ImportError(f"{_NEEDED} (version {_torch.__version__} is installed)")

from . import functions, recipes  # noqa: E402, F401
from .conversion import Report, convert, report, revert  # noqa: E402
from .memory import ledger  # noqa: E402
from .modules import ABN, InPlaceABN, InPlaceABNSync  # noqa: E402
from .synchronization import convert_sync, set_active_group  # noqa: E402
from .weights import standard_weights  # noqa: E402

__all__ = [
    "ABN",
    "InPlaceABN",
    "InPlaceABNSync",
    "Report",
    "convert",
    "convert_sync",
    "ledger",
    "report",
    "revert",
    "set_active_group",
    "standard_weights",
]
