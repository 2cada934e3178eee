"""Fixtures of the tests for GPUs."""

import pytest
from simulated import use_simulated_driver


@pytest.fixture(scope="module")
def simulated():
    """Return the library of the simulated driver, whose variables are those of simulated_driver.c."""
    with use_simulated_driver() as library:
        yield library


@pytest.fixture(scope="module")
def gpu(request):
    """Return the device of a GPU; without one that of the CPU, whose tensors are those of a simulated GPU."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if torch.cuda.is_available():
        yield torch.device("cuda:0")
        return
    request.getfixturevalue("simulated")
    from inplace_abn._cuda import torch_calls
    from inplace_abn.torch import _gpu_kernels, _kernels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_kernels, "on_gpu", lambda tensor: True)
        patch.setattr(_gpu_kernels, "is_usable", lambda: True)
        patch.setattr(torch_calls, "_empty_strided", None)
        patch.setattr(torch_calls, "_index_of", lambda tensor: 0)
        patch.setattr(torch_calls, "_stream", lambda index: 0)
        yield torch.device("cpu")
