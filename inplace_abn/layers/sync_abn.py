"""Batch normalization and activation with the statistics of all processes: section 4 of the paper."""

from types import MappingProxyType

import numpy as np

from .. import functional
from .._arguments import plain_array
from .._shape_arrays import ShapeArray
from ..distributed.exchange import Exchange
from ..distributed.group import check_group
from .abn import ABN, InPlaceABN


class SyncABN(ABN):
    """`ABN` with the statistics of the batches of all processes of a group, as if they were one batch.

    For data-parallel training with few images per process: section 4 of Rota Bulò et al. 2018
    (https://arxiv.org/abs/1712.02616). Batches may have different sizes, also none. Each training forward
    exchanges mean, variance and count, 2 C + 1 numbers, and each backward two sums, 2 C numbers, in one
    collective operation; one more number shows whether the processes agree. The first forward compares the
    settings in another one. All processes must call the same layers in the same order, forwards and
    backwards. In evaluation, and in a group of one process, the layer is an `ABN`.

    z, dx and the running statistics are those of one process with the whole batch. Gradients of weight, bias
    and slope are the shares of each process: add them up over the processes, as those of all other layers.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, activation, activation_param, strategy
        As for `ABN`.
    num_slopes, channel_axis, dtype
        As for `ABN`.
    group : mpi4py.MPI.Comm, Group or None
        None is all processes of MPI; see `inplace_abn.distributed`.

    Raises
    ------
    TypeError, ValueError
        As `ABN`. In a training forward, on every process: a ValueError that names the argument and the rank
        if num_features, dtype, eps, momentum, strategy, activation or activation_param differ, or if all
        batches together have one value per channel. No array is written.
    RuntimeError
        In a call, if another process raised an error in the same call before it exchanged anything; that
        process raises its own. No array is written.
    TimeoutError
        In a call, from `MPIGroup`, if another process does not make the call in time.

    Examples
    --------
    ::

        layer = layers.SyncABN(64, activation="relu")  # mpiexec -n 4 python -m mpi4py train.py
    """

    checks = MappingProxyType(ABN.checks | {"group": check_group})

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True,
        activation="leaky_relu", activation_param=0.01, strategy="standard", *, num_slopes=1,
        channel_axis=1, dtype=np.float32, group=None,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, activation, activation_param, strategy,
            num_slopes=num_slopes, channel_axis=channel_axis, dtype=dtype,
        )  # fmt: skip
        self.group = group

    @property
    def group(self):
        """The group of the next forward. A backward uses that of its forward."""
        return self._exchange.requested_group

    @group.setter
    def group(self, group):
        self._exchange = Exchange(group)

    def set_group(self, group):
        """Set the group of the next forward; None is all processes of MPI.

        Parameters
        ----------
        group : mpi4py.MPI.Comm, Group or None
        """
        self.group = group

    def forward(self, ctx, x, residual=None, *, activation=None, mask=None):
        """Normalize by the statistics of all processes, add the residual, and activate.

        Parameters
        ----------
        ctx : LayerContext
        x, residual, activation, mask
            As for `ABN.forward`.

        Returns
        -------
        ndarray of the shape and dtype of x
        """
        if not self._is_synchronized(x):
            return super().forward(ctx, x, residual, activation=activation, mask=mask)
        activating = self if activation is None else activation
        with self._exchange.forward(
            self.num_features, dtype=str(getattr(x, "dtype", None)), eps=float(self.eps),
            momentum=self.momentum, strategy=self.strategy, activation=activating.activation,
            activation_param=float(activating.activation_param),
        ) as ctx.step:  # fmt: skip
            return super().forward(ctx, x, residual, activation=activation, mask=mask)

    def _normalize(self, ctx, x, *, training, residual, mask, **arguments):
        if not self._is_synchronized(x):
            return super()._normalize(ctx, x, training=training, residual=residual, mask=mask, **arguments)
        # functional.normalize refuses these after the exchange, too late for the other processes.
        if residual is not None:
            plain_array("residual", residual)
            if (residual.shape, residual.dtype) != (x.shape, x.dtype):
                raise ValueError(
                    f"residual must have the shape {x.shape} and dtype {x.dtype} of x, got shape "
                    f"{residual.shape} and {residual.dtype}"
                )
        if self.overwrites_input and not x.flags.writeable:
            raise ValueError(f"x must be writeable with strategy {self.strategy!r}, got a read-only array")
        own_statistics = functional.statistics(x, channel_axis=self.channel_axis, mask=mask)
        mean, var, count = ctx.step.merged_statistics(*own_statistics)
        return ctx.normalize(x, mean=mean, var=var, count=count, residual=residual, mask=mask, **arguments)

    def _normalization_gradients(self, ctx, dz, overwrite):
        forward_step, normalization = getattr(ctx, "step", None), ctx.normalization
        if forward_step is None:  # the forward was not synchronized
            return super()._normalization_gradients(ctx, dz, overwrite)
        with forward_step.backward() as backward_step:
            sums = functional.backward_reduce(normalization, dz)
            sum_dy, sum_dy_xhat = backward_step.total_sums(sums)
        dresidual = np.empty_like(dz) if "residual" in normalization.saved else None
        dx = functional.backward_apply(
            normalization, dz, sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat, count=forward_step.count,
            overwrite=overwrite, residual_out=dresidual,
        )  # fmt: skip
        dweight, dbias = sums.sum_dy_xhat, sums.sum_dy
        if self.weight is not None:
            dtype = self.weight.data.dtype
            dweight, dbias = dweight.astype(dtype), dbias.astype(dtype)
        dslope = None if ctx.slope is None else sums.dslope.astype(ctx.slope.data.dtype)
        return functional.Gradients(dx, dweight, dbias, dslope, dresidual)

    def _is_synchronized(self, x):
        """Return True if a call takes the statistics of all processes."""
        # A plan follows the shapes of one process, and exchanges nothing.
        return self.training and not isinstance(x, ShapeArray) and self._exchange.group.size > 1

    def _needs_two_values(self, x):
        return self._normalizes_by_batch and not self._is_synchronized(x)


class InPlaceABNSync(SyncABN, InPlaceABN):
    """`InPlaceABN` with the statistics of all processes of a group: `SyncABN` with the strategy "inplace".

    The name is that of the reference implementation.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, activation, activation_param
        As for `InPlaceABN`.
    group, num_slopes, channel_axis, dtype
        As for `SyncABN`.

    Raises
    ------
    TypeError, ValueError, RuntimeError, TimeoutError
        As `SyncABN`.

    Examples
    --------
    In a group of one process, it is an `InPlaceABN`:

    >>> class Alone:
    ...     size, rank = 1, 0
    ...     def all_gather(self, values):
    ...         return values[None]
    >>> layer, x = InPlaceABNSync(2, group=Alone()), np.array([[1, 5], [3, 9]], np.float32)
    >>> layer(x) is x
    True
    """

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True,
        activation="leaky_relu", activation_param=0.01, group=None, *, num_slopes=1, channel_axis=1,
        dtype=np.float32,
    ):  # fmt: skip
        InPlaceABN.__init__(
            self, num_features, eps, momentum, affine, track_running_stats, activation, activation_param,
            num_slopes=num_slopes, channel_axis=channel_axis, dtype=dtype,
        )  # fmt: skip
        self.group = group


def convert_sync(network, group=None):
    """Give every `ABN` and `InPlaceABN` of a network the statistics of all processes of a group.

    Parameters
    ----------
    network : Layer
        Changed in place: each of these layers becomes a `SyncABN` or an `InPlaceABNSync`, with the parameters
        and the state that it has. Layers of subclasses of your own are left as they are.
    group : mpi4py.MPI.Comm, Group or None
        None is all processes of MPI.

    Returns
    -------
    Layer
        `network`.

    Raises
    ------
    TypeError
        If `group` is not as above.

    Examples
    --------
    >>> from inplace_abn import layers
    >>> net = layers.Sequential(layers.Conv2d(3, 8, 3), layers.InPlaceABN(8))
    >>> type(layers.convert_sync(net)[1]).__name__
    'InPlaceABNSync'
    """
    synchronized = {ABN: SyncABN, InPlaceABN: InPlaceABNSync}
    for _, layer in network.named_layers():
        if type(layer) in synchronized:
            layer.__class__ = synchronized[type(layer)]
            layer.group = group
    return network


def set_active_group(network, group):
    """Set the group of every `SyncABN` of a network. The name is that of the reference implementation.

    Parameters
    ----------
    network : Layer
    group : mpi4py.MPI.Comm, Group or None
        None is all processes of MPI.

    Raises
    ------
    TypeError
        If `group` is not as above.
    """
    for _, layer in network.named_layers():
        if isinstance(layer, SyncABN):
            layer.set_group(group)
