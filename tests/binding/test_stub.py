"""`_core.pyi` against the compiled module, the module against its binder, and the documented examples."""

import ast
import doctest
import inspect
import re
import typing
from pathlib import Path

import numpy as np
import pytest

from inplace_abn import _core, _results, _synchronized, _types, functional

pytestmark = pytest.mark.essential

STUB = Path(functional.__file__).with_name("_core.pyi")
TREE = ast.parse(STUB.read_text(encoding="utf-8"))
FUNCTIONS = {node.name: node for node in TREE.body if isinstance(node, ast.FunctionDef)}
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef) and node.decorator_list}
METHODS, PROPERTIES = {}, []
for class_name, class_node in CLASSES.items():
    for definition in class_node.body:
        if definition.decorator_list:
            PROPERTIES.append((class_name, definition.name))
        else:
            METHODS[class_name, definition.name] = definition


def public(names):
    return {name for name in names if not name.startswith("_")}


def parameters(function):
    """Return (name, kind, default) of each argument, by introspection of the compiled function."""
    return [(p.name, p.kind.name, p.default) for p in inspect.signature(function).parameters.values()]


def stub_parameters(node):
    arguments, empty = node.args, inspect.Parameter.empty
    assert not arguments.posonlyargs
    defaults = [empty] * (len(arguments.args) - len(arguments.defaults))
    defaults += [ast.literal_eval(default) for default in arguments.defaults]
    listed = [(a.arg, "POSITIONAL_OR_KEYWORD", d) for a, d in zip(arguments.args, defaults, strict=True)]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        listed.append((argument.arg, "KEYWORD_ONLY", empty if default is None else ast.literal_eval(default)))
    return [parameter for parameter in listed if parameter[0] != "self"]


def test_the_stub_has_all_names_of_the_module():
    assert public(dir(_core)) == {*FUNCTIONS, *CLASSES}


@pytest.mark.parametrize("class_name", CLASSES)
def test_the_stub_has_all_names_of_a_class(class_name):
    of_class = getattr(_core, class_name)
    assert {(class_name, name) for name in public(dir(of_class))} == {
        pair for pair in (*PROPERTIES, *METHODS) if pair[0] == class_name
    }
    for owner, name in PROPERTIES:
        assert owner != class_name or inspect.isgetsetdescriptor(getattr(of_class, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures(name):
    assert stub_parameters(FUNCTIONS[name]) == parameters(getattr(_core, name))


@pytest.mark.parametrize(("class_name", "name"), METHODS)
def test_signatures_of_methods(class_name, name):
    listed = parameters(getattr(getattr(_core, class_name), name))
    assert listed[0][0] == "self"
    assert stub_parameters(METHODS[class_name, name]) == listed[1:]


@pytest.mark.parametrize("name", [name for name, node in FUNCTIONS.items() if stub_parameters(node)])
def test_the_binder_accepts_the_arguments_of_the_signature(name):
    """Its error message for an unknown keyword lists the names."""
    function = getattr(_core, name)
    with pytest.raises(TypeError, match="got an unexpected keyword argument") as caught:
        function(xylophone=1)
    listed = re.search(r"it takes (.*)", str(caught.value))[1].split(", ")
    assert listed == [parameter for parameter, _, _ in parameters(function)]
    positional = [p for p, kind, _ in parameters(function) if kind == "POSITIONAL_OR_KEYWORD"]
    keywords = [p for p, kind, _ in parameters(function) if kind == "KEYWORD_ONLY"]
    message = rf"{name}\(\) takes {' and '.join(positional)} only by position, got {len(positional) + 1} .*"
    with pytest.raises(TypeError, match=message + ", ".join(f"{keyword}=" for keyword in keywords)):
        function(*[None] * (len(positional) + 1))
    required = [p for p, _, default in parameters(function) if default is inspect.Parameter.empty]
    for i in range(len(required)):
        with pytest.raises(TypeError, match=rf"{name}\(\) needs '{required[i]}'"):
            function(**dict.fromkeys(required[:i]))


@pytest.mark.parametrize("name", sorted(public(dir(_core)) & set(functional.__all__)))
def test_functional_has_the_same_arguments_except_isa(name):
    compiled = (
        [p for p in parameters(getattr(_core, name)) if p[0] not in ("isa", "owner")]
        if name != "Context"
        else None
    )
    assert name == "Context" or parameters(getattr(functional, name)) == compiled


def test_everything_is_documented():
    for name in functional.__all__:
        assert getattr(functional, name).__doc__
    for name in FUNCTIONS:
        assert getattr(_core, name).__doc__
    for class_name, name in (*METHODS, *PROPERTIES):
        assert getattr(getattr(_core, class_name), name).__doc__


def test_the_choices_in_the_stub_are_those_of_the_module():
    x = np.ones((4, 3), np.float32)
    for name, choices in [("activation", _types.Activation), ("strategy", _types.Strategy)]:
        listed = typing.get_args(choices)
        with pytest.raises(ValueError, match=name) as caught:
            _core.forward(x, **{name: "none of them"})
        assert sorted(re.findall(r"'(\w+)'", str(caught.value))) == sorted(listed)
        for choice in listed:
            options = {"strategy": "standard", name: choice}
            options["slope"] = np.ones(1, np.float32) if choice == "prelu" else None
            assert getattr(_core.forward(x.copy(), **options)[1], name) == choice


def test_the_stub_describes_the_result_of_info():
    (info,) = (node for node in TREE.body if isinstance(node, ast.ClassDef) and node.name == "_Info")
    assert [field.target.id for field in info.body] == list(_core.info())


def test_the_package_is_marked_as_typed():
    assert STUB.with_name("py.typed").exists()


def test_documented_examples():
    for module, least in [(functional, 20), (_synchronized, 15), (_results, 3)]:
        result = doctest.testmod(module)
        assert result.attempted >= least
        assert result.failed == 0
