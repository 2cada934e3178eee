"""Normalizations folded into the convolutions before them."""

from collections import Counter

import numpy as np

from ..layers import Activation, ConvTranspose2d, Identity, Parameter
from .trace import trace

#: Layers whose weight and bias can take a scale and a shift per output channel.
LINEAR = ("Conv2d", "ConvTranspose2d", "Linear")


def fold(network, input_shape, dtype=None):
    """Return a copy of a network, in evaluation, with normalizations folded into convolutions.

    In evaluation a normalization multiplies each channel by ``scale = weight / sqrt(running_var + eps)`` and
    adds a constant. If it follows a `Conv2d`, `ConvTranspose2d` or `Linear`, whose result no other layer
    takes, then ``scale`` is multiplied into its weight and the constant is added to its bias (Jacob et al.
    2018, section 3.2, https://arxiv.org/abs/1712.05877). The normalization is replaced by an `Activation`, or
    by `Identity`. The arithmetic is that of float64, and the result is rounded to the dtype of the weight.

    All other normalizations remain: those that follow other layers, as in pre-activation networks, those
    without running statistics, and those in layers of types that the export does not support.

    Parameters
    ----------
    network : Layer
        Is not changed. Its mode does not matter.
    input_shape : tuple of int, or list of tuples
        Shape of one sample, such as (3, 224, 224); a list if there are several inputs. The layers are
        called once, on arrays without memory, to find out which one takes the result of which.
    dtype : {float32, float64, float16}, optional
        Of the inputs. Parameters and running statistics are converted: to float64 for float64, else to
        float32. Default: no conversion, for networks of float32 or float64.

    Returns
    -------
    Layer

    Raises
    ------
    TypeError, ValueError
        If the network does not take such an input.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import layers
    >>> net = layers.Sequential(layers.Conv2d(3, 8, 1), layers.InPlaceABN(8))
    >>> folded = fold(net, (3, 16, 16))
    >>> folded
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(1, 1), stride=(1, 1))
      (1): Activation('leaky_relu', activation_param=0.01, inplace=True)
    )
    >>> x = np.ones((1, 3, 16, 16), np.float32)
    >>> np.allclose(folded(x), net.eval()(x), atol=1e-6)
    True
    """
    traced = trace(network, input_shape, dtype)
    for layer, abn in foldable(traced):
        fold_into(layer, abn)
        _replace(traced.network, abn, _activation_of(abn))
    return traced.network


def foldable(traced):
    """Return the pairs (layer, ABN) of a `Trace` to fold, where the ABN takes every result of the layer."""
    makers = {value: step for step in traced.steps for value in step.outputs}
    uses = Counter((*traced.outputs, *(value for step in traced.steps for value in step.inputs)))
    calls = {}
    for step in traced.steps:
        if step.op in LINEAR or step.op == "ABN":
            calls.setdefault(id(step.layer), []).append(step)
    pairs, needed = [], _needed_elsewhere(traced)
    for steps in calls.values():
        before = [makers.get(step.inputs[0]) for step in steps]
        if steps[0].op != "ABN" or None in before or before[0].op not in LINEAR:
            continue
        layer, abn = before[0].layer, steps[0].layer
        fit = all(
            maker.layer is layer and uses[step.inputs[0]] == 1 and _fits(maker, step)
            for maker, step in zip(before, steps, strict=True)
        )
        if fit and len(calls[id(layer)]) == len(steps) and not needed & {id(layer), id(abn)}:
            pairs.append((layer, abn))
    return pairs


def _needed_elsewhere(traced):
    """Return the ids of layers that unknown layers may call, or whose parameters are used as arrays."""
    layers = {id(layer) for step in traced.steps if not step.op for _, layer in step.layer.named_layers()}
    constants = {id(value.constant) for step in traced.steps for value in step.inputs}
    for _, layer in traced.network.named_layers():
        if any(id(parameter.data) in constants for parameter in layer.own_parameters().values()):
            layers.add(id(layer))
    return layers


def _fits(before, step):
    """Return True if an ABN has running statistics and normalizes the output channels of the step before."""
    abn, layer = step.layer, before.layer
    if step.has_options or abn._normalizes_by_batch:
        return False
    if before.op == "Linear":
        return len(step.inputs[0].shape) == 2 or abn.channel_axis == -1
    return layer.channel_axis == abn.channel_axis


def fold_into(layer, abn):
    """Multiply the scale of an ABN into the weight of the layer before it, and add its shift to the bias."""
    mean, var = abn.running_mean.astype(np.float64), abn.running_var.astype(np.float64)
    scale = 1 / np.sqrt(var + abn.eps)
    bias = -mean if layer.bias is None else layer.bias.data.astype(np.float64) - mean
    if abn.weight is not None:
        scale *= abn.weight.data.astype(np.float64)
    bias *= scale
    if abn.bias is not None:
        bias += abn.bias.data.astype(np.float64)
    weight = layer.weight.data.astype(np.float64) * _per_output(layer, scale)
    old = layer.weight
    layer.weight = Parameter(weight.astype(old.data.dtype), old.requires_grad)
    layer.bias = Parameter(bias.astype(old.data.dtype), old.requires_grad)


def _per_output(layer, scale):
    """Return the scale of each output channel in a shape that broadcasts with the weight."""
    shape = layer.weight.data.shape
    if not isinstance(layer, ConvTranspose2d):
        return scale.reshape(-1, *[1] * (len(shape) - 1))
    by_group = scale.reshape(layer.groups, 1, shape[1])  # the weight is (inputs, outputs of a group, ...)
    return np.repeat(by_group, shape[0] // layer.groups, axis=1).reshape(shape[0], shape[1], 1, 1)


def _activation_of(abn):
    """Return the activation of an ABN as a layer, with the same slope."""
    if abn.activation == "identity":
        return Identity().eval()
    activation = Activation(
        abn.activation, abn.activation_param, inplace=abn.works_in_place, channel_axis=abn.channel_axis
    )
    if abn.slope is not None:
        activation.slope = abn.slope
    return activation.eval()


def _replace(network, old, new):
    """Replace a layer of a network wherever it is an attribute."""
    for _, layer in list(network.named_layers()):
        for key, child in list(layer.children()):
            if child is old:
                setattr(layer, key, new)
