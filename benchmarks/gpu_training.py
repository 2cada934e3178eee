"""Loss curves on a GPU: a network of PyTorch and the converted one, same weights, same batches."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu_networks import SETTINGS, network
from benchmarks.torch_networks import CLASSES, leaky_relu
from inplace_abn.torch import convert

STEPS = 60


def digits_network(activation):
    """Return a small network for the digits of scikit-learn, which has the activation of the paper."""
    torch.manual_seed(0)
    layers, channels = [], 1
    for width, stride in ((32, 1), (64, 2), (128, 2)):
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), leaky_relu()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def digits(size):
    """Return batches of 128 handwritten digits of 8 x 8, in a random order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels, generator = torch.tensor(labels), torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        chosen = torch.randperm(len(labels), generator=generator)[:128]
        yield images[chosen], labels[chosen]


def noise(size):
    """Return one batch of random images with random labels, again and again."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, size, size, generator=generator)
    labels = torch.randint(CLASSES, (32,), generator=generator)
    for _ in range(STEPS):
        yield images, labels


#: name -> (network, batches, learning rate)
DATA = {
    "digits": (digits_network, digits, 0.05),
    "ResNet-50 on noise": (lambda activation: network("resnet50", activation), noise, 0.02),
}


def losses(model, batches, setting, rate, device):
    """Return the losses of a training by SGD with momentum."""
    memory_format, is_half = SETTINGS[setting]
    model = model.to(device).to(memory_format=memory_format).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    found = []
    for images, labels in batches:
        images = images.to(device).contiguous(memory_format=memory_format)
        with torch.autocast(device, torch.bfloat16, enabled=is_half):
            loss = F.cross_entropy(model(images), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found).tolist()


def measure(name, setting, size, device):
    """Return the losses of both networks."""
    make, batches, rate = DATA[name]
    row = {"network": name, "setting": setting}
    for who in ("stock", "ours"):
        model = make("leaky_relu")
        row[who] = losses(convert(model) if who == "ours" else model, batches(size), setting, rate, device)
    return row
