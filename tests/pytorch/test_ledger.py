"""The ledger for PyTorch counts what autograd keeps, each storage once, until it is freed."""

import gc

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn, F = torch.nn, torch.nn.functional

import zoo  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from inplace_abn.torch import convert, ledger  # noqa: E402

_autograd = torch._C._autograd


def small(*last):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *last,
    )  # fmt: skip


def images(n=2, size=16, channels=3):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))


FULL = 2 * 8 * 16 * 16 * 4  # bytes of a tensor of 8 channels
IMAGES = 2 * 3 * 16 * 16 * 4
STATISTICS = 2 * 8 * 4


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


# ---- bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_kept_equals_the_bytes_that_reach_hooks(name, converted):
    torch.manual_seed(0)
    model = zoo.vision(name).train()
    if converted:
        convert(model)
    x = torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)  # stochastic depth
    with zoo.kept_bytes(model) as kept:
        model(x)
    torch.manual_seed(1)
    with ledger(model) as book:
        result = model(x)
        assert book.live == kept.total
        assert book.table("now").nbytes == kept.total
        result.sum().backward()
        del result
    assert book.live == 0


def test_rows_of_a_model_that_is_not_converted():
    model = small()
    with ledger(model) as book:
        model(images()).sum().backward()
    rows = {(row.layer, row.role): (row.nbytes, row.count, row.shared_with) for row in book.table()}
    assert rows == {
        ("0 (Conv2d)", "input of convolution"): (IMAGES, 1, None),
        ("1 (BatchNorm2d)", "input of batch_norm"): (FULL, 1, None),
        ("1 (BatchNorm2d)", "statistics of batch_norm"): (STATISTICS, 2, None),
        ("2 (ReLU)", "output of relu"): (FULL, 1, None),
        ("3 (Conv2d)", "input of convolution"): (0, 1, ("2 (ReLU)", "output of relu")),
        ("4 (BatchNorm2d)", "input of batch_norm"): (FULL, 1, None),
        ("4 (BatchNorm2d)", "statistics of batch_norm"): (STATISTICS, 2, None),
        ("5 (ReLU)", "output of relu"): (FULL, 1, None),
    }
    assert book.kept == IMAGES + 4 * FULL + 2 * STATISTICS


def test_rows_of_a_converted_model():
    model = convert(small())
    with ledger(model) as book:
        model(images()).sum().backward()
    rows = {(row.layer, row.role): (row.nbytes, row.shared_with) for row in book.table()}
    assert rows == {
        ("0 (Conv2d)", "input of convolution"): (IMAGES, None),
        ("1 (BatchNorm2d)", "y"): (FULL, None),
        ("3 (Conv2d)", "input of convolution (computed again)"): (0, ("1 (BatchNorm2d)", "y")),
        ("4 (BatchNorm2d)", "y"): (FULL, None),
    }
    assert book.kept == IMAGES + 2 * FULL


def test_what_silu_keeps_besides_z_is_counted():
    """A bit per value."""
    model = convert(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 2, 1))
    )
    with ledger(model) as book:
        model(images()).sum().backward()
    rows = {(row.layer, row.role): row.nbytes for row in book.table()}
    assert rows["1 (BatchNorm2d)", "z"] == FULL
    assert rows["1 (BatchNorm2d)", "branch_mask"] == FULL // 32
    assert book.live == 0


def test_roles_of_other_operations():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.MaxPool2d(2), nn.GELU(), nn.Dropout(), nn.Flatten(), nn.Linear(512, 4)
    )
    with ledger(model) as book:
        loss = nn.CrossEntropyLoss()(model(images()), torch.tensor([0, 1]))
    roles = {row.layer: set() for row in book.table()}
    for row in book.table():
        roles[row.layer].add(row.role)
    assert roles["1 (MaxPool2d)"] == {"input of max_pool2d", "indices of max_pool2d"}
    assert roles["2 (GELU)"] == {"input of gelu"}
    assert roles["5 (Linear)"] == {"input of linear"}
    assert "output of log_softmax" in roles["CrossEntropyLoss"]
    assert loss.requires_grad


def test_a_view_keeps_its_whole_storage_which_is_counted_once():
    x = torch.randn(100, 10, requires_grad=True) * 1
    with ledger(nn.Identity()) as book:
        parts = [x[:10].exp() * x[:10].sin(), x.t().cos(), x.view(-1).square()]
        assert book.live == x.nbytes + 100 * 4 * 2  # exp and sin are kept, too
        assert len(book.table()) > 1
    assert len(parts) == 3


def test_calls_of_one_module_are_one_row():
    layer = nn.Conv2d(3, 3, 1)
    with ledger(layer) as book:
        layer(layer(images()))
    (row,) = book.table()
    assert (row.count, row.nbytes) == (2, 2 * IMAGES)


def test_a_forward_without_gradients_keeps_nothing():
    model = small()
    with ledger(model) as book, torch.no_grad():
        model(images())
    assert (book.kept, len(book.table())) == (0, 0)


def test_weights_that_autocast_makes_are_counted():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    with ledger(model) as book, torch.autocast("cpu", torch.bfloat16):
        model(images())
    weights = [row for row in book.table() if row.role == "weight of convolution"]
    assert [row.nbytes for row in weights] == [2 * 8 * 3 * 9, 2 * 8 * 8 * 9]
    assert "autocast" in book.explain()


def test_tensors_that_a_function_keeps_by_itself_are_counted_until_it_is_freed():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.x = x.clone()
            return x.square()

        @staticmethod
        def backward(ctx, dz):
            return 2 * ctx.x * dz

    class Module(nn.Module):
        def forward(self, x):
            return Square.apply(x)

    model, x = Module(), images().requires_grad_()
    with ledger(model) as book:
        result = model(x)
        (row,) = book.table()
        assert (row.role, row.nbytes) == ("attribute 'x' of Square", IMAGES)
        result.sum().backward()
        del result
        assert book.live == 0


# ---- when it is freed --------------------------------------------------------------------------------------


def test_what_is_freed_is_taken_off_module_by_module():
    model = small()
    with ledger(model) as book:
        model(images()).sum().backward()
    _, live, _ = book.timeline()
    top = live.argmax()
    assert (live[: top + 1] == sorted(live[: top + 1])).all()
    assert (live[top:] == sorted(live[top:], reverse=True)).all()
    assert live[-1] == 0


@pytest.mark.parametrize("converted", [False, True])
def test_retain_graph_keeps_it(converted):
    model = convert(small()) if converted else small()
    with ledger(model) as book:
        loss = model(images()).sum()
        kept = book.live
        loss.backward(retain_graph=True)
        assert book.live == kept
        loss.backward()
        del loss
        assert book.live == 0


def test_a_graph_that_is_deleted_frees_at_once():
    model = small()
    gc.disable()
    try:
        with ledger(model) as book:
            result = model(images())
            assert book.live > 0
            del result
            assert book.live == 0
    finally:
        gc.enable()


def test_what_is_freed_after_the_block_is_not_taken_off():
    model = small()
    with ledger(model) as book:
        result = model(images())
    kept = book.live
    del result
    assert book.live == book.kept == kept > 0


# ---- other hooks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    """The segments keep their inputs; in the backward each runs again and keeps its tensors for a while."""
    segments = [small(), nn.Sequential(nn.Conv2d(8, 3, 1)), small()]
    model, x = nn.Sequential(*segments), images().requires_grad_()

    def run():
        z = x
        for segment in segments:
            z = checkpoint(segment, z, use_reentrant=reentrant)
        return z.square().sum()

    run().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with ledger(model) as book:
        loss = run()
        assert book.live == 2 * IMAGES + FULL + FULL  # inputs of the segments, and of square
        loss.backward()
        del loss
        gc.collect()
        assert book.live == 0
    one = 4 * FULL + 2 * STATISTICS  # what a segment keeps besides its input
    assert book.kept == 2 * IMAGES + FULL + one
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("converted", [False, True])
def test_hooks_that_keep_something_else(outside, converted):
    """Tensors in half the bytes, kept in a dict, are what is counted, inside and outside of the ledger."""
    model = convert(small()) if converted else small()
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: {"half": tensor.to(torch.bfloat16), "dtype": tensor.dtype},
        lambda packed: packed["half"].to(packed["dtype"]),
    )
    if outside:
        with hooks, ledger(model) as book:
            result = model(images())
    else:
        with ledger(model) as book, hooks:
            result = model(images())
    activations = [row for row in book.table() if len(row.shape) == 4]
    assert {row.dtype for row in activations} == {torch.bfloat16}
    assert all(row.shared_with is None for row in activations)  # each is a copy of its own
    assert book.live == sum(row.nbytes for row in book.table())
    result.sum().backward()


@pytest.mark.parametrize("converted", [False, True])
def test_save_on_cpu_changes_nothing_on_a_cpu(converted):
    model = convert(small()) if converted else small()
    with ledger(model) as book, torch.autograd.graph.save_on_cpu():
        results = [model(images())]
    with torch.autograd.graph.save_on_cpu(), ledger(model) as outside:
        results.append(model(images()))
    assert book.live == outside.live > 0


def test_converted_models_run_as_they_do_without_a_ledger():
    model, x = convert(small(nn.SiLU(), nn.Conv2d(8, 2, 1))), images()
    expected = gradients(model, x)
    with ledger(model):
        got = gradients(model, x)
    assert all(map(torch.equal, got, expected))


def test_a_saved_tensor_that_is_overwritten_is_an_error():
    x = torch.randn(4, requires_grad=True) * 1
    with ledger(nn.Identity()):
        z = x.square().sum()
        x.zero_()
        with pytest.raises(RuntimeError, match="modified in place"):
            z.backward()


def test_double_backward():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    with ledger(nn.Identity()):
        assert torch.autograd.gradgradcheck(lambda x: (x**3).tanh(), (x,))


def test_hooks_and_module_calls_are_as_before_afterwards():
    before = nn.Module.__call__, _autograd._push_saved_tensors_default_hooks
    with pytest.raises(ValueError, match="stop"), ledger(small()), ledger(small()):
        raise ValueError("stop")
    assert (nn.Module.__call__, _autograd._push_saved_tensors_default_hooks) == before
    node = (torch.ones(2, requires_grad=True) ** 2).grad_fn
    node._raw_saved_self.register_hooks(lambda t: t, lambda t: t)  # fails if hooks were active


def test_nested_ledgers_count_the_same():
    model = convert(small())
    with ledger(model) as outer:
        model(images()).sum().backward()
        with ledger(model) as inner:
            model(images()).sum().backward()
    assert inner.kept == outer.kept > 0
    assert (inner.live, outer.live) == (0, 0)


@pytest.mark.slow
def test_code_of_torch_compile_is_counted():
    model = small()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(images()).sum().backward()
    with ledger(model) as book:
        compiled(images()).sum().backward()
    assert book.kept >= IMAGES + 2 * FULL
    assert book.live == 0
    assert "torch.compile" in book.explain()
    torch._dynamo.reset()


def test_arguments():
    with pytest.raises(TypeError, match="Module, got str"), ledger("original"):
        pass
