"""What is trained in the campaign: every recipe with every method, tiny, and the runner of studies."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from picture_folders import prepared_tree
from programs import ROOT, coloured_images, generated_lines, load, outcome

from seqssgd.data.text import write_text_dataset
from seqssgd.errors import run_cli
from seqssgd.training.methods import METHODS

# What a method needs beside its name to do something in a tiny training.
NEEDS = {"ivon": ["--optim.ess", 100], "msam": ["--optim.rho", 0.1, "--optim.momentum", 0.9]}
RECIPES = {
    "ptb_lstm": "small_cpu.yaml",
    "cifar_cnn": "resnet20_cpu.yaml",
    "wsj_sgcn": "an4_ssgd.yaml",
    "imagenet_resnet": "resnet18.yaml",
}
TINY = {
    "ptb_lstm": ["--model.hidden_size", 6, "--model.dropout", 0.3, "--batch_size", 4, "--sequence_length", 8],
    "cifar_cnn": ["--corpus.valid", 12, "--corpus.pad", 1, "--batch_size", 16, "--bn_images", 20],
    "wsj_sgcn": [
        *("--model.network.width", 12, "--model.network.layers", 2, "--model.features.bins", 24),
        *("--model.network.front_end", "stack", "--model.network.dropout", 0.1, "--corpus.batch_seconds", 8),
        *("--augment.time_width", 5, "--augment.frequency_width", 3, "--optim.lr", 0.01),
    ],
    "imagenet_resnet": [
        *("--corpus.size", 16, "--batch_size", 8, "--training.accumulate", 1, "--bn_images", 16),
        *("--optim.lr", 0.01, "--optim.lr_warmup", 1, "--optim.lr_milestones", "[1]"),
    ],
}


@dataclass(frozen=True)
class Training:
    """A command that trains into a folder, and that goes on where it was left."""

    name: str
    main: Callable[[list[str]], int | None]
    arguments: tuple[str, ...]

    def run(self, out: Path) -> int:
        return run_cli(lambda: self.main([word.replace("OUT", str(out)) for word in self.arguments]))


def result_of(out: Path) -> list:
    """All that is left of a training, or of a study's, apart from times."""
    runs = sorted(path.parent for path in out.rglob("result.json"))
    return [(str(run.relative_to(out)), outcome(run)) for run in runs]


class Trainings:
    """Data for the recipes, made once in ``folder``, and all trainings on them by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def text(self) -> Path:
        out = self.folder / "text"
        sizes = {"train": 120, "valid": 30, "test": 25}
        write_text_dataset(out, {name: generated_lines(size, seed=size) for name, size in sizes.items()}, "words")
        return out

    @cached_property
    def images(self) -> Path:
        out = self.folder / "images"
        return out if out.exists() else coloured_images(out)

    @cached_property
    def speech(self) -> Path:
        import tones

        return tones.prepare(self.folder / "speech", sizes={"train": 16, "valid": 4, "test": 4})

    @cached_property
    def photos(self) -> Path:
        folder = self.folder / "photos"
        if not (folder / "out").exists():
            folder.mkdir()
            prepared_tree(folder)
        return folder / "out"

    def recipe(self, recipe: str, method: str, *more: object) -> Training:
        data = dict(zip(RECIPES, ("text", "images", "speech", "photos"), strict=True))[recipe]
        file = ROOT / "recipes" / recipe / RECIPES[recipe]
        words = ["--config", file, "--data", getattr(self, data), "--out", "OUT", *TINY[recipe]]
        words += ["--training.threads", 1, "--training.precision", "fp32", "--training.epochs", 2]
        words += ["--training.log_every", 2, "--training.checkpoint_every", 3, "--optim.method", method, *more]
        words += ["--optim.noise", 0.2 if "noise" in METHODS[method].settings else 0, *NEEDS.get(method, [])]
        name = f"{recipe} {method}"
        return Training(name, load(f"recipes/{recipe}/train.py").main, tuple(map(str, words)))

    def study(self) -> Training:
        words = ["--study", "price", "--recipe", "ptb", "--data", self.text, "--out", "OUT", "--"]
        words += [*TINY["ptb_lstm"][:2], "--batch_size", 4, "--sequence_length", 24, "--training.threads", 1]
        words += ["--training.epochs", 4, "--training.checkpoint_every", 3, "--training.precision", "fp32"]
        return Training("studies", load("recipes/studies/run.py").main, tuple(map(str, words)))

    def any(self, chance: random.Random) -> Training:
        """One of all, evenly over methods and, but for ImageNet's large network, over recipes; the runner of studies is
        as likely as a recipe in ten."""
        if chance.random() < 0.03:
            return self.study()
        return self.recipe(*chance.choices(list(RECIPES), (10, 10, 10, 1)), chance.choice(list(METHODS)))
