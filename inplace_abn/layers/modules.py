"""Lists and dicts of layers whose elements parameters(), state_dict() and eval() find."""

from .base import Layer


class LayerSequence(Layer):
    """A sequence of layers: base of `ModuleList` and `Sequential`.

    Default names are the positions "0", "1" and so on. They are updated when layers are inserted or deleted;
    other names do not change.
    """

    def __iter__(self):
        return (layer for _, layer in self.children())

    def __len__(self):
        return sum(1 for _ in self)

    def __getitem__(self, index):
        chosen = list(self)[index]
        return self._with_layers(chosen) if isinstance(index, slice) else chosen

    def _with_layers(self, layers):
        """Return a sequence of the same kind, for a slice."""
        return type(self)(layers)

    def __setitem__(self, index, layer):
        """Replace a layer. The new layer takes over the name."""
        names = [name for name, _ in self.children()]
        setattr(self, names[self._position(index)], _checked_layer(f"layer {index}", layer))

    def __delitem__(self, index):
        items = list(self.children())
        if not isinstance(index, slice):
            self._position(index)
        del items[index]
        self._replace_layers(items)

    def append(self, layer, name=None):
        """Append a layer, by default named by its position. Return the sequence."""
        name = str(len(self)) if name is None else name
        _checked_layer(f"layer {name!r}", layer)
        _refuse_name(self, name)
        setattr(self, name, layer)
        return self

    def extend(self, layers):
        """Append several layers. Return the sequence."""
        for layer in list(layers):
            self.append(layer)
        return self

    def insert(self, index, layer):
        """Insert a layer before position `index`, as `list.insert`. Return the sequence."""
        items = list(self.children())
        items.insert(index, (str(len(items)), _checked_layer(f"layer {index}", layer)))
        self._replace_layers(items)
        return self

    def pop(self, index=-1):
        """Remove a layer and return it."""
        layer = self[self._position(index)]
        del self[index]
        return layer

    def _position(self, index):
        """Return an index, which may be negative, as a position from 0."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"{self.label}: index {index} is out of range for {count} layers")
        return index % count

    def _replace_layers(self, items):
        """Replace all layers by these (name, layer); names that are positions are updated."""
        for name, _ in list(self.children()):
            delattr(self, name)
        for position, (name, layer) in enumerate(items):
            key = str(position) if name.isdecimal() else name
            setattr(self, key, layer)
            if layer._parent() is self:
                layer._belongs_to(self, key)


class ModuleList(LayerSequence):
    """A list of layers, as `torch.nn.ModuleList`, for layers that call its elements themselves.

    Its layers are named "0", "1" and so on. They belong to the state, and `train` and `eval` apply to them.
    Calling the list is an error.

    Parameters
    ----------
    layers : iterable of Layer

    Raises
    ------
    TypeError, ValueError
        If an element is no layer, or a name is in use.

    Examples
    --------
    >>> from inplace_abn.layers import Linear
    >>> branches = ModuleList([Linear(2, 2, bias=False), Linear(2, 3, bias=False)])
    >>> list(branches.state_dict()), len(branches), branches[-1].out_features
    (['0.weight', '1.weight'], 2, 3)
    """

    def __init__(self, layers=()):
        self.extend(layers)

    def __iadd__(self, layers):
        return self.extend(layers)

    def __add__(self, layers):
        return ModuleList([*self, *layers])

    def forward(self, ctx, *inputs):
        """Raise a NotImplementedError."""
        raise NotImplementedError("a ModuleList is not called; call the layers in it, or use a Sequential")


class ModuleDict(Layer):
    """A dict of layers by name, as `torch.nn.ModuleDict`, for layers that call its elements themselves.

    Its layers belong to the state under their names, and `train` and `eval` apply to them. Calling the dict
    is an error.

    Parameters
    ----------
    layers : dict of str to Layer, or iterable of (str, Layer)

    Raises
    ------
    TypeError, ValueError
        If an element is no layer, or if a name is empty, in use or contains a dot.

    Examples
    --------
    >>> from inplace_abn.layers import Linear
    >>> heads = ModuleDict({"classes": Linear(2, 5), "boxes": Linear(2, 4, bias=False)})
    >>> list(heads.state_dict()), "boxes" in heads
    (['classes.weight', 'classes.bias', 'boxes.weight'], True)
    """

    def __init__(self, layers=()):
        self.update(layers)

    def __getitem__(self, name):
        return dict(self.children())[name]

    def __setitem__(self, name, layer):
        if name not in self:
            _refuse_name(self, name)
        setattr(self, name, _checked_layer(f"layer {name!r}", layer))

    def __delitem__(self, name):
        self[name]  # raises a KeyError if there is no such layer
        delattr(self, name)

    def __contains__(self, name):
        return any(name == key for key, _ in self.children())

    def __iter__(self):
        return iter(self.keys())

    def __len__(self):
        return len(self.keys())

    def keys(self):
        """Return the names."""
        return [name for name, _ in self.children()]

    def values(self):
        """Return the layers."""
        return [layer for _, layer in self.children()]

    def items(self):
        """Return the names and layers."""
        return list(self.children())

    def update(self, layers):
        """Add or replace layers, from a dict or from pairs of name and layer."""
        for name, layer in list(layers.items() if hasattr(layers, "items") else layers):
            self[name] = layer

    def pop(self, name):
        """Remove a layer and return it."""
        layer = self[name]
        del self[name]
        return layer

    def clear(self):
        """Remove all layers."""
        for name in self.keys():
            del self[name]

    def forward(self, ctx, *inputs):
        """Raise a NotImplementedError."""
        raise NotImplementedError("a ModuleDict is not called; call the layers in it")


def _checked_layer(name, value):
    """Return the value if it is a layer, else raise a TypeError."""
    if not isinstance(value, Layer):
        raise TypeError(f"{name} must be a Layer, got {value!r}")
    return value


def _refuse_name(container, name):
    """Raise an error unless a new layer of the container may have this name."""
    if not isinstance(name, str):
        raise TypeError(f"name of a layer: expected a str, got {name!r}")
    if hasattr(container, name) or not name or "." in name:
        raise ValueError(f"name of a layer: {name!r} is empty, in use or contains a dot; choose another name")
