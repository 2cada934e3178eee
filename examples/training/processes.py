"""The processes that torchrun has started: their devices, and what they exchange."""

import os
from contextlib import contextmanager, nullcontext

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from inplace_abn.torch import convert_sync


class Processes:
    """One process among those of torchrun; without torchrun it is the only one."""

    def __init__(self, device):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if device == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device(device)

    @property
    def is_first(self):
        """True in the process that writes files and prints."""
        return self.rank == 0

    def parallel(self, model, synchronized):
        """Return the model for training: gradients are averaged, statistics are those of all processes."""
        if self.size == 1:
            return model
        if synchronized:
            convert_sync(model)
        # Without a search for unused parameters, DistributedDataParallel regroups its buckets after the first
        # step. With more than two processes the order of sums, and so the last bits, would depend on when a
        # run was resumed.
        return DistributedDataParallel(
            model, find_unused_parameters=True, broadcast_buffers=not synchronized,
            gradient_as_bucket_view=True,
        )  # fmt: skip

    def autocast(self, dtype):
        """Return a block that computes in "bfloat16" or "float16"; None: in float32."""
        return torch.autocast(self.device.type, getattr(torch, dtype)) if dtype else nullcontext()

    def sum(self, tensor):
        """Add the tensors of all processes, in place; return the tensor."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gather(self, value):
        """Return the values of all processes, in the order of ranks."""
        values = [value]
        if self.size > 1:
            values = [None] * self.size
            distributed.all_gather_object(values, value)
        return values

    def copy_first(self, tensors):
        """Overwrite tensors by those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)


@contextmanager
def started(device):
    """Connect the processes of torchrun for the duration of a block; yield `Processes`."""
    group = Processes(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if group.size > 1:
        distributed.init_process_group("nccl" if group.device.type == "cuda" else "gloo")
    yield group
    if group.size > 1:  # after an error, it could wait for the other processes
        distributed.destroy_process_group()
