"""Small models of PyTorch, and the comparison of a model with its conversion."""

import copy

import pytest

torch = pytest.importorskip("torch", minversion="2.4")
nn = torch.nn

from fused_nets import GRADIENT  # noqa: E402
from zoo import errors, prepare  # noqa: E402

from inplace_abn.torch import convert, report  # noqa: E402

BOUNDS = {"outputs": 1e-11, "gradients": GRADIENT, "buffers": 1e-12, "eval": 1e-12}


def images(channels=4, size=6):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, channels, size, size, dtype=torch.float64, generator=generator)


def check(model, x=None, gradients=GRADIENT, **options):
    """Compare a model with its conversion; return the conversion's rows by path."""
    prepare(model)
    converted = convert(copy.deepcopy(model), **options)
    found = errors(model, converted, images() if x is None else x)
    bounds = BOUNDS | {"gradients": gradients}
    assert all(found[name] <= bound for name, bound in bounds.items()), found
    return {row.path: row for row in report(converted).rows}


class Block(nn.Module):
    """Two convolutions with batch norms; subclasses say how they are connected."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(channels, channels, 1)


def chain(*modules):
    """Return a convolution, a batch norm, copies of the modules and a convolution."""
    convs = nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 1)
    return nn.Sequential(convs[0], nn.BatchNorm2d(4), *map(copy.deepcopy, modules), convs[1])


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        nn.SiLU(),
        nn.Conv2d(4, 2, 1),
    )
