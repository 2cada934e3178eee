"""The networks that the demo can train: those of `inplace_abn.models`, by name."""

import inspect

from .. import models

#: Networks that score images.
OF_IMAGES = (
    "residual_network", "resnet34", "resnet50", "resnet101", "resnet152", "resnext101", "resnext152",
    "wider_resnet", "densenet", "mobilenet_v2",
)  # fmt: skip
#: Networks that score every pixel.
OF_PIXELS = ("encoder_decoder", "UNet", "deeplabv3")
#: Arguments for the demo: small digits need no more than a block per stage.
OPTIONS = {"residual_network": {"blocks": 1}}


def make(name, channels, classes, widths, **style):
    """Return the network called `name`; `widths` is used if the network has a parameter of that name."""
    maker = getattr(models, name)
    options = {"widths": widths} if "widths" in inspect.signature(maker).parameters else {}
    return maker(channels, classes, **options, **OPTIONS.get(name, {}), **style)
