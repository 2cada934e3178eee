"""The arguments of one normalization that are not differentiated."""

from typing import NamedTuple

import torch

from ..distributed.exchange import Exchange, Step


class Producer(NamedTuple):
    """The module that has computed x, and its input, from which it computes x again in the backward."""

    module: torch.nn.Module
    source: torch.Tensor


class Normalization(NamedTuple):
    """What a call needs besides x, weight, bias, residual and slope.

    Attributes
    ----------
    running_mean, running_var : Tensor or None
        Updated in training; None without running statistics.
    training : bool
        True normalizes by the statistics of the batch.
    momentum, eps : float
    activation : str
    param : float, or (low, high) for hardtanh
    name : str
        The module, for messages.
    producer : Producer, optional
        Given if the tensor that is written over x shall not be kept: x is computed again in the backward.
    exchange : Exchange, optional
        Connects the processes whose batches are normalized as one.
    step : Step, optional
        What this call exchanges.
    owner : torch.nn.Module or Tensor, optional
        The module, or the weight of a call without a module. For it, kernels for GPUs store how many channels
        have a tiny weight.
    batches : Tensor of one int64, optional
        num_batches_tracked. Every path of a call increments it once: a kernel for GPUs, or `count_batch`.
    """

    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    training: bool
    momentum: float
    eps: float
    activation: str
    param: float | tuple[float, float]
    name: str
    producer: Producer | None = None
    exchange: Exchange | None = None
    step: Step | None = None
    owner: object = None
    batches: torch.Tensor | None = None

    def count_batch(self):
        """Count this batch: for paths whose kernels do not."""
        if self.batches is not None:
            self.batches.add_(1)
