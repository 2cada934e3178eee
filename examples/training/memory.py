"""What a training step keeps in memory: the ledger of a model as it is, and of the converted one."""

import torch

from inplace_abn.torch import ledger

from .script import build

_ROWS = 12


def report(options, group, make, loss, per_pixel):
    """Run one step of a model as it is and one as the options say; print what autograd keeps.

    Parameters
    ----------
    options : argparse.Namespace
    group : Processes
    make : callable
        Returns a new model.
    loss : callable
        ``loss(result, labels)``
    per_pixel : bool
        The labels are those of pixels, or of images.
    """
    images = torch.randn(options.batch_size, 3, options.crop, options.crop, device=group.device)
    labels = torch.zeros_like(images[:, 0] if per_pixel else images[:, 0, 0, 0], dtype=torch.int64)
    measured = _measured(build(options, make, stock=True), options, group, loss, images, labels)
    print(f"batch: {tuple(images.shape)}, {images.nbytes / 2**20:.1f} MiB")
    print(f"{options.model} as it is: {_sizes(*measured)}")
    if not options.stock:
        kept = measured[0].kept
        measured = _measured(build(options, make), options, group, loss, images, labels)
        print(f"converted: {_sizes(*measured)}, {measured[0].kept / kept:.0%} of it")
    rows = measured[0].table()
    print(f"the largest of {len(rows)} tensors:")
    for row in sorted(rows, key=lambda row: -row.nbytes)[:_ROWS]:
        print(f"{row.nbytes / 2**20:10.2f} MiB  {row.layer}: {row.role}")


def _measured(model, options, group, loss, images, labels):
    """Return the ledger of a forward and backward, and the peak of a GPU's memory or None."""
    model = model.to(group.device).train()
    is_cuda = group.device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    with ledger(model) as book:
        with group.autocast(options.autocast):
            value = loss(model(images), labels)
        value.backward()
    return book, torch.cuda.max_memory_allocated() if is_cuda else None


def _sizes(book, peak):
    text = f"{book.kept / 2**20:.1f} MiB kept between forward and backward"
    return text if peak is None else f"{text}, peak of the GPU {peak / 2**20:.0f} MiB"
