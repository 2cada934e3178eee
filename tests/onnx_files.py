"""ONNX files: written, run in onnxruntime, and compared with the network."""

import exported
import numpy as np
import pytest

from inplace_abn import export

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

#: Error allowed, relative to the largest deviation of the results from their mean: float32 networks in
#: onnxruntime add in another order; with float16 every result between the layers is rounded.
RTOL = {np.float32: 1e-5, np.float16: 5e-3}


def outputs_of(path, *inputs):
    """Run a file; return the array, or the list of arrays."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, dict(zip(names, inputs, strict=True)))
    return found[0] if len(found) == 1 else found


def compare(net, shape, path, dtype=np.float32, rtol=None, **options):
    """Write a network, run the file, and compare the results; return those of the network."""
    export.to_onnx(net, path, shape, dtype, **options)
    x = exported.samples(shape, dtype)
    got, want = outputs_of(path, x), exported.evaluated(net, x)
    assert got.dtype == want.dtype == dtype
    rtol = RTOL[dtype] if rtol is None else rtol
    exported.assert_near(got.astype(np.float64), want.astype(np.float64), rtol)
    return want
