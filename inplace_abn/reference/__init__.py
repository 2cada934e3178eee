"""In-place activated batch normalization in plain NumPy: the specification.

"The paper" is Rota Bulò, Porzi, Kontschieder: In-Place Activated BatchNorm for Memory-Optimized Training of
DNNs (CVPR 2018, https://arxiv.org/abs/1712.02616). A batch x has N samples, C channels and S positions (H * W
of an image); a channel has m = N * S values. With the mean and variance of those (section 3.1)::

    xhat = (x - mean) / sqrt(var + eps)        y = weight * xhat + bias        z = phi(y)

weight is the paper's gamma, bias its beta, phi the activation. An optional residual, which is not in the
paper, is added to y before the activation. The backward computes dx, dweight and dbias from dz, the gradient
of the loss with respect to z. The schemes of Fig. 2 differ in the array that they keep for the backward.

Read `activations`, `moments` and `normalization`, in this order. The code is written for clarity: nothing is
in place or fast. Every function is pure: it does not change its arguments, accepts any dtype, computes in
float64 (or in ``dtype=np.longdouble``) and returns new arrays of that dtype. The functions of the same name
in `inplace_abn.functional` are implemented in C and work in place; the tests compare the two.
"""

from .activations import ACTIVATIONS, Activation
from .moments import merge_statistics, statistics, update_running
from .normalization import (
    KEEPS,
    Context,
    Gradients,
    backward,
    backward_apply,
    backward_inplace_1,
    backward_inplace_2,
    backward_reduce,
    forward,
    normalize,
    recompute,
)

__all__ = [
    "ACTIVATIONS",
    "KEEPS",
    "Activation",
    "Context",
    "Gradients",
    "backward",
    "backward_apply",
    "backward_inplace_1",
    "backward_inplace_2",
    "backward_reduce",
    "forward",
    "merge_statistics",
    "normalize",
    "recompute",
    "statistics",
    "update_running",
]
