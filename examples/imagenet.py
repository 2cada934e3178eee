"""Train an image classifier in place, on ImageNet or any data set with a folder per class.

    torchrun --nproc-per-node 8 examples/imagenet.py IMAGENET --model resnext101_64x4d --activation leaky_relu

The same command continues a run that was killed. examples/README.md has commands and the paper's results.
"""

from functools import partial

import torch
from data.folders import ClassFolders
from data.transforms import CenterCrop, RandomCrop
from torch.nn import functional
from training import memory, models, options
from training.batches import EvaluationBatches, TrainingBatches
from training.loop import train
from training.script import build, launch


def parse(arguments=None):
    """Return the options."""
    parser = options.parser(
        __doc__.splitlines()[0], model="resnet50", crop=224, batch_size=32, epochs=90, learning_rate=0.1,
        schedule="step",
    )  # fmt: skip
    group = parser.add_argument_group("images")
    group.add_argument(
        "--resize", type=options.at_least(1), default=256, help="shorter side of images for evaluation"
    )
    group.add_argument(
        "--evaluation-crop", type=options.at_least(1), default=224, help="their part in the middle"
    )
    group.add_argument(
        "--smallest-crop", type=options.number(0, 1), default=0.08, help="share of the area, for training"
    )
    group.add_argument(
        "--jitter", type=options.number(0, 1), default=0.4, help="strength of random changes of colors"
    )
    chosen = options.parse(parser, arguments)
    if chosen.evaluation_crop > chosen.resize:
        parser.error(f"--evaluation-crop {chosen.evaluation_crop} is larger than --resize {chosen.resize}")
    return chosen


def loss(scores, labels):
    """Return the mean cross-entropy of a batch."""
    return functional.cross_entropy(scores.float(), labels)


@torch.no_grad()
def evaluate(model, batches, group):
    """Return the shares of images whose class has the highest score, and one of the five highest."""
    counts = torch.zeros(3, dtype=torch.float64, device=group.device)
    for images, labels in batches:
        scores = model(images)
        best = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]
        counts += torch.stack([best[:, 0].sum(), best.sum(), torch.tensor(len(labels), device=group.device)])
    first, fifth, total = group.sum(counts).tolist()
    if not total:
        raise SystemExit("no image of the validation set can be read")
    return {"top1": first / total, "top5": fifth / total}


def run(chosen, group):
    """Train as the options say; return the scores of the last epoch, or None after --memory."""
    make = partial(models.classifier, chosen.model)
    if chosen.memory:
        return memory.report(chosen, group, partial(make, 1000), loss, per_pixel=False)
    training = ClassFolders(chosen.data / "train")
    validation = ClassFolders(chosen.data / "val", training.classes)
    problems = {}
    crop = RandomCrop(chosen.crop, chosen.smallest_crop, chosen.jitter, chosen.mirror)
    batches = TrainingBatches(training, crop, chosen, group, problems)
    crop = CenterCrop(chosen.evaluation_crop, chosen.resize)
    evaluation = EvaluationBatches(validation, crop, chosen, group, problems, chosen.batch_size)
    model = build(chosen, partial(make, len(training.classes))).to(group.device)
    return train(chosen, group, model, batches, partial(evaluate, batches=evaluation, group=group), loss)


def main(arguments=None):
    """Run the script with command-line arguments; return the scores of the last epoch."""
    return launch(parse(arguments), run)


if __name__ == "__main__":
    main()
