"""Passing ``mask=`` through layers that contain layers."""


def takes_mask(layer):
    """Return True if a layer, or any layer inside it, takes a mask."""
    return any(one.takes_mask for _, one in layer.named_layers())


def with_mask(layer, mask):
    """Return the options that pass a mask to a layer, empty if the mask is None or the layer takes none.

    Raises
    ------
    TypeError
        If a layer inside takes a mask but `layer` itself does not, and so cannot pass it on.
    """
    if layer is None or mask is None:
        return {}
    if layer.takes_mask:
        return {"mask": mask}
    for _, inner in layer.named_layers():
        if inner.takes_mask:
            raise TypeError(
                f"{layer.label} takes no mask, but {inner.label} inside needs it; pass mask= on in its "
                "forward, and set takes_mask = True in its class"
            )
    return {}
