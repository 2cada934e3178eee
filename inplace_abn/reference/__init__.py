"""In-place activated batch normalization in plain NumPy: the specification, to be read.

"The paper" is Rota Bulò, Porzi, Kontschieder: In-Place Activated BatchNorm for Memory-Optimized Training of
DNNs (CVPR 2018, https://arxiv.org/abs/1712.02616). A batch x has N samples, C channels and S positions (H * W
of an image); a channel has m = N * S values. With the mean and variance of those (section 3.1)::

    xhat = (x - mean) / sqrt(var + eps)        y = weight * xhat + bias        z = phi(y)

weight is the paper's gamma, bias its beta, phi the activation. A residual, which the paper has not, is added
to y before the activation. Going back, dz is the gradient of the loss by z, and dx, dweight and dbias are
asked for. The schemes of Fig. 2 differ in what they keep until then.

Read `activations`, `moments` and `normalization`. Nothing in these files is in place and nothing is fast.
Every function is pure: it leaves its arguments alone, takes any dtype, computes in float64 (or in
``dtype=np.longdouble``) and returns new arrays of that type. The functions of the same name in
`inplace_abn.functional` work in C and in place; the tests compare the two.
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
