"""Trains ResNets on ImageNet, or on any images by class, with or without symmetric weight noise.

    python data_prep/imagenet.py --source /corpora/imagenet --out data/imagenet --jobs 8
    python recipes/imagenet_resnet/train.py --config recipes/imagenet_resnet/resnet50.yaml --data data/imagenet \\
        --out runs/r50
    seqssgd evaluate --run runs/r50 --data data/imagenet

The README beside this file has settings and what they cost.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
from seqssgd import training
from seqssgd.data.encoded_images import load_encoded
from seqssgd.images.config import EncodedConfig as Config
from seqssgd.images.finished import describe_images
from seqssgd.images.networks import build_classifier
from seqssgd.images.task import ImageNetTask


def main(argv: list[str] | None = None) -> int:
    """Trains as the command line says; returns the exit status."""
    command = training.parse_recipe(Config, argv, description=__doc__.splitlines()[0])
    config = command.config
    dataset = load_encoded(command.data)
    device = training.setup(config.training, config.seed)
    model = build_classifier(config.model, len(dataset.classes)).to(device)
    about = {"recipe": "imagenet_resnet", "data": describe_images(dataset)}
    task = ImageNetTask(model, dataset, config, device)

    def begin(_: object) -> None:
        parameters = sum(p.numel() for p in model.parameters())
        counts = f"{len(task.train.labels):,} training and {len(task.valid.labels):,} validation images"
        training.say(f"{dataset.info['name']}: {counts}; {config.model.name}, {parameters:,} parameters")

    return training.train(command, task, about, begin)


if __name__ == "__main__":
    training.run_program(main)
