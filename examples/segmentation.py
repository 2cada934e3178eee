"""Train a network for semantic segmentation in place, on Cityscapes, Mapillary Vistas or COCO-Stuff.

    torchrun --nproc-per-node 8 examples/segmentation.py FOLDER --dataset cityscapes --activation leaky_relu

The same command continues a run that was killed. examples/README.md has commands and the paper's results.
"""

from functools import partial
from pathlib import Path

import torch
from data.files import IGNORED
from data.segmentation import READERS
from data.transforms import RandomScaleCrop, WholeImage
from torch.nn import functional
from training import memory, models, options
from training.batches import EvaluationBatches, TrainingBatches
from training.loop import train
from training.script import build, launch

#: The classes of the data sets, for --memory without one; of vistas-2.0 those that it ignores are included.
CLASSES = {"cityscapes": 19, "vistas": 65, "vistas-2.0": 124, "coco-stuff": 171}


def parse(arguments=None):
    """Return the options."""
    parser = options.parser(
        __doc__.splitlines()[0], model="deeplabv3_resnext101_64x4d", crop=512, batch_size=2, epochs=90,
        learning_rate=0.0025, schedule="poly",
    )  # fmt: skip
    group = parser.add_argument_group("images")
    group.add_argument("--dataset", choices=sorted(READERS), default="cityscapes")
    group.add_argument(
        "--scales", type=options.number(0), nargs=2, default=[0.5, 2.0], help="of training images"
    )
    group.add_argument(
        "--evaluation-side", type=options.at_least(1), help="shorter side of images for evaluation, resized"
    )
    group.add_argument("--backbone", type=Path, help="weights of a classifier, weights.pt of imagenet.py")
    chosen = options.parse(parser, arguments)
    if not 0 < chosen.scales[0] <= chosen.scales[1]:
        parser.error(f"--scales: expected a smaller and a larger number above 0, got {chosen.scales}")
    return chosen


def loss(result, labels):
    """Return the mean cross-entropy of the pixels that count; 0 if there are none."""
    total = 0
    for scores, weight in models.scores(result, labels.shape[-2:]):
        sums = functional.cross_entropy(scores.float(), labels, ignore_index=IGNORED, reduction="sum")
        total = total + weight * sums
    return total / (labels != IGNORED).sum().clamp_min(1)


@torch.no_grad()
def evaluate(model, batches, group, classes):
    """Return the mean intersection over union, of the classes that occur, and the share of right pixels."""
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=group.device)
    for images, labels in batches:
        scores, _ = models.scores(model(images), labels.shape[-2:])[0]
        counts += confusion(scores.argmax(1), labels, classes)
    counts = group.sum(counts).double()
    if not counts.sum():
        raise SystemExit("no pixel of the validation set has a class, or no file can be read")
    right, labelled, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    union = labelled + predicted - right
    return {
        "mean_iou": (right[union > 0] / union[union > 0]).mean().item(),
        "pixels": (right.sum() / counts.sum()).item(),
    }


def confusion(predicted, labels, classes):
    """Return the numbers of pixels by label (row) and prediction (column), without ignored ones."""
    counts = labels != IGNORED
    pairs = labels[counts] * classes + predicted[counts]
    return pairs.bincount(minlength=classes**2).reshape(classes, classes)


def run(chosen, group):
    """Train as the options say; return the scores of the last epoch, or None after --memory."""
    make = partial(models.segmenter, chosen.model, backbone_weights=chosen.backbone)
    if chosen.memory:
        return memory.report(chosen, group, partial(make, CLASSES[chosen.dataset]), loss, per_pixel=True)
    read = partial(READERS[chosen.dataset], chosen.data, skip_bad_files=chosen.skip_bad_files)
    training, validation = read("train"), read("val")
    problems = dict.fromkeys(training.problems + validation.problems)
    crop = RandomScaleCrop(chosen.crop, chosen.scales, chosen.mirror)
    batches = TrainingBatches(training, crop, chosen, group, problems)
    whole = WholeImage(chosen.evaluation_side)
    evaluation = EvaluationBatches(validation, whole, chosen, group, problems, batch_size=1)
    model = build(chosen, partial(make, training.classes)).to(group.device)
    score = partial(evaluate, batches=evaluation, group=group, classes=training.classes)
    return train(chosen, group, model, batches, score, loss)


def main(arguments=None):
    """Run the script with command-line arguments; return the scores of the last epoch."""
    return launch(parse(arguments), run)


if __name__ == "__main__":
    main()
