"""Compares an ONNX file in onnxruntime with the network that it was made of."""

import numpy as np

from ..layers import no_grad
from .trace import trace


def difference_in_onnxruntime(network, path, input_shape, dtype):
    """Run a file on random numbers; return the largest difference, relative to the largest output.

    Parameters
    ----------
    network : Layer
        Is not changed. Its mode does not matter.
    path : path
    input_shape : tuple of int
    dtype : dtype

    Raises
    ------
    ImportError
        If onnxruntime is not installed.
    RuntimeError
        If onnxruntime cannot run the file: it has no float64 convolutions.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("--check needs onnxruntime: pip install onnxruntime") from error
    x = np.random.default_rng(0).normal(size=(2, *input_shape)).astype(dtype)
    with no_grad():
        want = trace(network, input_shape, dtype).network(x.copy()).astype(np.float64)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"input": x})
    except Exception as error:  # of a class of its own for each reason
        raise RuntimeError(f"onnxruntime cannot run {path}: {error}") from error
    return float(np.abs(got - want).max() / max(np.abs(want).max(), np.finfo(dtype).tiny))
