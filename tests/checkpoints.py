"""Names and shapes of checkpoints of torchvision and timm, filled with random numbers.

Names and shapes equal those of torchvision 0.29 and timm 1.0.
"""

import numpy as np


def norm(name, channels):
    """Return the entries of a BatchNorm2d."""
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (channels,) for leaf in names} | {f"{name}.num_batches_tracked": ()}


def conv(name, outputs, inputs, size):
    return {f"{name}.weight": (outputs, inputs, size, size)}


def linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def resnet(blocks, expansion, width=64, classes=1000):
    """Return the shapes of ResNet, which torchvision and timm share; expansion 4 for bottlenecks, else 1."""
    shapes = conv("conv1", width, 3, 7) | norm("bn1", width)
    channels = width
    for stage, count in enumerate(blocks):
        middle = width * 2**stage
        for i in range(count):
            block, outputs = f"layer{stage + 1}.{i}", middle * expansion
            sizes = (1, 3, 1) if expansion == 4 else (3, 3)
            inputs = channels
            for k, size in enumerate(sizes, 1):
                features = outputs if k == len(sizes) else middle
                shapes |= conv(f"{block}.conv{k}", features, inputs, size) | norm(f"{block}.bn{k}", features)
                inputs = features
            if i == 0 and (stage > 0 or expansion == 4):
                shapes |= conv(f"{block}.downsample.0", outputs, channels, 1)
                shapes |= norm(f"{block}.downsample.1", outputs)
            channels = outputs
    return shapes | linear("fc", classes, channels)


#: (expansion, channels, blocks) of each stage of MobileNetV2.
STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


def mobilenet_torchvision(stages=STAGES, classes=1000):
    shapes, number, channels = conv("features.0.0", 32, 3, 3) | norm("features.0.1", 32), 1, 32
    for expansion, outputs, count in stages:
        for _ in range(count):
            block, hidden, i = f"features.{number}.conv", channels * expansion, 0
            if expansion != 1:
                shapes |= conv(f"{block}.0.0", hidden, channels, 1) | norm(f"{block}.0.1", hidden)
                i = 1
            shapes |= conv(f"{block}.{i}.0", hidden, 1, 3) | norm(f"{block}.{i}.1", hidden)
            shapes |= conv(f"{block}.{i + 1}", outputs, hidden, 1) | norm(f"{block}.{i + 2}", outputs)
            channels, number = outputs, number + 1
    shapes |= conv(f"features.{number}.0", 1280, channels, 1) | norm(f"features.{number}.1", 1280)
    return shapes | linear("classifier.1", classes, 1280)


def mobilenet_timm(stages=STAGES, classes=1000):
    shapes, channels = conv("conv_stem", 32, 3, 3) | norm("bn1", 32), 32
    for stage, (expansion, outputs, count) in enumerate(stages):
        for i in range(count):
            block, hidden = f"blocks.{stage}.{i}", channels * expansion
            if expansion == 1:
                shapes |= conv(f"{block}.conv_dw", hidden, 1, 3) | norm(f"{block}.bn1", hidden)
                shapes |= conv(f"{block}.conv_pw", outputs, hidden, 1) | norm(f"{block}.bn2", outputs)
            else:
                shapes |= conv(f"{block}.conv_pw", hidden, channels, 1) | norm(f"{block}.bn1", hidden)
                shapes |= conv(f"{block}.conv_dw", hidden, 1, 3) | norm(f"{block}.bn2", hidden)
                shapes |= conv(f"{block}.conv_pwl", outputs, hidden, 1) | norm(f"{block}.bn3", outputs)
            channels = outputs
    return (
        shapes
        | conv("conv_head", 1280, channels, 1)
        | norm("bn2", 1280)
        | linear("classifier", classes, 1280)
    )


def filled(shapes, dtype=np.float32):
    """Return arrays of the shapes; no two are equal."""
    rng = np.random.default_rng(0)
    return {
        name: np.array(i) if shape == () else rng.standard_normal(shape, np.float32).astype(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }
