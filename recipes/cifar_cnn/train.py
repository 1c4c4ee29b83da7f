"""Trains image classifiers on CIFAR-10 and CIFAR-100, with or without symmetric weight noise.

    python data_prep/cifar.py --source cifar-10-python.tar.gz --out data/cifar10
    python recipes/cifar_cnn/train.py --config recipes/cifar_cnn/resnet20_cpu.yaml --data data/cifar10 --out runs/c10
    seqssgd evaluate --run runs/c10 --data data/cifar10 --split test

The README beside this file has times, results and settings.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
from seqssgd import training
from seqssgd.data.images import load_images
from seqssgd.images.config import Config
from seqssgd.images.finished import describe_images
from seqssgd.images.networks import build_classifier
from seqssgd.images.task import ImageTask


def main(argv: list[str] | None = None) -> int:
    """Trains as the command line says; returns the exit status."""
    command = training.parse_recipe(Config, argv, description=__doc__.splitlines()[0])
    config = command.config
    dataset = load_images(command.data)
    device = training.setup(config.training, config.seed)
    model = build_classifier(config.model, len(dataset.classes)).to(device)
    about = {"recipe": "cifar_cnn", "data": describe_images(dataset)}
    task = ImageTask(model, dataset, config, device)

    def begin(_: object) -> None:
        parameters = sum(p.numel() for p in model.parameters())
        counts = f"{len(task.train.labels):,} training and {len(task.valid.labels):,} validation images"
        training.say(f"{dataset.info['name']}: {counts}; {config.model.name}, {parameters:,} parameters")

    return training.train(command, task, about, begin)


if __name__ == "__main__":
    training.run_program(main)
