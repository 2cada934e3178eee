"""Checkpoints: saving and resuming a training run, and loading weights that others have trained.

`save` and `load` are for one's own runs; a resumed run is equal to an unbroken one, bit for bit.
`load_weights` loads weights from PyTorch, torchvision, timm and the reference implementation of in-place
batch normalization. Files are .npz, or .safetensors with the library of that name
(``pip install 'inplace-abn-numpy[safetensors]'``). No file is unpickled.
"""

from .files import read
from .run import load, save
from .weights import load_weights

__all__ = ["load", "load_weights", "read", "save"]
