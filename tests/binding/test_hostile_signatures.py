"""Names, order, defaults and types of arguments: the same in functional, its stub and the reference."""

import ast
import inspect
import re
import typing
from pathlib import Path

import numpy as np
import pytest

from inplace_abn import _core, functional, reference

OWN = [name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))]
IN_C = [name for name in OWN if hasattr(_core, name)]
IN_REFERENCE = [name for name in OWN if hasattr(reference, name)]


def definitions(path):
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


STUB = definitions(Path(functional.__file__).with_name("_core.pyi"))
SOURCE = {
    name: definitions(inspect.getsourcefile(inspect.unwrap(getattr(functional, name))))[name] for name in OWN
}


def annotations(node):
    listed = [*node.args.args, *node.args.kwonlyargs]
    return {argument.arg: argument.annotation and ast.unparse(argument.annotation) for argument in listed}


def parameters(function):
    return {p.name: (p.kind, p.default) for p in inspect.signature(function).parameters.values()}


@pytest.mark.parametrize("name", IN_C)
def test_types_are_those_of_the_stub(name):
    stub = annotations(STUB[name])
    assert stub.pop("isa", "str | None") == "str | None"
    stub.pop("owner", None)
    # The core also takes memory by its address.
    by_address = re.compile(r"_(?=(?:Batch|Vector|Mask)\b)| \| _Addressed")
    stub = {argument: by_address.sub("", text) for argument, text in stub.items()}
    assert annotations(SOURCE[name]) == stub
    if name not in ("backward", "backward_reduce", "info"):  # named tuples, and more keys, there
        assert ast.unparse(SOURCE[name].returns) == ast.unparse(STUB[name].returns)


@pytest.mark.parametrize("name", OWN)
def test_every_argument_has_a_type(name):
    function = getattr(functional, name)
    hints = typing.get_type_hints(function)
    assert set(hints) == {*parameters(function), "return"}
    if "count" in hints:
        assert hints["count"] is int


@pytest.mark.parametrize("name", IN_REFERENCE)
def test_the_reference_takes_the_same_arguments(name):
    """In the same order, with the same defaults, except for a compute dtype and arguments it lacks."""
    ours, theirs = parameters(getattr(functional, name)), parameters(getattr(reference, name))
    theirs.pop("dtype", None)
    assert list(theirs) == [argument for argument in ours if argument in theirs]
    assert theirs == {argument: ours[argument] for argument in theirs}
    missing = set(ours) - set(theirs)
    of_memory = {"out", "hold", "keep", "kept", "residual", "residual_out"}
    of_memory |= {"residual_activation", "residual_activation_param"}
    others = {"threads", "overwrite", "residual_grad", "momentum", "running_mean", "running_var"}
    assert missing <= others | of_memory


def test_functions_of_the_reference():
    assert IN_REFERENCE == [
        "backward", "backward_apply", "backward_reduce", "forward", "merge_statistics", "normalize",
        "statistics",
    ]  # fmt: skip


@pytest.mark.parametrize("module", [functional, reference], ids=["functional", "reference"])
def test_merged_statistics_of_no_batches(module):
    one, nan = np.ones(3), np.full(3, np.nan)
    for counts in ([0], [0, 0]):
        mean, var, count = module.merge_statistics([nan] * len(counts), [nan] * len(counts), counts)
        assert (mean.tolist(), var.tolist(), count) == ([0, 0, 0], [0, 0, 0], 0)
    mean, var, count = module.merge_statistics(means=[nan, one], vars=[nan, one], counts=[0, 2])
    assert (mean.tolist(), var.tolist(), count) == ([1, 1, 1], [1, 1, 1], 2)
    for means, variances, counts in [
        ([], [], []), ([one], [one], []), ([one], [one, one], [1]), ([one], [one], [1, 1]),
        ([one], [one], [-1]), ([one], [one], [1.5]), ([one], [one], [np.nan]), ([one], [one], [np.inf]),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"means|counts"):
            module.merge_statistics(means, variances, counts)


@pytest.mark.parametrize("module", [functional, reference], ids=["functional", "reference"])
def test_statistics_of_an_empty_batch(module):
    mean, var, count = module.statistics(np.ones((0, 3, 2)))
    assert (mean.tolist(), var.tolist(), count) == ([0, 0, 0], [0, 0, 0], 0)


def test_the_name_of_the_compiler_has_no_surrounding_blanks():
    compiler = functional.info()["compiler"]
    assert compiler == compiler.strip()
