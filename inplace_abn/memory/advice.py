"""What would free the buffers that layers and functions keep: the advice of `Ledger.explain`."""

from .._activations import ACTIVATIONS
from .tables import human

#: Role -> (description, what would free it). None if the layer needs it in any case, or `Advice` has a line.
_ROLES = {
    "x": ("the input of a normalization", None),
    "xhat": ("the normalized input, written over it", None),
    "y": ("the sum before the activation of a normalization, written over its input", None),
    "z": ("the result of a normalization, written over its input", None),
    "input": ("the input, needed for the gradients", None),
    "residual": (
        "the residual that a normalization adds before the activation, needed to recover x-hat from y or z",
        "a shortcut that is kept anyway: the input of a convolution, or z of an in-place normalization",
    ),
    "branch_mask": (
        "one bit per value: on which side of the minimum of the activation it lies",
        "an activation without a minimum, such as leaky_relu, elu or softplus",
    ),
    "guarded_xhat": (
        "channels whose x-hat cannot be recovered from y or z, because the weight is small compared to bias "
        "or residual, or the activation is flat",
        "another weight or strategy 'checkpoint_xhat'",
    ),
    "escape_index": ("the positions of the elements in escape_xhat", "a smaller weight or bias"),
    "escape_xhat": (
        "elements that cannot be recovered from y or z: in a flat tail, or at the minimum, of the activation",
        "a smaller weight or bias",
    ),
    "mask": ("the valid positions, or the elements that dropout kept", None),
    "target": ("the targets of a loss", None),
    "log_sum_exp": ("one number for each sample of a cross entropy", None),
    "mean": ("the mean of each group of channels", None),
    "inv_std": ("1 / standard deviation of each group of channels", None),
    "indices": ("the position of the largest element of each window", None),
}
#: Roles of data that cannot be recovered from y or z.
_UNRECOVERABLE = ("guarded_xhat", "escape_index", "escape_xhat")
#: Activations with which such data is due to the weight alone.
_PIECEWISE_LINEAR = ("identity", "leaky_relu")


class Advice:
    """Advice about entries that are kept.

    Parameters
    ----------
    entries : list of Saved
    """

    def __init__(self, entries):
        self.entries = entries

    def overview(self):
        """Return lines about all buffers together."""
        return []

    def about(self, views, size):
        """Return lines about one buffer of `size` bytes, which the entries `views` keep."""
        first, lines = views[0], []
        for role in dict.fromkeys(entry.role for entry in views):
            if role in _ROLES:
                lines.append(f"{role}: {_ROLES[role][0]}")
        layers = list(dict.fromkeys(entry.layer for entry in views))
        if len(layers) > 1:
            lines.append(f"one buffer of {len(layers)} layers: freed after the backward of all of them")
        else:
            lines.append(f"freed after the backward of {layers[0]}")
        consumer = self._consumer_of_result(first) if first.role == "x" else None
        if consumer is not None:
            activation, note = ACTIVATIONS.get(first.activation), ""
            if activation is not None and not activation.invertible:
                note = f"; this needs leaky_relu instead of {first.activation}, which has no inverse"
            lines.append(
                f"{consumer.layer} keeps the result of {first.layer}, {human(consumer.nbytes)}: "
                f"strategy='inplace' would write the result over this buffer and free {human(size)}{note}"
            )
        elif _ROLES.get(first.role, (None, None))[1]:
            curved = first.role in _UNRECOVERABLE and first.activation not in _PIECEWISE_LINEAR
            lines.append(f"to free it: {_ROLES[first.role][1]}{', or leaky_relu' if curved else ''}")
        if first.buffer_nbytes > size:
            lines.append(
                f"it is part of an array of {human(first.buffer_nbytes)}, which stays allocated as a whole: "
                "pass a copy of the part if the rest is not needed"
            )
        return lines

    def remarks(self):
        """Return a line about the layer with the most pending calls, if any layer has several."""
        calls = {}
        for entry in self.entries:
            calls.setdefault(entry.layer, set()).add(entry.context)
        several = {layer: len(contexts) for layer, contexts in calls.items() if len(contexts) > 1}
        if not several:
            return []
        layer, count = max(several.items(), key=lambda item: item[1])
        return [
            f"{count} calls of {layer} wait for their backward, and each keeps its arrays: run the "
            "backwards, make calls for predictions inside layers.no_grad(), or free the arrays by release() "
            "of the layer."
        ]

    def _consumer_of_result(self, entry):
        """Return the entry of the layer that keeps the result of a normalization as its input, or None.

        It is recognized as the next entry of another layer: an input of equal size in another buffer.
        """
        later = [
            other for other in self.entries if other.seconds > entry.seconds and other.layer != entry.layer
        ]
        following = min(later, key=lambda other: other.seconds, default=None)
        if following is None or following.role != "input" or following.buffer == entry.buffer:
            return None
        return following if following.nbytes == entry.nbytes else None
