"""Names of the layers of `inplace_abn.models` in torchvision and timm."""

import re

#: Networks of one pattern: (pattern of a path, its replacement: the name in torchvision and timm).
_RESNET = (
    (r"stem\.conv", "conv1"),
    (r"stem\.abn", "bn1"),
    (r"stage(\d+)\.(\d+)\.branch\.conv(\d)", r"layer\1.\2.conv\3"),
    (r"stage(\d+)\.(\d+)\.branch\.abn(\d)", r"layer\1.\2.bn\3"),
    (r"stage(\d+)\.(\d+)\.shortcut\.conv", r"layer\1.\2.downsample.0"),
    (r"stage(\d+)\.(\d+)\.shortcut\.abn", r"layer\1.\2.downsample.1"),
    (r"scores", "fc"),
)
_DENSENET = (
    (r"conv", "features.conv0"),
    (r"abn", "features.norm0"),
    (r"block(\d+)\.units\.(\d+)\.abn(\d)", r"features.denseblock\1.denselayer{\2}.norm\3"),
    (r"block(\d+)\.units\.(\d+)\.conv(\d)", r"features.denseblock\1.denselayer{\2}.conv\3"),
    (r"transition(\d+)\.abn", r"features.transition\1.norm"),
    (r"transition(\d+)\.conv", r"features.transition\1.conv"),
    (r"last_abn", "features.norm5"),
    (r"scores", "classifier"),
)
#: `models.deeplabv3` over a ResNet, in torchvision.
_DEEPLAB = (
    *((rf"body\.{pattern}", f"backbone.{name}") for pattern, name in _RESNET[:-1]),
    (r"aspp\.(\d+)\.conv", r"classifier.0.convs.\1.0"),
    (r"aspp\.(\d+)\.abn", r"classifier.0.convs.\1.1"),
    (r"aspp\.(\d+)\.layers\.conv", r"classifier.0.convs.\1.1"),
    (r"aspp\.(\d+)\.layers\.abn", r"classifier.0.convs.\1.2"),
    (r"project", "classifier.0.project.0"),
    (r"project_abn", "classifier.0.project.1"),
    (r"conv", "classifier.1"),
    (r"abn", "classifier.2"),
    (r"scores", "classifier.4"),
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
        Paths of all layers that have a state, in a network of `resnet` and its variants, `mobilenet_v2`,
        `densenet` or `deeplabv3` in `inplace_abn.models`.

    Returns
    -------
    dict of str to str
        Path here -> path in `source`.

    Raises
    ------
    ValueError
        If the network is none of them.
    """
    for patterns in (_RESNET, _DENSENET, _DEEPLAB):
        found = {path: _replaced(path, patterns) for path in layers}
        if all(found.values()):
            return found
    mobilenet = _mobilenet(layers, ("torchvision", "timm").index(source))
    unknown = [path for path in layers if path not in mobilenet]
    if unknown:
        raise ValueError(
            f"source {source!r} has names for the networks of models.resnet, mobilenet_v2, densenet and "
            f"deeplabv3, which have no layer {unknown[0]!r}; pass mapping= or by_position=True"
        )
    return mobilenet


def _replaced(path, patterns):
    """Return the name that the first matching pattern gives to a path, or None."""
    for pattern, name in patterns:
        match = re.fullmatch(pattern, path)
        if match:  # numbers in braces count from 0 here and from 1 there
            return re.sub(r"\{(\d+)\}", lambda number: str(int(number[1]) + 1), match.expand(name))
    return None


def _mobilenet(layers, which):
    """Return the names of the layers of `mobilenet_v2`: of torchvision for `which` 0, of timm for 1."""
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
