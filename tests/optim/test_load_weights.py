"""load_weights: names of torchvision and timm, pairing by position, weight_mode, errors."""

import checkpoints
import ml_dtypes
import numpy as np
import pytest
from networks import normal

from inplace_abn import models
from inplace_abn.checkpoint import load_weights
from inplace_abn.layers import ABN, Conv2d, InPlaceABN, Linear, Sequential


def resnet(**style):
    return models.resnet(3, 10, (1, 2), width=8, **style)


def basic(**style):
    return models.resnet(3, 10, (2, 1), block="basic", width=8, **style)


def mobilenet(**style):
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2))
    return models.mobilenet_v2(3, 10, stages=stages, **style)


SMALL = ((1, 16, 1), (6, 24, 2), (6, 32, 1))
#: Network, source, shapes of the checkpoint, and some pairs of names written by hand.
CASES = {
    "ResNet of bottlenecks": (
        resnet,
        "torchvision",
        checkpoints.resnet((1, 2), 4, 8, 10),
        {
            "stem.conv.weight": "conv1.weight",
            "stem.abn.running_var": "bn1.running_var",
            "stage1.0.branch.conv3.weight": "layer1.0.conv3.weight",
            "stage1.0.shortcut.conv.weight": "layer1.0.downsample.0.weight",
            "stage2.0.shortcut.abn.bias": "layer2.0.downsample.1.bias",
            "stage2.1.branch.abn2.running_mean": "layer2.1.bn2.running_mean",
            "scores.bias": "fc.bias",
        },
    ),
    "ResNet of basic blocks": (
        basic,
        "timm",
        checkpoints.resnet((2, 1), 1, 8, 10),
        {"stage1.1.branch.abn2.weight": "layer1.1.bn2.weight", "scores.weight": "fc.weight"},
    ),
    "MobileNetV2 of torchvision": (
        mobilenet,
        "torchvision",
        checkpoints.mobilenet_torchvision(SMALL, 10),
        {
            "abn.weight": "features.0.1.weight",
            "stage1.0.depthwise.weight": "features.1.conv.0.0.weight",
            "stage1.0.abn3.bias": "features.1.conv.2.bias",
            "stage2.0.expand.weight": "features.2.conv.0.0.weight",
            "stage2.1.branch.abn1.weight": "features.3.conv.0.1.weight",
            "stage2.1.branch.project.weight": "features.3.conv.2.weight",
            "stage3.0.abn3.running_mean": "features.4.conv.3.running_mean",
            "head.weight": "features.5.0.weight",
            "head_abn.num_batches_tracked": "features.5.1.num_batches_tracked",
            "scores.weight": "classifier.1.weight",
        },
    ),
    "MobileNetV2 of timm": (
        mobilenet,
        "timm",
        checkpoints.mobilenet_timm(SMALL, 10),
        {
            "stem.weight": "conv_stem.weight",
            "stage1.0.project.weight": "blocks.0.0.conv_pw.weight",
            "stage1.0.abn2.weight": "blocks.0.0.bn1.weight",
            "stage2.1.branch.expand.weight": "blocks.1.1.conv_pw.weight",
            "stage2.1.branch.abn3.weight": "blocks.1.1.bn3.weight",
            "head_abn.weight": "bn2.weight",
            "scores.bias": "classifier.bias",
        },
    ),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_names_of_torchvision_and_timm(name, recompute):
    make, source, shapes, pairs = CASES[name]
    net = make(**({"recompute_stem": True} if recompute and make is not mobilenet else {}))
    state = checkpoints.filled(shapes)
    assert load_weights(net, state, source=source) == ([], [])
    own = net.state_dict()
    for ours, theirs in pairs.items():
        assert np.array_equal(own[ours], state[theirs]), ours
    # Pairing by name and by position gives the same result, and no two arrays are equal.
    load_weights(net, state, source="torch", by_position=True)
    assert all(np.array_equal(array, own[name]) for name, array in net.state_dict().items())
    assert len({array.tobytes() for array in own.values()}) == len(state)


def test_whole_networks_of_torchvision_and_timm_fit():
    """The defaults: ResNet-50 and MobileNetV2, by name and by position."""
    resnet50, mobilenet_v2 = models.resnet(3, 1000), models.mobilenet_v2(3, 1000)
    shapes = [
        (resnet50, "torchvision", checkpoints.resnet((3, 4, 6, 3), 4)),
        (mobilenet_v2, "torchvision", checkpoints.mobilenet_torchvision()),
        (mobilenet_v2, "timm", checkpoints.mobilenet_timm()),
    ]
    for net, source, found in shapes:
        state = {name: np.broadcast_to(np.float32(1), shape) for name, shape in found.items()}
        assert load_weights(net, state, source=source) == ([], [])
        assert load_weights(net, state, source="torch", by_position=True) == ([], [])


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_files(dtype, ending, tmp_path):
    path, state = tmp_path / f"x{ending}", checkpoints.filled(checkpoints.resnet((2, 1), 1, 8, 10), dtype)
    if ending == ".npz":
        np.savez(path, **state)
    else:
        pytest.importorskip("safetensors", reason="the library safetensors is not installed")
        from safetensors.numpy import save_file

        save_file(state, path)
    net = basic()
    assert load_weights(net, path, source="torchvision") == ([], [])
    assert net.stem.conv.weight.data.dtype == np.float32
    assert np.array_equal(net.stem.conv.weight.data, state["conv1.weight"].astype(np.float32))


@pytest.mark.torch
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_results_are_those_of_torchvision(block):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    kind = getattr(torchvision.models.resnet, {"basic": "BasicBlock"}.get(block, "Bottleneck"))
    theirs = torchvision.models.ResNet(kind, (1, 1, 1, 1), num_classes=10).eval()
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    for array in state.values():  # shares memory with the network of torchvision
        if array.ndim == 1:
            array[...] = np.random.default_rng(0).uniform(0.5, 1.5, array.shape)
    ours = models.resnet(3, 10, (1, 1, 1, 1), block=block, activation="relu", strategy="standard").eval()
    load_weights(ours, state, source="torchvision")
    x = normal((2, 3, 64, 64), dtype=np.float32)
    with torch.no_grad():
        want = theirs(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ours(x), want, rtol=0, atol=1e-5 * np.abs(want).max())


# ---- weight_mode -------------------------------------------------------------------------------------------


def abn_state(weight=(-0.5, 0.25)):
    ones = np.ones(2, np.float32)
    return {"weight": np.array(weight, np.float32), "bias": ones, "running_mean": ones, "running_var": ones}


@pytest.mark.parametrize(
    ("options", "absolute"),
    [
        ({"source": "torch"}, False),
        ({"source": "inplace_abn"}, True),
        ({"source": "inplace_abn", "weight_mode": "signed"}, False),
        ({"source": "torch", "weight_mode": "abs"}, True),
    ],
)
def test_weight_mode_depends_on_the_source(options, absolute):
    layer, state = InPlaceABN(2, eps=0.125), abn_state()
    load_weights(layer, state, **options)
    assert layer.weight.data.tolist() == ([0.625, 0.375] if absolute else [-0.5, 0.25])
    assert state["weight"].tolist() == [-0.5, 0.25]


def test_only_weights_of_normalizations_are_made_absolute():
    net = Sequential(Conv2d(1, 2, 1, bias=False), InPlaceABN(2))
    state = {f"module.1.{name}": array for name, array in abn_state().items()}
    state["module.0.weight"] = np.full((2, 1, 1, 1), -1.0)
    load_weights(net, state, source="inplace_abn", mapping=lambda name: f"module.{name}")
    assert (net[0].weight.data == -1).all()
    assert (net[1].weight.data > 0).all()
    assert (net[1].bias.data == 1).all()


def test_the_source_must_be_given():
    with pytest.raises(TypeError, match="source"):
        load_weights(InPlaceABN(2), abn_state())
    with pytest.raises(ValueError, match=r"source must be one of 'torch', .* got 'tensorflow'"):
        load_weights(InPlaceABN(2), abn_state(), source="tensorflow")
    with pytest.raises(ValueError, match="weight_mode must be one of 'signed', 'abs', got 'squared'"):
        load_weights(InPlaceABN(2), abn_state(), source="torch", weight_mode="squared")


# ---- by position -------------------------------------------------------------------------------------------


def chain(activation="leaky_relu"):
    return Sequential(
        Conv2d(1, 4, 3), InPlaceABN(4, activation=activation, num_slopes=4 if activation == "prelu" else 1),
        Conv2d(4, 4, 3), ABN(4), Linear(4, 2),
    )  # fmt: skip


def chain_state(prelu=False):
    """Return the state of the chain in PyTorch, where activations are modules."""
    shapes = {"0.weight": (4, 1, 3, 3), "0.bias": (4,), **checkpoints.norm("1", 4)}
    shapes |= {"2.weight": (4,)} if prelu else {}
    shapes |= {"3.weight": (4, 4, 3, 3), "3.bias": (4,), **checkpoints.norm("4", 4)}
    return checkpoints.filled(shapes | {"6.weight": (2, 4), "6.bias": (2,)})


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("activation", ["leaky_relu", "prelu"])
def test_by_position(activation, counted, tmp_path):
    net, state = chain(activation), chain_state(activation == "prelu")
    if not counted:  # as in old checkpoints
        state = {name: array for name, array in state.items() if "num_batches" not in name}
    np.savez(tmp_path / "x.npz", **state)
    assert load_weights(net, tmp_path / "x.npz", source="torch", by_position=True) == ([], [])
    own = net.state_dict()
    names = {"2.weight": "3.weight", "1.running_var": "1.running_var", "3.bias": "4.bias", "4.bias": "6.bias"}
    names |= {"1.slope": "2.weight"} if activation == "prelu" else {}
    for ours, theirs in names.items():
        assert np.array_equal(own[ours], state[theirs]), ours


@pytest.mark.torch
def test_a_sequential_of_pytorch_by_position():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    nn = torch.nn
    theirs = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.LeakyReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 2),
    )  # fmt: skip
    from inplace_abn.layers import Flatten

    ours = Sequential(*list(chain("prelu"))[:4], Flatten(), Linear(64, 2))
    theirs(torch.tensor(normal((4, 1, 8, 8), dtype=np.float32)))
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    load_weights(ours, state, source="torch", by_position=True)
    x = normal((3, 1, 8, 8), 1, np.float32)
    want = theirs.eval()(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours.eval()(x), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            {"9.weight": np.ones((4, 1, 3, 3)), "9.bias": np.ones(5)},
            r"position 1: the network has 0.bias of shape \(4,\), the checkpoint has 9.bias of shape \(5,\)",
        ),
        (
            {"9.weight": np.ones((4, 1, 3, 3)), "9.running_mean": np.ones(4)},
            r"position 1: .* 0.bias .* 9.running_mean",
        ),
        (
            dict(list(chain_state().items())[:-1]),
            r"position 15: the network has 4.bias of shape \(2,\), the checkpoint has no more entries",
        ),
        (
            chain_state() | {"7.weight": np.ones(1)},
            r"position 16: the network has no more entries, the checkpoint has 7.weight of shape \(1,\)",
        ),
    ],
)
def test_the_first_mismatched_position_is_reported(state, words):
    net = chain()
    before = net.state_dict()
    with pytest.raises(RuntimeError, match=words):
        load_weights(net, state, source="torch", by_position=True)
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())


def test_unknown_names_are_paired_by_position():
    net = Sequential(Linear(2, 3))
    load_weights(net, {"kernel": np.ones((3, 2)), "shift": np.ones(3)}, source="torch", by_position=True)
    assert (net[0].weight.data == 1).all()


# ---- exclude and errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_position", [False, True])
def test_excluded_layers_keep_their_values(by_position):
    state = checkpoints.filled(checkpoints.resnet((2, 1), 1, 8, 1000))
    net = basic()
    scores = net.scores.weight.data.copy()
    with pytest.raises(RuntimeError, match=r"fc.weight|position"):
        load_weights(net, state, source="torchvision", by_position=by_position)
    load_weights(net, state, source="torchvision", by_position=by_position, exclude=["scores"])
    assert np.array_equal(net.scores.weight.data, scores)
    assert np.array_equal(net.stem.conv.weight.data, state["conv1.weight"])
    with pytest.raises(ValueError, match="exclude: the network has no layer or parameter 'fc'"):
        load_weights(net, state, source="torchvision", exclude=["fc"])
    with pytest.raises(TypeError, match=r"exclude must be a list of names, got 'scores'; pass \['scores'\]"):
        load_weights(net, state, source="torchvision", exclude="scores")


def test_problems_are_listed_with_the_names_of_both_sides():
    net, state = basic(), checkpoints.filled(checkpoints.resnet((2, 1), 1, 8, 10))
    state["fc.bias"] = np.ones(3)
    state["more"] = state.pop("bn1.weight")
    before = net.state_dict()
    with pytest.raises(RuntimeError) as caught:
        load_weights(net, state, source="torchvision")
    assert str(caught.value).splitlines() == [
        "The checkpoint does not fit the network; nothing was loaded:",
        "\tmissing: bn1.weight (stem.abn.weight in the network)",
        "\tunexpected: more",
        "\tsize mismatch: fc.bias (scores.bias in the network): expected shape (10,), got (3,)",
    ]
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())
    state["fc.bias"] = np.ones(10)
    result = load_weights(net, state, source="torchvision", strict=False)
    assert result == (["stem.abn.weight"], ["more"])


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (
            {"source": "timm"},
            ValueError,
            "deeplabv3, which have no layer '0'; pass mapping=",
        ),
        ({"mapping": {"x": "y"}}, ValueError, "mapping: the network has no parameter or buffer 'x'"),
        (
            {"mapping": {}, "by_position": True},
            ValueError,
            "mapping cannot be combined with by_position=True",
        ),
        ({"path_or_state": [1]}, TypeError, "path_or_state must be a mapping of names to arrays"),
        ({"path_or_state": "x.pth"}, ValueError, r"path must end in \.npz or \.safetensors"),
        ({"path_or_state": "x.safetensors", "by_position": True}, ValueError, "are sorted by name"),
        ({"network": {}}, TypeError, "network must be a Layer, got dict"),
    ],
)
def test_invalid_arguments_are_refused(options, kind, words):
    given = {"network": Sequential(Linear(2, 2)), "path_or_state": {}, "source": "torch", **options}
    with pytest.raises(kind, match=words):
        load_weights(given.pop("network"), given.pop("path_or_state"), **given)


def test_mapping():
    net, state = Sequential(Linear(2, 3)), {"w": np.ones((3, 2)), "0.bias": np.ones(3)}
    load_weights(net, state, source="torch", mapping={"0.weight": "w"})
    assert (net[0].weight.data == 1).all()
    assert (net[0].bias.data == 1).all()


def test_an_excluded_name_of_the_source_is_translated_in_the_message():
    net, shapes = resnet(), checkpoints.resnet((1, 2), 4, 8, 10)
    state = {name: np.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match="no layer or parameter 'fc'; it is called 'scores' here"):
        load_weights(net, state, source="torchvision", exclude=["fc"])
    with pytest.raises(ValueError, match="'head'; it has 'stem', 'stage1', 'stage2', 'scores'"):
        load_weights(net, state, source="torchvision", exclude=["head"])


def test_a_message_lists_the_first_names_of_each_kind_and_counts_the_others():
    state = {f"other.{i}": np.zeros(1) for i in range(25)}
    with pytest.raises(RuntimeError) as caught:
        load_weights(resnet(), state, source="torchvision")
    lines = str(caught.value).split("\n\t")
    assert lines[1] == "missing: conv1.weight (stem.conv.weight in the network)"
    assert "15 more unexpected" in lines
    assert len(lines) == 1 + 2 * 11
