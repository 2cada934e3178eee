"""Batches of samples: the same in every run with the same seed, whenever it resumed."""

import numpy as np
import torch
from data.files import BadFile
from torch.utils.data import DataLoader, Dataset, Sampler


class Samples(Dataset):
    """Samples of a reader, transformed.

    The random numbers of a transformation depend on seed, epoch and sample only. So they are the same for any
    number of workers and processes, and need no state in a checkpoint.

    Parameters
    ----------
    reader : sequence
        ``reader[index]`` returns a sample or raises `BadFile`.
    transform : callable
        ``transform(sample, rng)`` returns arrays for an image and its labels.
    seed : int
    skip_bad_files : bool
        False: a bad file is an error.
    replace : bool
        True: the next sample takes the place of a bad one, so that batches stay full. False: it is left out.
    """

    def __init__(self, reader, transform, seed, skip_bad_files, replace):
        self.reader, self.transform, self.seed = reader, transform, seed
        self.skip_bad_files, self.replace = skip_bad_files, replace

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, key):
        """Return ((image, labels), messages about bad files) of (epoch, index); (None, ...) if left out."""
        (epoch, index), problems = key, []
        for number in range(index, index + len(self)):
            try:
                sample = self.reader[number % len(self)]
            except BadFile as error:
                if not self.skip_bad_files:
                    raise
                problems.append(str(error))
                if not self.replace:
                    return None, problems
            else:
                rng = np.random.default_rng((self.seed, epoch, index))
                return self.transform(sample, rng), problems
        raise BadFile(f"all {len(self)} samples are bad; the first: {problems[0]}")


class Order(Sampler):
    """Random batches of an epoch for one of several processes, from any batch on.

    Each epoch has a permutation of its own. All processes together take consecutive parts of it; the rest
    that is too small for a step of the optimizer is left out.
    """

    def __init__(self, size, options, group):
        self._size, self._batch_size, self._group, self._seed = size, options.batch_size, group, options.seed
        self.steps = size // (options.batch_size * options.accumulate * group.size)
        self._batches = self.steps * options.accumulate
        self.epoch, self.first = 0, 0

    def __len__(self):
        return self._batches - self.first

    def __iter__(self):
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = torch.randperm(self._size, generator=generator).tolist()
        for batch in range(self.first, self._batches):
            start = (batch * self._group.size + self._group.rank) * self._batch_size
            yield [(self.epoch, index) for index in order[start : start + self._batch_size]]


class TrainingBatches:
    """Batches for training, several at a time: those whose gradients are accumulated.

    Parameters
    ----------
    reader, transform
        See `Samples`.
    options : argparse.Namespace
    group : Processes
    problems : dict
        Gets a key per message about a bad file that this process has skipped: an ordered set.

    Attributes
    ----------
    images : int
        The number of samples.
    steps : int
        The number of optimizer steps of an epoch.
    """

    def __init__(self, reader, transform, options, group, problems):
        samples = Samples(reader, transform, options.seed, options.skip_bad_files, replace=True)
        self._order = Order(len(samples), options, group)
        self._accumulate, self._device, self.problems = options.accumulate, group.device, problems
        self.images, self.steps = len(samples), self._order.steps
        if not self.steps:
            needed = options.batch_size * options.accumulate * group.size
            raise SystemExit(
                f"--batch-size: a step needs {needed} samples (batch size x accumulated batches x "
                f"processes), the training set has {len(samples)}"
            )
        self._loader = _loader(samples, options, group, batch_sampler=self._order)

    def from_step(self, epoch, step):
        """Yield lists of (images, labels) on the device, from a step of an epoch on."""
        self._order.epoch, self._order.first = epoch, step * self._accumulate
        parts = []
        for images, labels, problems in self._loader:
            self.problems.update(dict.fromkeys(problems))
            parts.append((_to(images, self._device), _to(labels, self._device)))
            if len(parts) == self._accumulate:
                yield parts
                parts = []


class EvaluationBatches:
    """Each sample once, divided among the processes; batches of this process.

    The parameters are those of `TrainingBatches`, and the number of samples per batch.
    """

    def __init__(self, reader, transform, options, group, problems, batch_size):
        samples = Samples(reader, transform, options.seed, options.skip_bad_files, replace=False)
        keys = [(0, index) for index in range(group.rank, len(samples), group.size)]
        batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
        self._loader = _loader(samples, options, group, batch_sampler=batches)
        self._device, self.problems = group.device, problems

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        """Yield (images, labels) on the device."""
        for images, labels, problems in self._loader:
            self.problems.update(dict.fromkeys(problems))
            if images is not None:
                yield _to(images, self._device), _to(labels, self._device)


def _loader(samples, options, group, **arguments):
    return DataLoader(
        samples,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        collate_fn=_collate,
        pin_memory=group.device.type == "cuda",
        # The loader draws a seed for its workers: not from the model's generator, from which a resumed run
        # would draw one more.
        generator=torch.Generator(),
        **arguments,
    )


def _collate(samples):
    """Return images, labels and messages; None for images and labels if all samples were left out."""
    problems = [message for _, messages in samples for message in messages]
    pairs = [pair for pair, _ in samples if pair is not None]
    if not pairs:
        return None, None, problems
    images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
    return images, labels, problems


def _to(tensor, device):
    return tensor.to(device, non_blocking=True)
