"""Layers that change the size of images: pooling and interpolation."""

from .._arguments import choice, integer, pair, positive
from ..ops import avg_pool2d, global_avg_pool2d, max_pool2d, upsample_bilinear2d, upsample_nearest2d
from .base import OperationLayer


class _Pool2d(OperationLayer):
    """Base of max and average pooling."""

    def __init__(self, kernel_size, stride=None, padding=0, *, channel_axis=1):
        self.kernel_size = pair("kernel_size", kernel_size, least=1)
        self.stride = self.kernel_size if stride is None else pair("stride", stride, least=1)
        self.padding = pair("padding", padding, least=0)
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))
        if any(2 * pad > size for pad, size in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(
                f"padding must be at most half of kernel_size={self.kernel_size}, got {self.padding}"
            )

    def forward(self, ctx, x):
        """Return the pooled images."""
        return self.operation.forward(
            ctx, x, self.kernel_size, stride=self.stride, padding=self.padding, channel_axis=self.channel_axis
        )

    def extra_repr(self):
        """Return the arguments."""
        sizes = {name: getattr(self, name) for name in ("kernel_size", "stride", "padding")}
        return ", ".join(f"{name}={pair[0] if pair[0] == pair[1] else pair}" for name, pair in sizes.items())


class MaxPool2d(_Pool2d):
    """Maximum of each window, as `torch.nn.MaxPool2d`: from (N, C, H, W) to (N, C, H', W').

    It keeps one byte per element of the result for the backward, and not the input.

    Parameters
    ----------
    kernel_size : int or (int, int)
        Along H and W, here and below.
    stride : int or (int, int), optional
        Default: `kernel_size`.
    padding : int or (int, int)
        Minus infinity around the images; at most half of `kernel_size`.
    channel_axis : {1, -1}
        -1 for batches (N, H, W, C).

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. In a call, if the dtype of the input is not supported, or a window
        does not fit into its images.

    Examples
    --------
    >>> import numpy as np
    >>> MaxPool2d(2)(np.arange(4.0).reshape(1, 1, 2, 2))
    array([[[[3.]]]])
    """

    operation = max_pool2d


class AvgPool2d(_Pool2d):
    """Mean of each window, as `torch.nn.AvgPool2d`: from (N, C, H, W) to (N, C, H', W').

    It keeps no array for the backward.

    Parameters
    ----------
    kernel_size, stride, padding, channel_axis
        As for `MaxPool2d`, but padding is with zeros, which are part of the mean.

    Raises
    ------
    TypeError, ValueError
        As `MaxPool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> AvgPool2d(2)(np.arange(4.0).reshape(1, 1, 2, 2))
    array([[[[1.5]]]])
    """

    operation = avg_pool2d


class GlobalAvgPool2d(OperationLayer):
    """Mean of each channel of each image: from (N, C, H, W) to (N, C).

    It keeps no array for the backward.

    Parameters
    ----------
    keepdims : bool
        True: the result has the shape (N, C, 1, 1), as with `torch.nn.AdaptiveAvgPool2d(1)`, or (N, 1, 1, C).
    channel_axis : {1, -1}
        -1 for batches (N, H, W, C).

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. In a call, if the dtype of the input is not supported, or its images
        have no pixels.

    Examples
    --------
    >>> import numpy as np
    >>> GlobalAvgPool2d()(np.arange(4.0).reshape(1, 1, 2, 2))
    array([[1.5]])
    """

    operation = global_avg_pool2d

    def __init__(self, keepdims=False, *, channel_axis=1):
        self.keepdims = bool(keepdims)
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))

    def forward(self, ctx, x):
        """Return the mean over the pixels."""
        return global_avg_pool2d.forward(ctx, x, keepdims=self.keepdims, channel_axis=self.channel_axis)

    def extra_repr(self):
        """Return the arguments that are not the default."""
        return "keepdims=True" if self.keepdims else ""


_MODES = {"bilinear": upsample_bilinear2d, "nearest": upsample_nearest2d}


class Upsample(OperationLayer):
    """Interpolation of images to another size, as `torch.nn.Upsample`, but bilinear by default.

    It keeps no array for the backward.

    Parameters
    ----------
    size : int or (int, int), optional
        Size of the result along H and W. Exactly one of `size` and `scale_factor` is given.
    scale_factor : float or (float, float), optional
        Size of the result divided by the size of the input; the size is rounded down.
    mode : {"bilinear", "nearest"}
    align_corners : bool, optional
        For "bilinear". True aligns the centers of the corner pixels, False (the default) the corners of the
        images.
    channel_axis : {1, -1}
        -1 for batches (N, H, W, C).

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    >>> import numpy as np
    >>> Upsample(scale_factor=2)(np.array([[[[0.0, 4.0]]]]))[0, 0, 0]
    array([0., 1., 3., 4.])
    """

    def __init__(self, size=None, scale_factor=None, mode="bilinear", align_corners=None, *, channel_axis=1):
        if (size is None) == (scale_factor is None):
            raise ValueError(f"pass either size or scale_factor, got {size=} and {scale_factor=}")
        self.size = size if size is None or isinstance(size, tuple) else integer("size", size, least=1)
        self.scale_factor = scale_factor
        if scale_factor is not None and not isinstance(scale_factor, tuple):
            positive("scale_factor", scale_factor)
        self.mode = choice("mode", mode, tuple(_MODES))
        if align_corners is not None and mode != "bilinear":
            raise ValueError(f"align_corners goes with mode 'bilinear', got {align_corners!r} with {mode!r}")
        self.align_corners = bool(align_corners)
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))

    @property
    def operation(self):
        """The module of `inplace_abn.ops` for the mode."""
        return _MODES[self.mode]

    def forward(self, ctx, x):
        """Return the interpolated images."""
        options = {"align_corners": self.align_corners} if self.mode == "bilinear" else {}
        return self.operation.forward(
            ctx, x, size=self.size, scale_factor=self.scale_factor, channel_axis=self.channel_axis, **options
        )

    def extra_repr(self):
        """Return the arguments."""
        size = f"scale_factor={self.scale_factor}" if self.size is None else f"size={self.size}"
        return f"{size}, mode={self.mode!r}{', align_corners=True' if self.align_corners else ''}"
