"""Batch normalization and activation as layers."""

import numpy as np

from .. import functional
from ..reference import ACTIVATIONS, KEEPS
from .base import Layer, Parameter
from .checks import choice, fraction, positive, whole
from .kept import claim


class ABN(Layer):
    """Batch normalization and activation, ``activation(weight * xhat + bias)``, keeping what you choose.

    Loads what `torch.nn.BatchNorm2d` (1d, 3d) saves, and gives the same results. Everything about the
    strategies is said at `inplace_abn.functional.forward`; for a chain of this layer and a convolution,
    "standard" keeps two arrays of the size of x, all others one.

    Parameters
    ----------
    num_features : int
        Channels of the input.
    eps : float > 0
    momentum : float in [0, 1] or None
        Share of each new batch in the running statistics. None averages over all batches so far.
    affine : bool
        False: no weight and bias.
    track_running_stats : bool
        False: no running statistics, evaluation uses those of the batch as well.
    activation : {"leaky_relu", "elu", "identity", "relu"}
        relu not with the in-place strategies: it has no inverse.
    activation_param : float > 0
        Slope of leaky_relu below zero, alpha of elu.
    strategy : {"standard", "checkpoint", "checkpoint_xhat", "inplace_1", "inplace_2", "inplace"}
        "standard" and "checkpoint" leave the input alone, the others overwrite it.
    channel_axis : {1, -1}
        -1 for batches (N, ..., C).
    dtype : dtype
        Of the parameters: float64 for float64 batches, float32 for all others.

    Attributes
    ----------
    weight, bias : Parameter of shape (num_features,), or None
        Ones and zeros at first.
    running_mean, running_var : ndarray of shape (num_features,), or None
    num_batches_tracked : int64 ndarray of shape (), or None

    Raises
    ------
    TypeError, ValueError
        For arguments as above; calls refuse what `inplace_abn.functional.forward` refuses, and an in-place
        layer an input that another layer needs for its backward, naming both.

    Examples
    --------
    >>> import numpy as np
    >>> layer, x = ABN(2), np.array([[1, 5], [3, 9]], np.float32)
    >>> z = layer(x)
    >>> z.round(2)
    array([[-0.01, -0.01],
           [ 1.  ,  1.  ]], dtype=float32)
    >>> dx = layer.backward(np.ones_like(z))
    >>> layer.bias.grad.round(2)
    array([1.01, 1.01], dtype=float32)
    """

    buffers = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True,
        activation="leaky_relu", activation_param=0.01, strategy="standard", *, channel_axis=1,
        dtype=np.float32,
    ):  # fmt: skip
        self.num_features = whole("num_features", num_features, least=1)
        self.eps = positive("eps", eps)
        self.momentum = None if momentum is None else fraction("momentum", momentum)
        self.affine, self.track_running_stats = bool(affine), bool(track_running_stats)
        self.activation = choice("activation", activation, ACTIVATIONS)
        self.activation_param = positive("activation_param", activation_param)
        self.strategy = strategy
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))
        dtype = np.dtype(choice("dtype", np.dtype(dtype).name, ("float32", "float64")))
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine else None
        self.running_mean = np.zeros(num_features, dtype) if track_running_stats else None
        self.running_var = np.ones(num_features, dtype) if track_running_stats else None
        self.num_batches_tracked = np.array(0, np.int64) if track_running_stats else None

    @property
    def strategy(self):
        """What is kept; it may be changed between calls."""
        return self._strategy

    @strategy.setter
    def strategy(self, strategy):
        strategy = choice("strategy", strategy, KEEPS)
        if KEEPS[strategy] == "z" and ACTIVATIONS[self.activation].inverse is None:
            raise ValueError(
                f"activation {self.activation!r} has no inverse, so strategy {strategy!r}, which keeps z "
                "alone, cannot have it; use 'leaky_relu' (activation_param=0.01 is close to relu), 'elu' or "
                "'identity', or strategy 'standard', 'checkpoint' or 'checkpoint_xhat'"
            )
        self._strategy = strategy

    @property
    def overwrites_input(self):
        """True for the strategies that keep z or xhat, in the memory of x."""
        return KEEPS[self.strategy] != "x"

    def forward(self, ctx, x):
        """Normalize and activate."""
        self._check(x)
        if self.overwrites_input:
            claim(x, f"strategy {self.strategy!r}")
        writeable = x.flags.writeable
        z, kept = functional.forward(
            x, *self._arrays(), training=self.training or not self.track_running_stats,
            momentum=self._momentum(), eps=self.eps, activation=self.activation,
            activation_param=self.activation_param, strategy=self.strategy, channel_axis=self.channel_axis,
        )  # fmt: skip
        if self.training and self.track_running_stats:
            self.num_batches_tracked += 1
        if ctx.recording:
            self._keep(ctx, kept, z, writeable)
        return z

    def _keep(self, ctx, kept, z, writeable):
        ctx.kept = kept
        (source, array, _), *beside = kept.saved
        ctx.keep(source, array, writeable)
        for role, array, _ in beside:
            ctx.keep(role, array)
        if self.strategy in ("checkpoint", "checkpoint_xhat"):
            ctx.offer(z, kept.recompute, source)

    def gradients(self, ctx, dz, *, overwrite=False):
        """Gradients of x, weight and bias."""
        dx, dweight, dbias = functional.backward(ctx.kept, dz, overwrite=overwrite)
        return (dx, dweight, dbias) if self.affine else dx

    def _arrays(self):
        weight, bias = (self.weight.data, self.bias.data) if self.affine else (None, None)
        return weight, bias, self.running_mean, self.running_var

    def _momentum(self):
        if self.momentum is not None:
            return self.momentum
        return 1 / (int(self.num_batches_tracked) + 1) if self.track_running_stats else 0.0

    def _check(self, x):
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x must be a numpy.ndarray, got {type(x).__name__}")
        if x.ndim < 2:
            return  # functional.forward says what is wrong
        if x.shape[self.channel_axis] != self.num_features:
            features = self.num_features
            shape = f"(N, {features}, ...)" if self.channel_axis == 1 else f"(N, ..., {features})"
            raise ValueError(
                f"num_features={features} takes x of shape {shape}, got {x.shape} with "
                f"{x.shape[self.channel_axis]} channels"
            )

    def extra_repr(self):
        """Return the arguments."""
        return f"{self._batch_norm_repr()}, strategy={self.strategy!r}"

    def _batch_norm_repr(self):
        axis = ", channel_axis=-1" if self.channel_axis == -1 else ""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, activation={self.activation!r}, "
            f"activation_param={self.activation_param}{axis}"
        )


class InPlaceABN(ABN):
    """Batch normalization and activation that overwrites its input by its result, and keeps nothing else.

    An `ABN` with the strategy "inplace" of the paper: half of the memory of "standard", and the same
    gradients to rounding. The result is the input array itself, locked until the backward has run.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, activation, activation_param
        As for `ABN`; relu is not possible.
    channel_axis, dtype
        As for `ABN`.

    Examples
    --------
    >>> import numpy as np
    >>> layer, x = InPlaceABN(2), np.array([[1, 5], [3, 9]], np.float32)
    >>> layer(x) is x, x.flags.writeable
    (True, False)
    >>> dx = layer.backward(np.ones((2, 2), np.float32))
    >>> x.flags.writeable
    True
    """

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True,
        activation="leaky_relu", activation_param=0.01, *, channel_axis=1, dtype=np.float32,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, activation, activation_param, "inplace",
            channel_axis=channel_axis, dtype=dtype,
        )  # fmt: skip

    def extra_repr(self):
        """Return the arguments."""
        changed = "" if self.strategy == "inplace" else f", strategy={self.strategy!r}"
        return self._batch_norm_repr() + changed
