"""Networks that overwrite nothing: the strategy "standard" in all normalizations."""

import copy

from ..layers import (
    ABN,
    Activation,
    InPlaceABN,
    InPlaceABNSync,
    Layer,
    Recompute,
    Sequential,
    SyncABN,
)

#: Class -> the plain class that takes over its attributes.
PLAIN = {InPlaceABN: ABN, SyncABN: ABN, InPlaceABNSync: ABN, Recompute: Sequential}


def to_standard(network):
    """Return a copy of a network whose layers are plain: none works in place, none recomputes.

    Every normalization is an `ABN` with the strategy "standard" and without a group, every `Activation` has
    ``inplace=False``, and a `Recompute` becomes a `Sequential`. Results and gradients of one process are the
    same up to rounding. Names and states are equal, so that states can be loaded in both directions.

    Parameters
    ----------
    network : Layer
        Is not changed.

    Returns
    -------
    Layer

    Examples
    --------
    >>> from inplace_abn import layers
    >>> to_standard(layers.Sequential(layers.Conv2d(3, 8, 1), layers.InPlaceABN(8)))[1].strategy
    'standard'
    """
    if not isinstance(network, Layer):
        raise TypeError(f"network must be a Layer, got {type(network).__name__}")
    network = copy.deepcopy(network)
    for _, layer in network.named_layers():
        if isinstance(layer, ABN):
            layer.strategy = "standard"
        if isinstance(layer, Activation):
            layer.inplace = False
        layer.__class__ = PLAIN.get(type(layer), type(layer))
        if type(layer) is ABN:
            vars(layer).pop("_exchange", None)  # of SyncABN
    return network
