"""Models of torchvision and timm with random weights, and their comparison with conversions."""

import copy

import pytest

from inplace_abn import _core

torch = pytest.importorskip("torch", minversion="2.4")

from without_operators import import_torchvision  # noqa: E402

torchvision = import_torchvision()
torch.set_num_threads(1)  # tests run in parallel


def vision(name, **options):
    """Return a classification model of torchvision."""
    return getattr(torchvision.models, name)(weights=None, **options)


def segmentation(name, **options):
    """Return a segmentation model of torchvision."""
    return getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, **options)


def pyramid(name, **options):
    """Return the backbone of a detection model of torchvision, with its feature pyramid."""
    from torchvision.models.detection import backbone_utils

    if name.startswith("mobilenet"):
        make = backbone_utils.mobilenet_backbone
        return make(backbone_name=name, weights=None, fpn=True, norm_layer=torch.nn.BatchNorm2d, **options)
    make = backbone_utils.resnet_fpn_backbone
    return make(
        backbone_name=name, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5, **options
    )


def timm(name, **options):
    """Return a model of timm."""
    return pytest.importorskip("timm").create_model(name, **options)


def prepare(model, dtype=torch.float64, seed=0):
    """Return the model in training mode, with random weights of batch norms and without dropout."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.affine:
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 0.5 + 0.75)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
        if isinstance(module, torch.nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model.to(dtype).train()


def tensors(result):
    """Return the tensors of a model's result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    values = result.values() if isinstance(result, dict) else result
    return [tensor for value in values if value is not None for tensor in tensors(value)]


def loss(result):
    """Return a scalar in which each element of the result has a weight of its own."""
    total = 0
    for number, tensor in enumerate(tensors(result)):
        generator = torch.Generator().manual_seed(number)
        weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        total = total + (tensor * weights).sum() / tensor.numel() ** 0.5
    return total


def step(model, x):
    """Run forward and backward in training mode; return results, gradients and buffers."""
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    result = model(x)
    loss(result).backward()
    return (
        [tensor.detach() for tensor in tensors(result)],
        {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None},
        {name: buffer.clone() for name, buffer in model.named_buffers()},
    )


def error(got, expected):
    """Return the largest difference, relative to the largest expected value."""
    difference = (got.double() - expected.double()).abs().max() if expected.numel() else torch.zeros(())
    return (difference / expected.double().abs().max().clamp_min(1e-30)).item() if expected.numel() else 0.0


def errors(model, converted, x):
    """Return the errors of a converted model beside the original: outputs, gradients, buffers, eval.

    The error of a gradient is relative to its own norm, with a floor of 1e-6 of the largest gradient: those
    of biases before a batch norm are zero up to rounding.
    """
    expected, got = step(model, x), step(converted, x)
    assert len(expected[0]) == len(got[0])
    assert expected[1].keys() == got[1].keys()
    largest = max(gradient.norm() for gradient in expected[1].values())
    found = {
        "outputs": max(map(error, got[0], expected[0])),
        "gradients": max(
            ((got[1][name] - gradient).norm() / (gradient.norm() + 1e-6 * largest)).item()
            for name, gradient in expected[1].items()
        ),
        "buffers": max((error(got[2][name], buffer) for name, buffer in expected[2].items()), default=0.0),
    }
    with torch.no_grad():
        pairs = zip(tensors(converted.eval()(x)), tensors(model.eval()(x)), strict=True)
        found["eval"] = max(error(*pair) for pair in pairs)
    return found


def copies(model):
    """Return a model and a deep copy of it."""
    return model, copy.deepcopy(model)


class kept_bytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what the forwards inside the block keep for their backward, each memory once.

    These are the tensors that autograd saves, and all arrays that contexts of the core keep beside them.
    Parameters and buffers of the model are not counted.
    """

    def __init__(self, model):
        self._known = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self._kept, self._of_contexts = {}, {}
        super().__init__(self._pack, lambda tensor: tensor)

    def __enter__(self):
        super().__enter__()
        _core.set_recorder(self)
        return self

    def __exit__(self, *exception):
        _core.set_recorder(None)
        super().__exit__(*exception)

    def _pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # the tensor: no address is used twice
        return tensor

    def saved(self, context, layer, role, array, activation=None):
        """Record an array that a context of the core keeps."""
        self._of_contexts.setdefault(context, []).append(array.nbytes)

    def freed(self, context):
        """Forget a context."""
        self._of_contexts.pop(context, None)

    def temporary(self, layer, nbytes):
        """Ignore it: it is not kept."""

    @property
    def total(self):
        """Return the number of bytes."""
        return sum(nbytes for nbytes, _ in self._kept.values()) + sum(map(sum, self._of_contexts.values()))


def kept_ratio(model, converted, x):
    """Return the bytes that a converted model keeps in training, relative to the original's."""
    totals = []
    for each in (converted, model):
        with kept_bytes(each) as kept:
            each.train()(x)
        totals.append(kept.total)
        del kept
    return totals[0] / totals[1]
