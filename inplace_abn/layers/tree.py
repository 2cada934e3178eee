"""Iteration over the layers and parameters inside a layer, and the methods that apply to all of them."""

from .assignment import refuse_hidden
from .parameter import Parameter


class LayerTree:
    """The part of a `Layer` that finds the layers and parameters among its attributes."""

    def own_parameters(self):
        """Return the layer's own parameters by name, without those of layers inside."""
        parameters = vars(self).get("_parameters")
        if parameters is None:
            parameters = {key: value for key, value in vars(self).items() if isinstance(value, Parameter)}
            vars(self)["_parameters"] = parameters
        return parameters

    def children(self):
        """Yield the layers directly inside this one, as (name, layer)."""
        for key, value in vars(self).items():
            if isinstance(value, LayerTree):
                yield key, value

    def named_layers(self, prefix=""):
        """Yield this layer, with the path `prefix`, and all layers inside, as (path, layer); each once."""
        seen, waiting = set(), [(prefix, self)]
        while waiting:
            path, layer = waiting.pop()
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            yield path, layer
            inside = [(f"{path}.{key}" if path else key, child) for key, child in layer.children()]
            waiting.extend(reversed(inside))

    def named_parameters(self):
        """Yield all parameters, as (path, Parameter); each once."""
        seen = set()
        for path, layer in self.named_layers():
            for key, value in vars(layer).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{key}" if path else key, value

    def parameters(self):
        """Return the list of all parameters, each once."""
        refuse_hidden(self)
        return [parameter for _, parameter in self.named_parameters()]

    def requires_grad_(self, requires_grad=True):
        """Freeze all parameters with False, or train them again; return self. See `Parameter`."""
        for parameter in self.parameters():
            parameter.requires_grad = bool(requires_grad)
        return self

    def zero_grad(self):
        """Set all gradients to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, mode=True):
        """Switch this layer and those inside to training or, with False, to evaluation; return self."""
        refuse_hidden(self)
        for _, layer in self.named_layers():
            layer.training = bool(mode)
        return self

    def eval(self):
        """Switch to evaluation and return self. ABN uses its running statistics, Dropout returns its input.

        Calls still keep arrays for a backward, except inside `inplace_abn.layers.no_grad`.
        """
        return self.train(False)
