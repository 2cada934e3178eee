"""Gradients by central differences, independent of the formulas under test."""

import numpy as np


def numerical_gradient(loss, array, step=1e-4):
    """Gradient of the scalar function `loss` by every element of `array`, which is left as it was.

    Five points, so that the error of the formula is step^4 / 30 times the fifth derivative, about 1e-17 here,
    and what counts is the rounding of loss, eps * |loss| / step: 1e-12 in float64, less in longdouble.
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
