"""Parameter groups: checks of the parameters of an optimizer, and groups by weight decay."""

from collections.abc import Iterable, Mapping

from .._arguments import not_negative


def decay_groups(network, weight_decay):
    """Return parameter groups that exclude normalizations, biases and slopes from weight decay.

    Parameters with at most one axis have a weight decay of 0: weight and bias of normalizations, biases of
    convolutions and linear layers, slopes of prelu. All others have `weight_decay`.

    Parameters
    ----------
    network : Layer
    weight_decay : float >= 0

    Returns
    -------
    list of dict
        For `SGD`, `Adam` or `AdamW`: the group with weight decay, then the group without. Empty groups are
        omitted.

    Raises
    ------
    TypeError, ValueError
        If network is not a layer, and for a weight decay out of range.

    Examples
    --------
    >>> from inplace_abn import layers
    >>> net = layers.Sequential(layers.Conv2d(3, 8, 3), layers.InPlaceABN(8))
    >>> for group in decay_groups(net, weight_decay=1e-4):
    ...     print(group["weight_decay"], [parameter.name for parameter in group["params"]])
    0.0001 ['0.weight']
    0.0 ['0.bias', '1.weight', '1.bias']
    """
    if not hasattr(network, "parameters"):
        raise TypeError(f"network must be a Layer, got {type(network).__name__}")
    weight_decay = not_negative("weight_decay", weight_decay)
    matrices, vectors = [], []
    for parameter in network.parameters():
        (matrices if parameter.data.ndim > 1 else vectors).append(parameter)
    groups = (
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def as_groups(parameters):
    """Return a list of groups, dicts with the key "params", from parameters or groups.

    Raises
    ------
    TypeError, ValueError
        For other types, and an empty list.
    """
    if hasattr(parameters, "parameters") or not isinstance(parameters, Iterable):
        raise TypeError(
            "parameters must be what layer.parameters() returns, another iterable of Parameter, or a list of "
            f'groups {{"params": [...], "lr": ...}}, got {type(parameters).__name__}'
        )
    if isinstance(parameters, Mapping):
        raise TypeError('parameters must be a list of groups; for one group pass [{"params": [...], ...}]')
    items = list(parameters)
    if not items:
        raise ValueError("parameters must have at least one parameter, got none")
    grouped = [isinstance(item, Mapping) for item in items]
    if not any(grouped):
        return [{"params": items}]
    if not all(grouped):
        first = items[grouped.index(False)]
        raise TypeError(f"parameters must be all groups or all parameters, got groups and {first!r}")
    return items


def checked_parameters(group, start, present):
    """Return the parameters of a group as a list.

    Parameters
    ----------
    group : mapping
    start : int
        The number of the first parameter, for messages.
    present : list of Parameter
        The parameters of the previous groups.

    Raises
    ------
    TypeError, ValueError
        For a group without "params", elements that are not parameters, and a parameter that occurs twice.
    """
    if "params" not in group:
        raise ValueError(f'a parameter group must have the key "params", got {sorted(map(str, group))}')
    params = group["params"]
    # A single parameter stands for a list of it, as in PyTorch.
    params = [params] if is_parameter(params) else params
    if hasattr(params, "parameters") or not isinstance(params, Iterable):
        raise TypeError(
            '"params" of a group must be what layer.parameters() returns, or another iterable of Parameter, '
            f"got {type(params).__name__}"
        )
    found = []
    for number, parameter in enumerate(params, start):
        if not is_parameter(parameter):
            raise TypeError(
                f"parameters[{number}] must have data and grad, as the elements of layer.parameters() have, "
                f"got {type(parameter).__name__}"
            )
        if any(parameter is other for other in (*present, *found)):
            raise ValueError(f"parameters[{number}]{in_parentheses(parameter)} occurs twice")
        found.append(parameter)
    return found


def is_parameter(value):
    """Return True for an object with `data` and `grad`."""
    return hasattr(value, "data") and hasattr(value, "grad")


def in_parentheses(parameter):
    """Return the name of a parameter in parentheses for messages, or an empty string."""
    name = getattr(parameter, "name", None)
    return f" ({name})" if name else ""
