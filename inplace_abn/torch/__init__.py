"""In-place activated batch normalization for PyTorch."""

_NEEDED = "inplace_abn.torch needs PyTorch 2.4 or newer: pip install 'torch>=2.4'"

try:
    import torch as _torch
except ImportError as error:
    raise ImportError(f"{_NEEDED} (no module named 'torch' was found)") from error
if _torch.torch_version.TorchVersion(_torch.__version__) < (2, 4):
    raise ImportError(f"{_NEEDED} (version {_torch.__version__} is installed)")
