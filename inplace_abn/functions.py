"""The functions of `inplace_abn.torch.functions` where the reference implementation has them, for timm.

Needs PyTorch. Functions on NumPy arrays are in `inplace_abn.functional`.
"""

from .torch.functions import inplace_abn, inplace_abn_sync

__all__ = ["inplace_abn", "inplace_abn_sync"]
