"""Checks of a layer's class when it is defined: its functions take what calls of the layer pass."""

import inspect

_FUNCTIONS = {
    "forward": ("ctx", "x"),
    "gradients": ("ctx", "dz"),
}


def check(cls):
    """Raise a TypeError if `forward` or `gradients` of a class of layers lacks an argument.

    Examples
    --------
    >>> from inplace_abn.layers import Layer
    >>> class Square(Layer):
    ...     def forward(self, x):
    ...         return x * x
    Traceback (most recent call last):
        ...
    TypeError: Square.forward(self, x): expected forward(self, ctx, x, ...); ctx keeps what the backward needs
    """
    for name, arguments in _FUNCTIONS.items():
        function = vars(cls).get(name)
        if not inspect.isfunction(function):
            continue
        signature = inspect.signature(function)
        place = f"{cls.__name__}.{name}{signature}"
        if not _takes(signature, *arguments):
            hint = (
                "ctx keeps what the backward needs" if name == "forward" else "ctx has what the forward kept"
            )
            raise TypeError(f"{place}: expected {name}(self, {', '.join(arguments)}, ...); {hint}")
        if name == "gradients" and not _takes(signature, *arguments, overwrite=False):
            raise TypeError(
                f"{place}: expected gradients(self, ctx, dz, *, overwrite=False); overwrite=True allows it "
                "to write dx over dz"
            )


def _takes(signature, *arguments, **options):
    """Return True if the function can be called with self, these arguments, and perhaps more keywords."""
    try:
        signature.bind_partial(None, *arguments, **options)
    except TypeError:
        return False
    return True
