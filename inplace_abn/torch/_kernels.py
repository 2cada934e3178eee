"""Calls of the core on tensors. x is dense and on the CPU."""

from .. import functional
from . import _synchronized
from ._activations import activate, gradient
from ._tensors import VECTOR_DTYPES, to_array, to_tensor


def forward(x, weight, bias, residual, slope, norm):
    """Write ``z = activation(batch norm of x + residual)`` over x and return the context for `backward`."""
    dtype = VECTOR_DTYPES[x.dtype]
    arrays = {"weight": weight, "bias": bias, "slope": slope}
    running = {"running_mean": norm.running_mean, "running_var": norm.running_var}
    converted = {name: _converted(tensor, dtype) for name, tensor in (arrays | running).items()}
    vectors = {name: to_array(tensor) for name, tensor in converted.items()}
    if norm.group is not None:
        context = _synchronized.forward(to_array(x), vectors, to_array(residual), norm)
    else:
        _, context = functional.forward(
            to_array(x), residual=to_array(residual), training=norm.training, momentum=norm.momentum,
            eps=norm.eps, activation=norm.activation, activation_param=norm.param, **vectors,
        )  # fmt: skip
    if norm.training:
        for name, tensor in running.items():
            if tensor is not converted[name]:
                tensor.copy_(converted[name])
    return context


def forward_sum(x, weight, bias, residual, slope, norm):
    """Write ``s = batch norm of x + residual`` over x; return ``z = activation(s)`` and the context."""
    context = forward(x, weight, bias, None, None, norm._replace(activation="identity", param=1.0))
    if residual is not None:
        x.add_(residual)
    return activate(norm.activation, x, norm.param, slope), (context, x.detach())


def backward(context, dz, overwrite):
    """Return the gradients of x, weight, bias, slope and residual; overwrite: dx goes over dz."""
    if isinstance(context, _synchronized.SynchronizedContext):
        return _synchronized.backward(context, to_array(dz), overwrite)
    found = functional.backward(context, to_array(dz), overwrite=overwrite)
    gradients = (*found, found.dresidual, found.dslope)
    return tuple(to_tensor(g) for g in gradients)


def backward_sum(context, residual, dz, norm):
    """Return the gradients as `backward` does, for `forward_sum`. s is overwritten."""
    context, s = context
    dy = gradient(norm.activation, dz, s, norm.param)
    if residual is not None:
        s.sub_(residual)
    dx, dweight, dbias, _, _ = backward(context, dy, overwrite=residual is None)
    return dx, dweight, dbias, None if residual is None else dy, None


def _converted(tensor, dtype):
    if tensor is None or tensor.dtype is dtype:
        return tensor
    return tensor.detach().to(dtype)
