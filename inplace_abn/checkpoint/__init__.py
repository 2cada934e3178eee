"""Checkpoints: save and resume a training run, and load pretrained weights.

`save` and `load` are for runs of this package; a resumed run equals an uninterrupted one bit for bit.
`load_network` builds a network from such a file. `load_weights` loads weights from PyTorch, torchvision, timm
and the reference implementation of in-place batch normalization. Files are .npz, or
.safetensors if that library is installed (``pip install 'inplace-abn-numpy[safetensors]'``). Nothing is
unpickled.
"""

from .files import read
from .run import load, load_network, save
from .weights import load_weights

__all__ = ["load", "load_network", "load_weights", "read", "save"]
