"""What may be done with a converted model: hooks, replaced modules, other modes, copies, `revert`."""

import copy
import io
import warnings

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn, F = torch.nn, torch.nn.functional

from small_models import images, network  # noqa: E402
from zoo import prepare  # noqa: E402

from inplace_abn.torch import convert, report, revert  # noqa: E402
from inplace_abn.torch.batch_norm import is_fused  # noqa: E402

HOOKED = {"batch norm": "1", "activation": "2", "convolution": "0", "inlined": "3", "in the inlined": "3.1"}


@pytest.mark.parametrize("where", HOOKED)
def test_hooks_run_the_original_and_warn_once(where):
    model = prepare(network())
    converted = convert(copy.deepcopy(model))
    seen = {}
    for each in (model, converted):
        seen[each] = []
        hook = lambda module, inputs, output, kept=seen[each]: kept.append(output)  # noqa: E731
        each.get_submodule(HOOKED[where]).register_forward_hook(hook)
    expected = model(images())
    with pytest.warns(UserWarning, match="has hooks"):
        got = converted(images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted(images())
    assert torch.allclose(got, expected, rtol=1e-12)
    assert torch.allclose(seen[converted][0], seen[model][0], rtol=1e-12)


def test_module_replaced_after_the_conversion():
    model = prepare(network())
    converted = convert(copy.deepcopy(model))
    for each in (model, converted):
        each[2] = nn.Tanh()
    with pytest.warns(UserWarning, match="was replaced"):
        got = converted(images())
    assert torch.allclose(got, model(images()), rtol=1e-12)


def test_synchronized_batch_norms_after_the_conversion():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(convert(prepare(network()))).eval()
    with pytest.warns(UserWarning, match="was replaced"):
        got = converted(images())
    assert torch.allclose(got, prepare(network()).eval()(images()), rtol=1e-12)


def test_submodules_called_directly():
    model = prepare(network())
    converted = convert(copy.deepcopy(model))
    x = images()
    before = x.clone()
    assert torch.equal(converted[1](x), model[1](x))
    assert torch.equal(converted[3](x), model[3](x))
    assert torch.equal(x, before)


def test_modes_changed_after_the_conversion():
    model = prepare(network())
    converted = convert(copy.deepcopy(model).eval())
    for change in (lambda each: each.train(), lambda each: each[1].eval(), lambda each: each.eval()):
        for each in (model, converted):
            change(each)
        assert torch.allclose(converted(images()), model(images()), rtol=1e-12)
    assert not converted[1].training


@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_copies_are_independent(how):
    converted = convert(prepare(network()))
    if how == "deepcopy":
        other = copy.deepcopy(converted)
    else:
        file = io.BytesIO()
        torch.save(converted, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    expected = converted(images())
    assert torch.equal(other(images()), expected)
    assert other.forward.module is other
    assert repr(report(other)) == repr(report(converted))
    with torch.no_grad():
        other[0].weight.zero_()
    assert torch.allclose(converted(images()), expected)
    assert not torch.allclose(other(images()), expected)
    assert not is_fused(revert(other)[1])
    assert is_fused(converted[1])


def test_state_keys_are_the_same():
    model = network()
    keys = list(model.state_dict())
    assert list(convert(model).state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == [name for name, _ in network().named_modules()]


def test_conversion_twice_and_of_a_part():
    model = prepare(network())
    converted = convert(copy.deepcopy(model))
    rows = report(converted).rows
    assert report(convert(converted)).rows == rows
    outer = nn.Sequential(converted, nn.Conv2d(2, 2, 1).double())
    assert [row.path for row in report(outer).rows] == ["0.1", "0.3.1"]
    outer = convert(outer)
    assert [row.path for row in report(outer).rows] == ["0.1", "0.3.1"]
    assert torch.allclose(outer[0](images()), model(images()), rtol=1e-12)


def test_revert_restores_everything():
    model = prepare(network())
    converted = revert(convert(copy.deepcopy(model)))
    assert repr(converted) == repr(model)
    assert all(
        type(got) is type(want) for got, want in zip(converted.modules(), model.modules(), strict=True)
    )
    assert not any("forward" in vars(module) for module in converted.modules())
    assert not converted._forward_hooks
    assert not converted._forward_pre_hooks
    assert vars(converted).keys() == vars(model).keys()
    assert torch.equal(converted(images()), model(images()))
    assert revert(converted) is converted
