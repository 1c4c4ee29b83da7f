"""What is trained in the campaign: every recipe with every method, tiny, and the runner of studies."""

import dataclasses
import random
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from picture_folders import prepared_tree
from programs import ROOT, coloured_images, generated_lines, load, outcome

from seqssgd.data.text import write_text_dataset
from seqssgd.errors import run_cli
from seqssgd.training.methods import METHODS

from .processes import child

# What a method needs beside its name to do something in a tiny training.
NEEDS = {"ivon": ["--optim.ess", 100], "msam": ["--optim.rho", 0.1]}
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
        *("--training.epochs", 1),
        *("--optim.lr", 0.01, "--optim.lr_warmup", 1, "--optim.lr_milestones", "[]"),
    ],
}


@dataclasses.dataclass(frozen=True)
class Training:
    """A command that trains into a folder, and that goes on where it was left.

    Attributes:
        name: the recipe's and the method's, or ``studies``.
        program: from the repository's root.
        arguments: in which ``OUT`` stands for the folder.
    """

    name: str
    program: str
    arguments: tuple[str, ...]

    def run(self, out: Path) -> int:
        """Trains in this process; returns the exit status that the command would have."""
        return run_cli(lambda: load(self.program).main(self._words(out)))

    def command(self, out: Path) -> list[str]:
        return [sys.executable, str(ROOT / self.program), *self._words(out)]

    def until(self, step: int) -> "Training":
        """The training up to a step."""
        return dataclasses.replace(self, arguments=(*self.arguments, "--max-steps", str(step)))

    def _words(self, out: Path) -> list[str]:
        return [word.replace("OUT", str(out)) for word in self.arguments]


def result_of(out: Path) -> list:
    """All that is left of a training, or of a study's, apart from times, and from checkpoints before the last: a signal
    saves one where it hits."""
    found = []
    for run in sorted(path.parent for path in out.rglob("result.json")):
        rows, states, result = outcome(run)
        last = max((name for name in states if name.startswith("step-")), default=None)
        kept = {name: state for name, state in states.items() if name in ("best.pt", last)}
        found.append((str(run.relative_to(out)), [rows, kept, result]))
    return found


class Trainings:
    """Data for the recipes, made once in ``folder``, and all trainings on them by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def text(self) -> Path:
        sizes = {"train": 120, "valid": 30, "test": 25}
        lines = {name: generated_lines(size, seed=size) for name, size in sizes.items()}
        return self.made("text", lambda out: write_text_dataset(out, lines, "words"))

    @cached_property
    def images(self) -> Path:
        return self.made("images", coloured_images)

    @cached_property
    def speech(self) -> Path:
        import tones

        return self.made("speech", lambda out: tones.prepare(out, sizes={"train": 16, "valid": 4, "test": 4}))

    @cached_property
    def photos(self) -> Path:
        return self.made("photos", lambda out: (out.mkdir(), prepared_tree(out))) / "out"

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        """A folder that is made in another process: packages that write data leave threads behind."""
        out, log = self.folder / name, self.folder / "log"
        if not out.exists():
            with child(lambda: 0 * bool(make(out)), log) as process:
                if process.wait(300) != 0:
                    raise RuntimeError(f"{name} cannot be made: {log.read_text()}")
        return out

    def recipe(self, recipe: str, method: str, *more: object) -> Training:
        data = dict(zip(RECIPES, ("text", "images", "speech", "photos"), strict=True))[recipe]
        file = ROOT / "recipes" / recipe / RECIPES[recipe]
        words = ["--config", file, "--data", getattr(self, data), "--out", "OUT", "--training.epochs", 2, *TINY[recipe]]
        words += ["--training.threads", 1, "--training.precision", "fp32"]
        words += ["--training.log_every", 2, "--training.checkpoint_every", 3, "--optim.method", method, *more]
        words += ["--optim.noise", 0.2 if "noise" in METHODS[method].settings else 0, *NEEDS.get(method, [])]
        if (recipe, method) == ("ptb_lstm", "msam"):  # whose file has no momentum to move along
            words += ["--optim.momentum", 0.9]
        name = f"{recipe} {method}"
        return Training(name, f"recipes/{recipe}/train.py", tuple(map(str, words)))

    def study(self) -> Training:
        words = ["--study", "price", "--recipe", "ptb", "--data", self.text, "--out", "OUT", "--"]
        words += [*TINY["ptb_lstm"][:2], "--batch_size", 4, "--sequence_length", 24, "--training.threads", 1]
        words += ["--training.epochs", 4, "--training.checkpoint_every", 3, "--training.precision", "fp32"]
        return Training("studies", "recipes/studies/run.py", tuple(map(str, words)))

    def any(self, chance: random.Random) -> Training:
        """One of all, evenly over methods and over recipes, but that ImageNet's large network and the runner of studies
        are rare."""
        if chance.random() < 0.03:
            return self.study()
        return self.recipe(*chance.choices(list(RECIPES), (20, 20, 20, 1)), chance.choice(list(METHODS)))
