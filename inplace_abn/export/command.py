"""Write a network that was saved with checkpoint.save to an ONNX file for inference."""

import argparse
import ast
import sys
from pathlib import Path

import numpy as np

from . import onnx_file

#: Height and width of images unless --input says otherwise.
SIZE = 224


def add_arguments(parser):
    """Add the options of the command to an `argparse.ArgumentParser`."""
    parser.add_argument("file", type=Path, metavar="FILE",
                        help=".npz or .safetensors file of checkpoint.save, or of a state_dict with "
                        "--network")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="the ONNX file")
    parser.add_argument("--part", metavar="NAME", help="name of the network in FILE, if it has several")
    parser.add_argument("--network", metavar="NAME",
                        help="function of inplace_abn.models that builds the network, such as resnet50, if "
                        "FILE does not describe it")  # fmt: skip
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", type=_setting,
                        help="arguments of that function, such as num_classes=10")  # fmt: skip
    parser.add_argument("--input", type=_shape, metavar="SHAPE",
                        help="shape of one sample; default: the channels of the network x "
                        f"{SIZE} x {SIZE}")  # fmt: skip
    parser.add_argument("--any-size", action="store_true", help="take images of any height and width")
    parser.add_argument("--dtype", choices=onnx_file.DTYPES, default="float32", help="default: float32")
    parser.add_argument("--no-fold", action="store_true",
                        help="keep all normalizations apart from the convolutions")  # fmt: skip
    parser.add_argument("--check", action="store_true",
                        help="run the file in onnxruntime on random numbers, and compare")  # fmt: skip


def main(options):
    """Run the command with the options of the command line; return the exit status of the process."""
    try:
        print(run(options))
    except (OSError, ImportError, ValueError, TypeError, RuntimeError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


def run(options):
    """Write the file; return a description of it."""
    from .check import difference_in_onnxruntime
    from .folding import fold

    if options.output.suffix.lower() != ".onnx":
        raise ValueError(f"-o: expected a name that ends in .onnx, got {str(options.output)!r}")
    onnx_file.library()
    network = _network(options)
    shape, axes = _input(network, options.input)
    dtype = np.dtype(options.dtype)
    written = network if options.no_fold else fold(network, shape)
    free = axes if options.any_size else ()
    onnx_file.to_onnx(written, options.output, shape, dtype, free_axes=free)
    sizes = ", ".join(["N", *("any" if i in free else str(size) for i, size in enumerate(shape, 1))])
    size = options.output.stat().st_size / 1e6
    text = f"Wrote {options.output}: {size:.1f} MB, takes {options.dtype} arrays of shape ({sizes})."
    if options.check:
        difference = difference_in_onnxruntime(network, options.output, shape, dtype)
        text += f"\nonnxruntime: the largest difference is {difference:.1e} of the largest output."
    return text


def _network(options):
    """Return the network of the file."""
    from ..checkpoint import load_network, read

    if options.network is None:
        if options.set:
            raise ValueError("--set: expected --network, whose arguments these are")
        return load_network(options.file, options.part)
    network = _build(options.network, dict(options.set))
    arrays = read(options.file)
    start = f"{options.part or 'network'}."
    state = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
    network.load_state_dict(state or arrays)
    return network


def _build(name, arguments):
    """Return a network of `inplace_abn.models`."""
    from .. import models
    from .._arguments import choice
    from .._plan.network import names

    function = getattr(models, choice("--network", name, names()))
    try:
        return function(**arguments)
    except TypeError as error:
        raise TypeError(f"--network {name}: {error}; pass arguments as --set num_classes=10") from error


def _input(network, shape):
    """Return the shape of one sample, and the axes of height and width in a batch.

    Without a given shape, the first layer with a number of input channels decides.
    """
    from ..layers import Linear

    axis = 1
    for _, layer in network.named_layers():
        if hasattr(layer, "in_channels"):
            axis = layer.channel_axis
            images = (layer.in_channels, SIZE, SIZE) if axis == 1 else (SIZE, SIZE, layer.in_channels)
            shape = shape or images
            break
        if isinstance(layer, Linear):
            shape = shape or (layer.in_features,)
            break
    if shape is None:
        raise ValueError(
            "--input: expected the shape of one sample, such as 3x224x224: no layer has a number of "
            "input channels"
        )
    if len(shape) != 3:
        return shape, ()
    return shape, (2, 3) if axis == 1 else (1, 2)


def _setting(text):
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _shape(text):
    try:
        shape = tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        shape = (0,)
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes such as 3x224x224, got {text!r}")
    return shape
