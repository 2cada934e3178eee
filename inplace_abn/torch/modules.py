"""Batch norm and activation as one module, with the names and arguments of the reference implementation.

https://github.com/mapillary/inplace_abn is the reference implementation of Rota Bulò, Porzi, Kontschieder:
In-Place Activated BatchNorm for Memory-Optimized Training of DNNs (CVPR 2018).
"""

import torch
from torch import nn

from ._activations import check_activation
from ._compiled_gpu import forget
from ._dispatch import batch_norm
from .batch_norm import normalization, parameter

__all__ = ["ABN", "InPlaceABN", "InPlaceABNSync"]


class ABN(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
    """Batch normalization, an optional residual and an activation: ``z = activation(bn(x) + residual)``.

    One tensor of the size of x is kept for the backward where `torch.nn.BatchNorm2d` and an activation keep
    two: z or, for activations without an inverse such as relu, ``bn(x) + residual``. x is not overwritten;
    `InPlaceABN` overwrites it and is faster.

    A subclass of `torch.nn.BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` with their parameters, buffers and
    keys in the state. `torch.nn.SyncBatchNorm.convert_sync_batchnorm` replaces it without its activation.

    Parameters
    ----------
    num_features : int
        C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
    eps : float
    momentum : float or None
        None averages over all batches.
    affine : bool
        True adds the parameters `weight` and `bias`.
    activation : str
        "identity", "leaky_relu", "prelu", "elu", "celu", "selu", "softplus", "sigmoid", "tanh", "silu",
        "gelu", "gelu_tanh", "mish", "relu", "relu6", "hardsigmoid", "hardswish" or "hardtanh".
        `inplace_abn.functional.forward` has the formulas.
    activation_param : float
        The slope of leaky_relu below zero, the initial slope of prelu, alpha of elu and celu; (low, high) for
        hardtanh.
    track_running_stats : bool
        False normalizes by the batch in evaluation too.
    num_slopes : int
        Slopes of prelu, a parameter of this module: 1, or `num_features`.
    weight_mode : {"signed", "abs"}
        "abs" multiplies by ``abs(weight) + eps`` instead of `weight`, as the reference implementation does:
        for its checkpoints. `standard_weights` converts them.
    device, dtype
        Of parameters and buffers.

    Examples
    --------
    >>> import torch
    >>> layer = ABN(2, activation="relu")
    >>> layer(torch.tensor([[1.0, 5.0], [3.0, 9.0]]), residual=torch.zeros(2, 2)).round()
    tensor([[0., 0.],
            [1., 1.]], grad_fn=<RoundBackward0>)
    """

    _overwrites_input = False
    synchronized, group = False, None

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, activation="leaky_relu",
        activation_param=0.01, *, track_running_stats=True, num_slopes=1, weight_mode="signed", device=None,
        dtype=None,
    ):  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        check_activation(activation, slope=num_slopes)
        if weight_mode not in ("signed", "abs"):
            raise ValueError(f"weight_mode must be 'signed' or 'abs', got {weight_mode!r}")
        if num_slopes not in (1, num_features):
            raise ValueError(f"num_slopes must be 1 or num_features={num_features}, got {num_slopes!r}")
        self.activation, self.activation_param, self.weight_mode = activation, activation_param, weight_mode
        slope = None
        if activation == "prelu":
            slope = nn.Parameter(torch.full((num_slopes,), activation_param, device=device, dtype=dtype))
        self.register_parameter("slope", slope)

    def forward(self, x, residual=None):
        """Return z.

        Parameters
        ----------
        x : Tensor of shape (N, C, ...)
        residual : Tensor of the shape of x, optional
            Added before the activation; not overwritten.
        """
        self._check_input_dim(x)
        norm, weight = self._normalization(), parameter(self, "weight")
        if self.weight_mode == "abs" and weight is not None:
            weight = weight.abs() + self.eps
        bias, slope = parameter(self, "bias"), parameter(self, "slope")
        return batch_norm(x, weight, bias, residual, slope, norm, overwrite=self._overwrites_input)

    def _normalization(self):
        return normalization(self, self.activation, self.activation_param, type(self).__name__)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        forget(self)

    def _check_input_dim(self, x):
        if not 2 <= x.dim() <= 5:
            raise ValueError(f"x must have 2 to 5 dimensions, got shape {tuple(x.shape)}")
        if x.size(1) != self.num_features:
            raise ValueError(
                f"num_features={self.num_features} takes x of shape (N, {self.num_features}, ...), "
                f"got {tuple(x.shape)}"
            )

    def extra_repr(self):
        """Return the arguments."""
        mode = "" if self.weight_mode == "signed" else f", weight_mode={self.weight_mode!r}"
        return (
            f"{super().extra_repr()}, activation={self.activation!r}, "
            f"activation_param={self.activation_param}{mode}"
        )


class InPlaceABN(ABN):
    """`ABN` that writes its result over x: section 3 of Rota Bulò et al. 2018.

    x must not be used afterwards. Autograd raises an error in the backward if another operation needs the
    overwritten values. x is left as it is, and the result is a new tensor, if it is a leaf that requires a
    gradient, a view, or not dense in memory, or while saved-tensor hooks such as those of
    `torch.utils.checkpoint` are active. With activations that have no inverse, such as relu, x is overwritten
    by ``bn(x) + residual``, and z is a new tensor.

    Parameters
    ----------
    num_features, eps, momentum, affine, activation, activation_param
        As for `ABN`.
    track_running_stats, num_slopes, weight_mode, device, dtype
        As for `ABN`.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[1.0, 5.0], [3.0, 9.0]])
    >>> z = InPlaceABN(2)(x)
    >>> z is x
    True
    """

    _overwrites_input = True


class InPlaceABNSync(InPlaceABN):
    """`InPlaceABN` with the statistics of all processes of a group: section 4 of the paper.

    In training, each forward and each backward makes one collective operation, the first forward one more,
    which compares the settings; all processes must call the same modules in the same order. Batches may have
    different sizes, also none. Any backend of `torch.distributed` will do; with a GPU the host waits for
    each collective operation. The group's time-out is that for processes that do not call. Gradients of
    weight, bias and slope are the share of each process; average or add them up as
    `torch.nn.parallel.DistributedDataParallel` does.

    Parameters
    ----------
    num_features, eps, momentum, affine, activation, activation_param
        As for `ABN`.
    group : torch.distributed.ProcessGroup, optional
        None is the default group.
    **others : object
        As for `ABN`: track_running_stats, num_slopes, weight_mode, device, dtype.

    Raises
    ------
    ValueError
        In a training forward, in every process, if num_features, dtype, eps, momentum, activation or
        activation_param differ. It names the argument and the rank. No tensor is written.
    RuntimeError
        In a call, if another process raised an error in the same call before it exchanged anything. No tensor
        is written. Also from `torch.distributed`, after the time-out of the group.
    """

    synchronized = True

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, activation="leaky_relu",
        activation_param=0.01, group=None, **others,
    ):  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, activation, activation_param, **others)
        self.group = group

    def set_group(self, group):
        """Set the group of the next forward; None is the default group."""
        self.group = group
