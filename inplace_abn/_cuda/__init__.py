"""Layers on NVIDIA GPUs: the kernels of csrc/cuda, compiled when first used.

`libraries` finds the driver and NVRTC, `kernels` compiles and caches, `layer` has a call per layer and
direction on addresses, `torch_calls` the same on PyTorch's tensors. Only `torch_calls` imports PyTorch, and
nothing is opened before the first call.
"""

from .layer import Layer, guarded_channels, layer
from .libraries import describe

__all__ = ["Layer", "describe", "guarded_channels", "layer"]
