"""Networks for inference: plain layers, folded normalizations, ONNX files.

`to_standard` returns a network of plain layers, `fold` one whose normalizations are part of the convolutions
before them.
"""

from .folding import fold
from .standard import to_standard

__all__ = ["fold", "to_standard"]
