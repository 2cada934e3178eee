"""Weights of the reference implementation, whose normalizations multiply by ``abs(weight) + eps``."""

__all__ = ["standard_weights"]


def standard_weights(state, *, eps=1e-5, names=None):
    """Return a state dict of the reference implementation with weights for every other batch norm.

    Its InPlaceABN and InPlaceABNSync multiply by ``abs(weight) + eps``, all others by the weight. Its ABN,
    which is not in place, uses the weight as it is: leave such modules out by `names`.

    Parameters
    ----------
    state : dict of str to Tensor
        Not changed.
    eps : float
        The eps of the normalizations.
    names : sequence of str, optional
        The modules to convert, such as ``["mod1.bn1"]``. Default: all with a weight and running statistics.

    Returns
    -------
    dict of str to Tensor

    Examples
    --------
    >>> import torch
    >>> state = {"bn.weight": torch.tensor([-2.0]), "bn.running_var": torch.ones(1)}
    >>> standard_weights(state)["bn.weight"].round()
    tensor([2.])
    """
    if names is None:
        names = [key.removesuffix("running_var").removesuffix(".") for key in state if _is_running_var(key)]
    converted = dict(state)
    for name in names:
        key = f"{name}.weight" if name else "weight"
        if key in state:
            converted[key] = state[key].abs() + eps
        elif name not in {other.rpartition(".")[0] for other in state}:
            raise ValueError(f"names: the state has no module {name!r}")
    return converted


def _is_running_var(key):
    return key.rpartition(".")[2] == "running_var"
