"""Networks for inference: plain layers, folded normalizations, ONNX files.

`to_standard` returns a network of plain layers, `fold` one whose normalizations are part of the convolutions
before them. `to_onnx` writes an ONNX file.
"""

from .folding import fold
from .onnx_file import to_onnx
from .standard import to_standard

__all__ = ["fold", "to_onnx", "to_standard"]
