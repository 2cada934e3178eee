"""Cases and definitions for the tests of convolutions."""

import numpy as np
from operations import normal

# kernel, stride, padding, dilation, groups, inputs, outputs
CASES = [
    ((3, 3), 1, 1, 1, 1, 4, 4),
    ((3, 3), 2, 1, 1, 1, 3, 8),
    ((3, 3), 1, 2, 2, 2, 4, 6),
    ((3, 3), 1, 1, 1, 4, 4, 4),
    ((3, 3), 2, 1, 1, 4, 4, 8),
    ((1, 1), 1, 0, 1, 1, 4, 6),
    ((1, 1), 1, 0, 1, 2, 4, 6),
    ((1, 1), 2, 0, 1, 1, 4, 4),
    ((1, 1), 1, 1, 1, 1, 4, 4),
    ((2, 5), (2, 1), (0, 2), (1, 2), 1, 2, 3),
    ((4, 2), (3, 2), (5, 1), (2, 1), 1, 2, 2),
    ((7, 7), 2, 3, 1, 1, 1, 16),
    ((3, 3), 1, 4, 1, 1, 2, 2),
    ((3, 2), (2, 1), 1, (1, 2), 5, 5, 5),
    ((2, 3), 1, 0, (3, 1), 3, 3, 3),
]
NAMES = ("stride", "padding", "dilation", "groups")


def arrays_of(case, dtype="float64", shape=(3, 11, 9), transposed=False):
    """Return x, weight, bias and keywords of a convolution, or of a transposed one."""
    kernel, *_, groups, inputs, outputs = case
    x = normal((shape[0], inputs, *shape[1:]), dtype, 1)
    channels = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    return (
        x,
        normal((*channels, *kernel), dtype, 2),
        normal(outputs, dtype, 3),
        dict(zip(NAMES, case[1:5], strict=True)),
    )


def pairs(*values):
    return (value if isinstance(value, tuple) else (value, value) for value in values)


def by_definition(x, weight, bias, stride, padding, dilation, groups):
    """Convolve by the formula, output pixel by output pixel."""
    (sy, sx), (py, px), (dy, dx) = pairs(stride, padding, dilation)
    x = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
    outputs, inputs, ky, kx = weight.shape
    rows = (x.shape[2] - dy * (ky - 1) - 1) // sy + 1
    columns = (x.shape[3] - dx * (kx - 1) - 1) // sx + 1
    z = np.empty((len(x), outputs, rows, columns))
    for o, i, j in np.ndindex(outputs, rows, columns):
        first = o // (outputs // groups) * inputs
        window = x[:, first : first + inputs, i * sy :: dy, j * sx :: dx][:, :, :ky, :kx]
        z[:, o, i, j] = (window * weight[o]).sum(axis=(1, 2, 3)) + bias[o]
    return z


def transposed_by_definition(x, weight, bias, stride, padding, dilation, groups, output_padding=0):
    """Add the window of every pixel to a padded result, and cut the padding off."""
    (sy, sx), (py, px), (dy, dx), (my, mx) = pairs(stride, padding, dilation, output_padding)
    samples, inputs, rows, columns = x.shape
    _, outputs, ky, kx = weight.shape
    height, width = (rows - 1) * sy + dy * (ky - 1) + 1 + my, (columns - 1) * sx + dx * (kx - 1) + 1 + mx
    z = np.zeros((samples, outputs * groups, height, width))
    for c, i, j in np.ndindex(inputs, rows, columns):
        first = c // (inputs // groups) * outputs
        window = z[:, first : first + outputs, i * sy :: dy, j * sx :: dx][:, :, :ky, :kx]
        window += x[:, c, i, j][:, None, None, None] * weight[c]
    return z[:, :, py : height - py, px : width - px] + bias[:, None, None]
