"""Compares gradients of layers, networks and functions with finite differences.

>>> import numpy as np
>>> from inplace_abn import gradcheck
>>> from inplace_abn.layers import InPlaceABN
>>> report = gradcheck(InPlaceABN(3), np.random.default_rng(0).normal(size=(4, 3, 5)))
>>> report.ok
True
>>> [(row.mode, row.name, row.checked) for row in report.rows][:3]
[('train', 'x', 60), ('train', 'weight', 3), ('train', 'bias', 3)]

A wrong gradient is located:

>>> wrong = (lambda x: (x**2, x), lambda ctx, dz: 2 * ctx * dz + (ctx > 2))
>>> report = gradcheck(wrong, np.array([1.0, 3.0]))
>>> report.ok, report.worst.index, report.worst.wrong
(False, (1,), 1)
"""

from collections.abc import Mapping

import numpy as np

from .._arguments import integer, not_negative, positive
from ..layers.context import is_grad_enabled
from . import differences, subjects
from .report import Report, Row

__all__ = ["Report", "Row", "gradcheck"]


def gradcheck(
    target, inputs, *, wrt=None, modes=("train", "eval"), step=1e-4, rtol=1e-6, samples=None, seed=0
):
    """Compare analytic gradients with central finite differences, all in float64.

    The objective is ``sum(dz * z)`` for random dz. Its derivatives are five-point differences. Elements that
    disagree are checked again with smaller steps, since the first step may cross a kink, such as that of
    leaky_relu at 0. An element exactly at a kink passes if its gradient lies between the one-sided
    derivatives, or equals the derivative at a point nearby.

    Parameters
    ----------
    target : Layer, or pair of functions, or function
        - A layer or network. Its parameters are checked as well, in training and in evaluation. Parameters,
          gradients, running statistics and random generators are restored afterwards.
        - ``(forward, backward)``, or an object that has both, such as the module `inplace_abn.ops.conv2d`.
          Either ``forward(*inputs)`` returns ``(z, ctx)``, as in `inplace_abn.functional`, or
          ``forward(ctx, *inputs)``, with a first parameter of that name, returns z. ``backward(ctx, dz)``
          returns the gradients of the inputs. Bind options with `functools.partial`; arrays and generators
          among them are restored before each call.
        - A function that returns ``(z, backward)``, with ``backward(dz)``.
    inputs : ndarray, sequence, or mapping of names to arrays
        Arguments of the forward. The first of a mapping is passed by position, the others by keyword.
        Floating arrays are converted to float64 in their memory layout, and checked; each call gets copies,
        which it may overwrite. Other values are passed unchanged.
    wrt : sequence of int, optional
        Indices of the inputs that the returned gradients belong to. Default: all, or all floating arrays.
    modes : sequence of {"train", "eval"}
        Modes in which a layer is checked.
    step : float > 0
        Step of the differences, in units of the standard deviation of each array.
    rtol : float >= 0
        Largest error of a gradient, relative to the larger of itself and the root mean square of its array;
        the rounding error of the differences is added.
    samples : int, optional
        Number of elements to check of each array, drawn at random. Default: all.
    seed : int
        Seed of dz and of the choice of `samples`.

    Returns
    -------
    Report
        Its truth value is True if all gradients agree. Its text has the worst element of each array.

    Raises
    ------
    TypeError, ValueError
        For any other target; numbers with which nothing would be checked; results that are not finite, not
        float64, or differ between two calls; and gradients whose inputs are ambiguous (pass `wrt`).
    RuntimeError
        Inside `inplace_abn.layers.no_grad`.

    Examples
    --------
    >>> from functools import partial
    >>> import numpy as np
    >>> from inplace_abn import functional
    >>> from inplace_abn import gradcheck
    >>> x, weight, bias = np.random.default_rng(0).normal(size=(3, 8, 8))
    >>> forward = partial(functional.forward, activation="elu", activation_param=1.0)
    >>> inputs = {"x": x, "weight": weight[0], "bias": bias[0]}
    >>> report = gradcheck((forward, functional.backward), inputs)
    >>> report.ok, [row.name for row in report.rows]
    (True, ['x', 'weight', 'bias'])
    """
    if not is_grad_enabled():
        raise RuntimeError("gradcheck needs contexts for the backward, and cannot run inside no_grad()")
    step, rtol = positive("step", step), not_negative("rtol", rtol)
    samples = None if samples is None else integer("samples", samples, least=1)
    names = list(inputs) if isinstance(inputs, Mapping) else ()
    values = inputs.values() if names else inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    subject = subjects.make(target, [_float64(array) for array in values], wrt, names)
    report = Report()
    with subject.prepared():
        for mode in subject.modes(modes):
            check = differences.Check(subject, step, rtol, samples, np.random.default_rng(seed))
            report.extend(mode, check)
    return report


def _float64(array):
    if isinstance(array, np.ndarray) and (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):
        return array.astype(np.float64, order="K")
    return array
