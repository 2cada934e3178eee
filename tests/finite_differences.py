"""Gradients by central differences, independent of the formulas under test."""

import numpy as np


def numerical_gradient(loss, array, step=1e-4):
    """Return the gradient of the scalar function `loss` by every element of `array`, which is restored.

    Central differences at four points: the truncation error is step^4 / 30 times the fifth derivative, about
    1e-17 here. The rounding error of loss dominates, eps * |loss| / step: 1e-12 in float64.
    """
    gradient = np.zeros(array.shape, array.dtype)
    for index in np.ndindex(array.shape):
        middle = array[index]
        values = []
        for k in (-2, -1, 1, 2):
            array[index] = middle + k * step
            values.append(loss())
        array[index] = middle
        gradient[index] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return gradient
