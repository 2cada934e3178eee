"""The dtypes of batches and parameters, and the dtype in which each is computed."""

import numpy as np

#: The dtypes that are computed in their own precision.
FULL = (np.dtype(np.float32), np.dtype(np.float64))


def is_half(dtype):
    """Return True for float16 and ml_dtypes.bfloat16."""
    return dtype == np.float16 or dtype.name == "bfloat16"


def is_supported(dtype):
    """Return True for float32, float64, float16 and ml_dtypes.bfloat16 in native byte order."""
    return (dtype in FULL or is_half(dtype)) and dtype.isnative


def compute_dtype(dtype):
    """Return the dtype in which arrays of `dtype` are computed: float32 for half types, else `dtype`."""
    return np.dtype(np.float32) if is_half(dtype) else dtype


def cast_code(name, dtype):
    """Return the Python code that converts the array `name` to `dtype`, for error messages."""
    kind = np.dtype(dtype).type
    return f"{name}.astype({kind.__module__}.{kind.__name__})"
