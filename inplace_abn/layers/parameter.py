"""Parameters: trained arrays, named by their position in the layers."""

import weakref

import numpy as np

#: Attributes of layers and parameters that copies and pickles do not have.
NOT_COPIED = {
    "_parent", "_calls", "_why_no_call", "_dropped_note", "_warned", "_parameters", "_reference",
    "_name_function",
}  # fmt: skip


class Named:
    """An object that is an attribute of a layer, and named by the path to it."""

    _parent = None
    _key = ""

    @property
    def name(self):
        """The path from the outermost layer, such as "body.0.weight"; empty for the outermost layer."""
        parent = self._parent and self._parent()
        above = parent.name if parent is not None else ""
        return f"{above}.{self._key}" if above else self._key

    @property
    def _has_no_parent(self):
        return self._parent is None or self._parent() is None

    def _belongs_to(self, parent, key):
        self._parent, self._key = weakref.ref(parent), key

    def __getstate__(self):
        # Layer.__setstate__ assigns the attributes, and so sets parent and key.
        return {name: value for name, value in vars(self).items() if name not in NOT_COPIED}


class Parameter(Named):
    """An array that is trained.

    Parameters
    ----------
    data : ndarray
        Kept without a copy.
    requires_grad : bool

    Attributes
    ----------
    data : ndarray
        The values. May be replaced by a floating-point array of the same shape.
    grad : ndarray or None
        The sum of the gradients that were accumulated since it was set to None.
    requires_grad : bool
        False freezes the parameter: no gradient is added to `grad`, optimizers skip it, and operations do
        not compute its gradient where that saves work. See `Layer.requires_grad_`.
    name : str
        The path from the outermost layer, such as "body.0.weight".

    Raises
    ------
    TypeError, ValueError
        If `data` is assigned an object that is no ndarray, or an array of another shape or kind.

    Examples
    --------
    >>> parameter = Parameter(np.zeros(2))
    >>> parameter.data = [1.0, 1.0]
    Traceback (most recent call last):
    TypeError: data must be a numpy.ndarray, got list; write data[...] = values to keep the array
    """

    def __init__(self, data, requires_grad=True):
        self._data = np.asarray(data)
        self.grad = None
        self.requires_grad = bool(requires_grad)

    @property
    def data(self):
        """The values."""
        return self._data

    @data.setter
    def data(self, data):
        name = f"{self.name}.data" if self.name else "data"
        if not isinstance(data, np.ndarray):
            raise TypeError(
                f"{name} must be a numpy.ndarray, got {type(data).__name__}; write {name}[...] = values to "
                "keep the array"
            )
        if data.shape != self._data.shape:
            raise ValueError(f"{name}: expected shape {self._data.shape}, got {data.shape}")
        if data.dtype.kind not in "fV":  # V: bfloat16
            raise TypeError(f"{name}: expected a floating-point dtype, got {data.dtype}")
        self._data = data

    def accumulate(self, gradient):
        """Add a gradient to `grad`; a frozen parameter ignores it.

        The first gradient becomes `grad` itself, without a copy, and later ones are added to it in place.
        """
        if not self.requires_grad:
            return
        if gradient.shape != self._data.shape:
            raise ValueError(
                f"{self.name or 'parameter'}: the gradient has shape {gradient.shape}, "
                f"the data {self._data.shape}"
            )
        if self.grad is None:
            self.grad = gradient
        else:
            self.grad += gradient

    def __repr__(self):
        frozen = "" if self.requires_grad else ", frozen"
        return f"Parameter {self.name or '(no name)'} of shape {self.data.shape}, {self.data.dtype}{frozen}"
