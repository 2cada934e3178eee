"""Names of the layers of ResNet and MobileNetV2 in torchvision and timm."""

import re

#: (pattern of a path in `models.resnet`, its replacement: the name in torchvision and timm)
_RESNET = (
    (r"stem\.conv", "conv1"),
    (r"stem\.abn", "bn1"),
    (r"stage(\d+)\.(\d+)\.branch\.conv(\d)", r"layer\1.\2.conv\3"),
    (r"stage(\d+)\.(\d+)\.branch\.abn(\d)", r"layer\1.\2.bn\3"),
    (r"stage(\d+)\.(\d+)\.shortcut\.conv", r"layer\1.\2.downsample.0"),
    (r"stage(\d+)\.(\d+)\.shortcut\.abn", r"layer\1.\2.downsample.1"),
    (r"scores", "fc"),
)

#: Layers of a block of `models.mobilenet_v2`, in order: name here -> names in torchvision and timm.
_EXPANDED = {
    "expand": ("conv.0.0", "conv_pw"),
    "abn1": ("conv.0.1", "bn1"),
    "depthwise": ("conv.1.0", "conv_dw"),
    "abn2": ("conv.1.1", "bn2"),
    "project": ("conv.2", "conv_pwl"),
    "abn3": ("conv.3", "bn3"),
}
#: The same for a block without expansion.
_PLAIN = {
    "depthwise": ("conv.0.0", "conv_dw"),
    "abn2": ("conv.0.1", "bn1"),
    "project": ("conv.1", "conv_pw"),
    "abn3": ("conv.2", "bn2"),
}
#: Path of a layer in a block. Groups: path of the block, stage, position of the block in it, layer.
_BLOCK = re.compile(r"(stage(\d+)\.(\d+))\.(?:branch\.)?(\w+)")


def names_in(source, layers):
    """Return the names of layers in `source`.

    Parameters
    ----------
    source : {"torchvision", "timm"}
    layers : sequence of str
        Paths of all layers that have a state, in a network of `models.resnet` or `models.mobilenet_v2`.

    Returns
    -------
    dict of str to str
        Path here -> path in `source`.

    Raises
    ------
    ValueError
        If the network is neither of the two.
    """
    resnet = {path: _resnet(path) for path in layers}
    if all(resnet.values()):
        return resnet
    mobilenet = _mobilenet(layers, ("torchvision", "timm").index(source))
    unknown = [path for path in layers if path not in mobilenet]
    if unknown:
        raise ValueError(
            f"source {source!r} has names for the networks of models.resnet and models.mobilenet_v2, which "
            f"have no layer {unknown[0]!r}; pass mapping= or by_position=True"
        )
    return mobilenet


def _resnet(path):
    for pattern, name in _RESNET:
        match = re.fullmatch(pattern, path)
        if match:
            return match.expand(name)
    return None


def _mobilenet(layers, which):
    matches = {path: _BLOCK.fullmatch(path) for path in layers}
    blocks = list(dict.fromkeys(match[1] for match in matches.values() if match))
    expanded = {match[1] for match in matches.values() if match and match[4] == "expand"}
    last = len(blocks) + 1
    found = {
        "stem": ("features.0.0", "conv_stem"),
        "abn": ("features.0.1", "bn1"),
        "head": (f"features.{last}.0", "conv_head"),
        "head_abn": (f"features.{last}.1", "bn2"),
        "scores": ("classifier.1", "classifier"),
    }
    for path, match in matches.items():
        names = match and (_EXPANDED if match[1] in expanded else _PLAIN).get(match[4])
        if names:
            start = f"features.{blocks.index(match[1]) + 1}", f"blocks.{int(match[2]) - 1}.{match[3]}"
            found[path] = tuple(f"{block}.{name}" for block, name in zip(start, names, strict=True))
    return {path: both[which] for path, both in found.items()}
