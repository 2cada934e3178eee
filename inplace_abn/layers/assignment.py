"""Checks of assignments to attributes of layers: parameters, buffers, settings, lists of layers."""

import numpy as np

from .parameter import NOT_COPIED, Named, Parameter

#: Containers in which a layer would not be found.
PLAIN_CONTAINERS = (list, tuple, set, frozenset, dict)


def checked(layer, key, value, current):
    """Return the value to assign to attribute `key` of a layer.

    Parameters
    ----------
    layer : Layer
    key : str
    value : object
    current : object
        The present value of the attribute, or None.

    Raises
    ------
    TypeError, ValueError
        If a parameter or a buffer would be replaced by an object that does not fit, if a list or dict
        contains layers or parameters, or if the layer's own check refuses the value.
    """
    if isinstance(value, PLAIN_CONTAINERS):
        _refuse_hidden_in(layer, key, value)
    if isinstance(current, Parameter) and not isinstance(value, Parameter):
        raise TypeError(
            f"{layer.label}: {key} must be a Parameter, got {type(value).__name__}; write "
            f"layer.{key}.data[...] = array for other values, or assign Parameter(array)"
        )
    if key in layer.buffers:
        _check_buffer(layer, key, value, current)
    check = layer.checks.get(key)
    if check is None:
        return value
    try:
        return check(key, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{layer.label}: {error}") from None


def _check_buffer(layer, key, value, current):
    """Refuse a buffer of another shape or kind of dtype than the present one."""
    if value is None:
        return
    name = f"{layer.label}: {key}"
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name} must be a numpy.ndarray or None, got {type(value).__name__}; write "
            f"layer.{key}[...] = values to keep the array"
        )
    if not isinstance(current, np.ndarray):
        return
    if value.shape != current.shape:
        raise ValueError(f"{name}: expected shape {current.shape}, got {value.shape}")
    if (value.dtype.kind in "iu") != (current.dtype.kind in "iu") or value.dtype.kind not in "iufV":
        raise TypeError(f"{name}: expected {current.dtype}, got {value.dtype}")


def refuse_hidden(layer):
    """Refuse layers and parameters hidden in lists and dicts of a layer and the layers inside it.

    A list may have been filled after its assignment, which `checked` did not see. Layers and parameters that
    are also an attribute of any layer of the network are accepted.
    """
    root = layer
    while (parent := root._parent and root._parent()) is not None:
        root = parent
    known = set()
    for _, inner in root.named_layers():
        known.update([id(inner), *map(id, inner.own_parameters().values())])
    for _, inner in layer.named_layers():
        for key, value in vars(inner).items():
            if isinstance(value, PLAIN_CONTAINERS) and value and key not in NOT_COPIED:
                _refuse_hidden_in(inner, key, value, known)


def _refuse_hidden_in(layer, key, value, known=()):
    """Refuse a list or dict in which layers or parameters are hidden: they would not be trained or saved.

    Parameters
    ----------
    layer : Layer
    key : str
        Attribute of the layer.
    value : list or dict
    known : set of int
        Ids of layers and parameters that another attribute has.
    """
    hidden = [(path, element) for path, element in _hidden(value, "") if id(element) not in known]
    if not hidden:
        return
    shown = ", ".join(f"{path} ({type(element).__name__})" for path, element in hidden[:4])
    more = ", ..." if hidden[4:] else ""
    kind = "ModuleDict" if isinstance(value, dict) else "ModuleList"
    instead = f"assign layers.{kind}({key})"
    if any(isinstance(element, Parameter) for _, element in hidden):
        instead = "assign each Parameter to an attribute of its own"
    raise TypeError(
        f"{layer.label}: {key} is a {type(value).__name__} that contains {shown}{more}, which parameters(), "
        f"state_dict() and eval() do not find; {instead}"
    )


def _hidden(value, path):
    """Yield the (path, object) of layers and parameters in nested lists and dicts."""
    if isinstance(value, Named):
        yield path, value
    elif isinstance(value, PLAIN_CONTAINERS):
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _hidden(inside, f"{path}[{key!r}]")
