"""A training step: forward, backward, optimizer, schedule."""

import numpy as np

from .. import layers, optim


class Trainer:
    """A network, a loss, an optimizer and a schedule.

    Parameters
    ----------
    net : Layer
        With float32 or float64 parameters, which are the master weights if activations have a half type.
    steps : int
        Number of steps of the schedule.
    dtype : str
        Dtype of the images. For "float16" the loss is scaled by `inplace_abn.optim.GradScaler`.
    """

    def __init__(self, net, steps, dtype="float32"):
        self.net, self.loss = net, layers.CrossEntropy()
        self._optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self._schedule = optim.CosineSchedule(self._optimizer, steps)
        self._scaler = optim.GradScaler(1024.0) if dtype == "float16" else None

    def step(self, images, targets):
        """Run a step; return the loss."""
        loss = self.loss(self.net(images), targets)
        if self._scaler is None:
            self.net.backward(self.loss.backward(), overwrite=True)
            self._optimizer.step()
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # the scaler skips steps that overflow
                self.net.backward(self.loss.backward(self._scaler.scale), overwrite=True)
            self._scaler.step(self._optimizer)
        self._optimizer.zero_grad()
        self._schedule.step()
        return loss
