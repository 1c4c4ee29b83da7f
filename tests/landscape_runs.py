"""Tiny finished runs to look at the landscapes of."""

from pathlib import Path

import pytest
import torch
from programs import ROOT, coloured_images, generated_lines, load

TINY = ["--model.hidden_size", 8, "--batch_size", 4, "--sequence_length", 6, "--max-steps", 12]


def train(program: str, config: str, data: Path, out: Path, *options: object) -> Path:
    """A run of a recipe for one epoch."""
    main = load(f"recipes/{program}/train.py").main
    words = ["--config", ROOT / f"recipes/{program}/{config}.yaml", "--data", data, "--out", out, *options]
    words += ["--training.threads", 1, "--training.epochs", 1]
    with pytest.MonkeyPatch.context() as patch:  # what a process would find in sys.argv
        patch.setattr("sys.argv", ["train.py", *map(str, words)])
        torch.set_num_threads(1)
        assert main() == 0
    return out


def text(out: Path) -> Path:
    """Prepared lines of few words."""
    words = []
    for split, count in (("train", 200), ("valid", 40), ("test", 40)):
        file = out.parent / f"{split}.txt"
        file.write_text("\n".join(generated_lines(count)) + "\n")
        words += [f"--{split}", str(file)]
    load("data_prep/text.py").main([*words, "--out", str(out)])
    return out


def classifier(folder: Path) -> Path:
    """A run on coloured images."""
    tiny = ["--corpus.valid", 10, "--corpus.pad", 1, "--batch_size", 10, "--bn_images", 20]
    tiny += ["--training.precision", "fp32", "--max-steps", 3]
    return train("cifar_cnn", "resnet20_cpu", coloured_images(folder / "data"), folder / "run", *tiny)
