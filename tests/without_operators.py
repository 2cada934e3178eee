"""torchvision for its models alone, where its compiled operators do not load."""

import pytest

torch = pytest.importorskip("torch", minversion="2.4")


def import_torchvision():
    """Import torchvision without the fake forms of its compiled operators; skip if it is not installed.

    Its wheels are built for another build of PyTorch than that for CPUs: the operators do not load, and
    registering their fake forms fails. The models do not need them.
    """
    original = torch.library.register_fake

    def register_fake(name, *args, **kwargs):
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return original(name, *args, **kwargs)

    torch.library.register_fake = register_fake
    try:
        return pytest.importorskip("torchvision")
    finally:
        torch.library.register_fake = original
