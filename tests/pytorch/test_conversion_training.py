"""Training on digits with a converted network: the same losses and accuracy as the original's."""

import copy

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]
torch = pytest.importorskip("torch", minversion="2.4")
nn, F = torch.nn, torch.nn.functional

from inplace_abn.torch import convert, report  # noqa: E402

torch.set_num_threads(1)  # small arrays, and tests run in parallel


class Block(nn.Module):
    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)


def network(dtype):
    torch.manual_seed(0)
    stem = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()
    blocks = Block(8, 16, 2), Block(16, 16, 1)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).to(dtype)


def digits(dtype):
    """Return images and labels, the test set last."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    pictures = torch.from_numpy(data.images).unsqueeze(1)[order] / 16
    return pictures.to(dtype), torch.from_numpy(data.target)[order]


def train(model, pictures, labels, steps=300):
    """Return the losses of the steps and the accuracy on the last 360 images."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for number in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - number / steps)
        chosen = torch.randint(1437, (32,), generator=generator)
        loss = F.cross_entropy(model(pictures[chosen]).to(torch.float64), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        right = model.eval()(pictures[1437:]).argmax(1) == labels[1437:]
    return torch.tensor(losses), right.double().mean().item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_training_on_digits(dtype):
    pictures, labels = digits(dtype)
    model = network(dtype)
    converted = convert(copy.deepcopy(model))
    assert all(row.state in ("fused", "with residual") for row in report(converted).rows)
    expected, accuracy = train(model, pictures, labels)
    losses, reached = train(converted, pictures, labels)
    assert accuracy > 0.95
    assert abs(reached - accuracy) <= 0.01
    if dtype is torch.float64:
        assert reached == accuracy
        assert ((losses - expected).abs() <= 1e-9 * expected.clamp_min(1e-3)).all()
