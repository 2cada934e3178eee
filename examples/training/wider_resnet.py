"""WiderResNet-38 (Wu et al. 2016, https://arxiv.org/abs/1611.10080): not in torchvision, nor in timm."""

from torch import nn

#: Blocks of each stage, and the channels of a block's convolutions: two of 3 x 3, or a bottleneck.
STAGES = (
    (3, (128, 128)), (3, (256, 256)), (6, (512, 512)), (3, (512, 1024)), (1, (512, 1024, 2048)),
    (1, (1024, 2048, 4096)),
)  # fmt: skip


class WiderResNet38(nn.Module):
    """A 3 x 3 convolution and six stages of blocks with normalizations before their convolutions.

    Parameters
    ----------
    classes : int
    width : float
        Factor of all numbers of channels.
    dilated : bool
        Dilations replace the strides of the fourth and fifth stage: features are 1/8 of the image's height,
        not 1/32.

    Attributes
    ----------
    backbone : torch.nn.Sequential
        All but the classifier.
    """

    def __init__(self, classes, width=1.0, dilated=False):
        super().__init__()
        inputs = round(64 * width)
        self.backbone = nn.Sequential()
        self.backbone.add_module("conv", nn.Conv2d(3, inputs, 3, padding=1, bias=False))
        strides = (1, 1, 2, 1, 1, 1) if dilated else (1, 1, 2, 2, 2, 1)
        dilations = (1, 1, 1, 2, 4, 4) if dilated else (1,) * 6
        for number, (blocks, channels) in enumerate(STAGES, 2):
            if number < 4:
                self.backbone.add_module(f"pool{number}", nn.MaxPool2d(3, 2, 1))
            scaled = [round(value * width) for value in channels]
            stride, dilation = strides[number - 2], dilations[number - 2]
            made = []
            for block in range(blocks):
                made.append(_Block(inputs, scaled, stride if block == 0 else 1, dilation))
                inputs = scaled[-1]
            self.backbone.add_module(f"stage{number}", nn.Sequential(*made))
        self.backbone.add_module("bn", nn.BatchNorm2d(inputs))
        self.backbone.add_module("relu", nn.ReLU())
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        """Return scores (N, classes)."""
        return self.fc(self.backbone(x).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs, channels, stride, dilation):
        super().__init__()
        sizes = (3, 3) if len(channels) == 2 else (1, 3, 1)
        outputs, self.proj = channels[-1], None
        if stride > 1 or inputs != outputs:
            self.proj = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(inputs), nn.ReLU()
        body = []
        for number, (size, width) in enumerate(zip(sizes, channels, strict=True)):
            if number:
                body += [nn.BatchNorm2d(inputs), nn.ReLU()]
                stride = 1
            apart = dilation if size > 1 else 1
            body.append(nn.Conv2d(inputs, width, size, stride, size // 2 * apart, apart, bias=False))
            inputs = width
        self.body = nn.Sequential(*body)

    def forward(self, x):
        z = self.relu(self.bn1(x))
        return self.body(z) + (x if self.proj is None else self.proj(z))
