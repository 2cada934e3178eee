"""The functions of the reference implementation's module ``inplace_abn.functions``.

timm imports them for its models with ``InplaceAbn``; `inplace_abn.functions` has the same names for it.
"""

from ._arguments import Normalization
from ._dispatch import batch_norm
from ._synchronized import new_exchange

__all__ = ["inplace_abn", "inplace_abn_sync"]


def inplace_abn(
    x, weight, bias, running_mean, running_var, training=True, momentum=0.1, eps=1e-5,
    activation="leaky_relu", activation_param=0.01, *, weight_mode="abs",
):  # fmt: skip
    """Batch normalization and activation over x, with the arguments of the reference implementation.

    Parameters
    ----------
    x : Tensor of shape (N, C, ...)
        Overwritten, as by `InPlaceABN`.
    weight, bias : Tensor of shape (C,) or None
    running_mean, running_var : Tensor of shape (C,) or None
        Updated in training.
    training : bool
        False normalizes with the running statistics.
    momentum, eps : float
    activation, activation_param
        As for `ABN`, but not "prelu".
    weight_mode : {"abs", "signed"}
        "abs" multiplies by ``abs(weight) + eps``, as the reference implementation does.

    Returns
    -------
    Tensor of the shape of x

    Examples
    --------
    >>> import torch
    >>> x, weight = torch.tensor([[1.0], [3.0]]), torch.tensor([-2.0])
    >>> inplace_abn(x, weight, torch.zeros(1), None, None, activation_param=0.5).round()
    tensor([[-1.],
            [ 2.]])
    """
    return _inplace_abn(
        x, weight, bias, running_mean, running_var, training, momentum, eps, activation, activation_param,
        weight_mode, None,
    )  # fmt: skip


def inplace_abn_sync(
    x, weight, bias, running_mean, running_var, training=True, momentum=0.1, eps=1e-5,
    activation="leaky_relu", activation_param=0.01, group=None, *, weight_mode="abs",
):  # fmt: skip
    """`inplace_abn` with the statistics of all processes of a group, as `InPlaceABNSync`.

    Each call compares the settings of the processes in an additional collective operation; a module does it
    in its first call alone.
    """
    exchange = new_exchange(group) if training else None
    return _inplace_abn(
        x, weight, bias, running_mean, running_var, training, momentum, eps, activation, activation_param,
        weight_mode, exchange,
    )  # fmt: skip


def _inplace_abn(
    x, weight, bias, running_mean, running_var, training, momentum, eps, activation, activation_param,
    weight_mode, exchange,
):  # fmt: skip
    owner = weight
    if weight_mode == "abs" and weight is not None:
        weight = weight.abs() + eps
    norm = Normalization(
        running_mean, running_var, training, momentum, eps, activation, activation_param, "inplace_abn",
        owner=owner, exchange=exchange,
    )  # fmt: skip
    return batch_norm(x, weight, bias, None, None, norm, overwrite=True)
