"""Batch normalization and activation as layers."""

from functools import partial
from types import MappingProxyType

import numpy as np

from .. import _arguments as arguments
from .._activations import ACTIVATIONS, KEEPS
from .._arguments import choice, compatible_dtypes, fraction, integer, layer_dtype, positive
from .activation import Activation, activation_of, parameter_of, refuse_in_place
from .base import Layer, Parameter
from .context import is_recomputing
from .saved_arrays import refuse_if_saved


class ABN(Layer):
    """Batch normalization and activation, ``z = activation(weight * xhat + bias)``, by a chosen strategy.

    Here ``xhat = (x - mean) / sqrt(var + eps)``, with mean and biased variance of each channel: of the batch
    in training, of the running statistics in evaluation. x has the shape (N, C, ...), or (N, ..., C) with
    ``channel_axis=-1``, and is float32, float64, float16 or bfloat16; z has the same shape and dtype.

    ``layer(x, residual=r)`` is ``activation(weight * xhat + bias + r)``, and the backward returns
    ``(dx, dr)``. r has shape, dtype and memory layout of x. It is kept for the backward, without additional
    memory if another layer keeps it as well, such as a convolution that takes it as input.

    ``layer(x, mask=mask)`` takes a bool array of the shape of x without the channel axis. Only positions
    where the mask is True count in the statistics; results and gradients are 0 at the others.

    The strategy determines which arrays are kept for the backward, and whether x is overwritten. It is
    defined at `inplace_abn.functional.forward`, from sections 3 and 4 of Rota Bulò et al. 2018
    (https://arxiv.org/abs/1712.02616). For a chain of this layer and a convolution, "standard" keeps two
    arrays of the size of x, all others one. Results and states are those of `torch.nn.BatchNorm2d` (1d, 3d).

    Parameters
    ----------
    num_features : int
        Channels of the input.
    eps : float > 0
        Added to the variance.
    momentum : float in [0, 1] or None
        Weight of each new batch in the running statistics. None averages over all batches.
    affine : bool
        False: no weight and bias.
    track_running_stats : bool
        False: no running statistics, and evaluation uses the statistics of the batch. If the attribute is set
        to False later, the running statistics are not updated any more, and evaluation uses them, as in
        PyTorch.
    activation : str
        "identity", "leaky_relu", "prelu", "elu", "celu", "selu", "softplus", "sigmoid", "tanh", "silu",
        "gelu", "gelu_tanh", "mish", "relu", "relu6", "hardsigmoid" or "hardswish", as `torch.nn.functional`
        defines them. The last four have no inverse, which the in-place strategies need. With silu, gelu,
        gelu_tanh and mish, these strategies keep one bit per element in addition to z.
    activation_param : float
        Slope of leaky_relu below zero, alpha of elu and celu (not 0), initial slope of prelu. Any finite
        number; above 0 for leaky_relu, elu and celu with an in-place strategy.
    strategy : str
        "standard", "checkpoint", "checkpoint_xhat", "pre_activation", "inplace_1", "inplace_2" or "inplace".
        "standard" and "checkpoint" do not change the input, the others overwrite it.
    num_slopes : int
        For prelu: 1, or num_features for one slope per channel.
    channel_axis : {1, -1}
        -1 for batches (N, ..., C).
    dtype : {float32, float64}
        Of parameters and running statistics: float64 for float64 batches, float32 for all others.

    Attributes
    ----------
    weight, bias : Parameter of shape (num_features,), or None
        Initially ones and zeros.
    slope : Parameter of shape (num_slopes,), or None
        Of prelu, trained. Weight decay should not be applied to it (He et al. 2015,
        https://arxiv.org/abs/1502.01852).
    running_mean, running_var : ndarray of shape (num_features,), or None
        Updated in place by each call in training. If None, evaluation uses the statistics of the batch.
    num_batches_tracked : int64 ndarray of shape (), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. In a call, as `inplace_abn.functional.forward`; also if an in-place
        layer would overwrite an input that another layer keeps for its backward.

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

    With a residual:

    >>> layer, r = ABN(2, activation="silu", strategy="inplace"), np.ones((2, 2), np.float32)
    >>> layer(x, residual=r) is x
    True
    >>> dx, dr = layer.backward(np.ones_like(x))
    >>> dr.round(2)
    array([[0.5 , 0.5 ],
           [1.09, 1.09]], dtype=float32)
    """

    takes_mask = True
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    checks = MappingProxyType(
        Layer.checks
        | {
            "num_features": partial(integer, least=1),
            "eps": positive,
            "momentum": lambda name, value: None if value is None else fraction(name, value),
            "activation": lambda _, value: activation_of(value),
        }
    )

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True,
        activation="leaky_relu", activation_param=0.01, strategy="standard", *, num_slopes=1,
        channel_axis=1, dtype=np.float32,
    ):  # fmt: skip
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = bool(affine), bool(track_running_stats)
        self.activation = activation
        self.num_slopes = choice("num_slopes", num_slopes, (1, self.num_features))
        dtype = layer_dtype(dtype)
        self.activation_param, slope = parameter_of(self.activation, activation_param, num_slopes, dtype)
        self.strategy = strategy
        self.channel_axis = channel_axis
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine else None
        self.slope = slope
        self.running_mean = np.zeros(num_features, dtype) if track_running_stats else None
        self.running_var = np.ones(num_features, dtype) if track_running_stats else None
        self.num_batches_tracked = np.array(0, np.int64) if track_running_stats else None

    @property
    def strategy(self):
        """The strategy of the next call."""
        return self._strategy

    @strategy.setter
    def strategy(self, strategy):
        try:
            strategy = choice("strategy", strategy, KEEPS)
            if KEEPS[strategy] == "z":
                refuse_in_place(self.activation, self.activation_param, strategy)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.label}: {error}") from None
        self._strategy = strategy

    @property
    def overwrites_input(self):
        """True for the strategies that keep z, y or xhat, written over x."""
        return KEEPS[self.strategy] != "x"

    @property
    def works_in_place(self):
        """True for the strategies that keep z, written over x."""
        return KEEPS[self.strategy] == "z"

    def takes_residual(self, activation=None):
        """Return True if a `Residual` should pass ``residual=`` and ``activation=`` to a call of this layer.

        True for in-place strategies, if this layer has the activation "identity" and `activation` has an
        inverse. With other strategies, keeping the residual would take more memory than a separate sum and
        activation.

        Parameters
        ----------
        activation : Activation or None
            The activation of the sum.
        """
        if KEEPS[self.strategy] != "z" or self.activation != "identity":
            return False
        last = self if activation is None else activation
        return ACTIVATIONS[last.activation].is_invertible(last.activation_param)

    def forward(self, ctx, x, residual=None, *, activation=None, mask=None):
        """Normalize, add the residual, and activate.

        Parameters
        ----------
        ctx : LayerContext
        x : ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
            Overwritten unless the strategy is "standard" or "checkpoint".
        residual : ndarray of the shape, dtype and memory layout of x, optional
        activation : Activation or ABN, optional
            Its activation and slope are used instead of those of this layer.
        mask : bool ndarray of the shape of x without the channel axis, optional

        Returns
        -------
        ndarray of the shape and dtype of x
        """
        self._check(x, mask)
        activating = self if activation is None else activation  # the layer with activation and slope
        if not isinstance(activating, (ABN, Activation)):
            raise TypeError(f"activation must be an Activation, an ABN or None, got {activation!r}")
        arrays = {"residual": residual, "slope": None if activating.slope is None else activating.slope.data}
        compatible_dtypes(x, *self._arrays().values(), arrays["slope"])
        if self.overwrites_input:
            refuse_if_saved(x, f"strategy {self.strategy!r}")
        z = self._normalize(
            ctx, x, **self._arrays(), training=self._normalizes_by_batch,
            momentum=self._momentum(), eps=self.eps, activation=activating.activation,
            activation_param=activating.activation_param, strategy=self.strategy,
            channel_axis=self.channel_axis, mask=mask, **arrays,
        )  # fmt: skip
        if self._updates_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked[...] += 1
        if ctx.recording:
            ctx.slope = activating.slope
            if self.strategy in ("checkpoint", "checkpoint_xhat", "pre_activation"):
                ctx.offer(z, ctx.normalization.recompute)
        return z

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return the gradients of x, of the residual if there is one, and of weight, bias and slope."""
        gradients = self._normalization_gradients(ctx, dz, overwrite)
        if ctx.slope is not None:
            ctx.slope.accumulate(gradients.dslope)
        inputs = (gradients.dx,) if gradients.dresidual is None else (gradients.dx, gradients.dresidual)
        parameters = (gradients.dweight, gradients.dbias) if self.weight is not None else ()
        # None for the slope: ctx.slope, which may be that of another layer, has accumulated its gradient.
        return (*inputs, *parameters) if self.slope is None else (*inputs, *parameters, None)

    def _normalize(self, ctx, x, **arguments):
        """Return z; `SyncABN` exchanges statistics before."""
        return ctx.normalize(x, **arguments)

    def _normalization_gradients(self, ctx, dz, overwrite):
        """Return the `Gradients` of the core; `SyncABN` exchanges sums before."""
        return ctx.normalization_gradients(dz, overwrite=overwrite)

    def reset_running_stats(self):
        """Set the running mean to 0, the running variance to 1 and the number of batches to 0."""
        if not self.track_running_stats:
            return
        for buffer, value in ((self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)):
            if buffer is not None:
                buffer[...] = value

    def reset_parameters(self):
        """Set weight, bias, slope and running statistics to their initial values."""
        self.reset_running_stats()
        if self.affine:
            self.weight.data[...], self.bias.data[...] = 1, 0
        if self.slope is not None:
            self.slope.data[...] = self.activation_param

    @property
    def _normalizes_by_batch(self):
        """True if the next call uses the statistics of its batch, False for the running statistics."""
        return self.training or (self.running_mean is None and self.running_var is None)

    def _needs_two_values(self, x):
        """Return True if x must have more than one value per channel."""
        return self._normalizes_by_batch

    @property
    def _updates_running_stats(self):
        """True if the next call updates the running statistics; a call that is repeated does not."""
        return self.training and self.track_running_stats and not is_recomputing()

    def _arrays(self):
        """Return weight, bias and running statistics as arguments of the core."""
        arrays = {}
        if self.weight is not None:
            arrays |= {"weight": self.weight.data, "bias": self.bias.data}
        if self._updates_running_stats or not self.training:
            arrays |= {"running_mean": self.running_mean, "running_var": self.running_var}
        return arrays

    def _momentum(self):
        """Return the weight of the batch in the running statistics; 1 / number of batches for None."""
        if self.momentum is not None:
            return self.momentum
        if not self._updates_running_stats or self.num_batches_tracked is None:
            return 0.0
        return 1 / (int(self.num_batches_tracked) + 1)

    def _check(self, x, mask):
        """Check number of channels and number of values per channel; the core checks everything else."""
        arguments.plain_array("x", x)
        if x.ndim < 2:
            return  # functional.forward raises the error
        if x.shape[self.channel_axis] != self.num_features:
            features = self.num_features
            shape = f"(N, {features}, ...)" if self.channel_axis == 1 else f"(N, ..., {features})"
            hint = arguments.channel_axis_hint(x.shape, features, self.channel_axis)
            raise ValueError(
                f"num_features={features} takes x of shape {shape}, got {x.shape} with "
                f"{x.shape[self.channel_axis]} channels{hint}"
            )
        if self._needs_two_values(x) and _values_per_channel(x, self.num_features, mask) == 1:
            raise ValueError(self._too_few_values(x, mask))

    def _too_few_values(self, x, mask):
        """Return the message for one value per channel; functional.forward's would suggest training=False."""
        when, instead = "in training", "eval()"
        if self.running_mean is None:
            when = (
                "without running statistics" if self.track_running_stats else "with track_running_stats=False"
            )
            instead = "eval() of a layer with track_running_stats=True"
        valid = "" if mask is None else " with 1 position where mask is True"
        return (
            f"x must have more than 1 value per channel {when}, got shape {x.shape}{valid}; use a larger "
            f"batch or larger images, or {instead}, for the running statistics"
        )

    def extra_repr(self):
        """Return the arguments."""
        return f"{self._batch_norm_repr()}, strategy={self.strategy!r}"

    def _batch_norm_repr(self):
        axis = ", channel_axis=-1" if self.channel_axis == -1 else ""
        slopes = "" if self.slope is None else f", num_slopes={self.num_slopes}"
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, activation={self.activation!r}, "
            f"activation_param={self.activation_param}{slopes}{axis}"
        )


def _values_per_channel(x, channels, mask):
    """Return the number of valid values per channel; functional.forward checks the dtype of the mask."""
    masked = isinstance(mask, np.ndarray) and mask.dtype == bool
    return int(np.count_nonzero(mask)) if masked else x.size // channels


class InPlaceABN(ABN):
    """Batch normalization and activation in place: the result z overwrites the input, and z alone is kept.

    An `ABN` with the strategy "inplace": section 3 of Rota Bulò et al. 2018
    (https://arxiv.org/abs/1712.02616). It takes half of the memory of "standard"; gradients are equal up to
    rounding. The result is the input array, read-only until the backward has run. The backward inverts the
    activation and recomputes ``xhat = (y - bias) / weight`` from z.

    In addition to z, it keeps the residual, if there is one, and everything that cannot be recomputed from z:

    - for silu, gelu, gelu_tanh and mish, one bit per element: the side of the minimum;
    - xhat of guarded channels: the weight is zero, or tiny compared to the bias or the residual, or the slope
      of prelu is not above zero;
    - xhat of escaped elements, where the activation is flat.

    With leaky_relu and ordinary weights, it keeps z alone.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, activation, activation_param
        As for `ABN`, but not the activations without an inverse: "relu", "relu6", "hardsigmoid", "hardswish".
    num_slopes, channel_axis, dtype
        As for `ABN`.

    Raises
    ------
    TypeError, ValueError
        As `ABN`. In a call, also if the input is read-only or another layer keeps it for its backward.

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
        activation="leaky_relu", activation_param=0.01, *, num_slopes=1, channel_axis=1,
        dtype=np.float32,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, activation, activation_param, "inplace",
            num_slopes=num_slopes, channel_axis=channel_axis, dtype=dtype,
        )  # fmt: skip

    def extra_repr(self):
        """Return the arguments."""
        changed = "" if self.strategy == "inplace" else f", strategy={self.strategy!r}"
        return self._batch_norm_repr() + changed
