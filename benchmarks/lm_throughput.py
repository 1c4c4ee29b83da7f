"""Training tokens per second of the language-model recipe, against a bare PyTorch loop of the same model.

    python benchmarks/lm_throughput.py [--models small medium] [--steps 40] [--rounds 5] [--threads 2]

The bare loop is what one would write by hand: forward, loss, backward, clip, step, detach the state. The recipe's loop
does the same work and also checks for non-finite values, counts, logs and can resume. Its time runs from the first
minibatch to the last, all of that included. Both train on the same random tokens, in turns, and the ratios are taken
turn by turn. The last line is what bf16 autocast brings on the CPU.

Time on one machine with 2 cores: about 3 minutes for both models.
"""

import argparse
import contextlib
import io
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import Figures, asked, benchmark, in_turns, ratio
from torch import Tensor, nn

from seqssgd.data.text import TextDataset, columns, load_text, write_text_dataset
from seqssgd.language.config import Config
from seqssgd.language.networks import NETWORKS
from seqssgd.language.task import LanguageModelTask
from seqssgd.models.lstm import ZAREMBA, LSTMLanguageModel
from seqssgd.training import OptimConfig, RunDirectory, TrainingConfig, build_optimizer, fit

WINDOW = {"small": 20, "medium": 35, "large": 35}
CLIP = {"small": 5.0, "medium": 5.0, "large": 10.0}
VOCABULARY, BATCH = 10_000, 20


def random_text(folder: Path, tokens: int) -> TextDataset:
    """Prepared text of random words, all of the vocabulary among them."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(VOCABULARY - 1)]
    words += draw.choices(words, k=max(0, tokens - len(words)))
    lines = [" ".join(words[i : i + 20]) for i in range(0, len(words), 20)]
    write_text_dataset(folder, {"train": lines, "valid": lines[:50], "test": lines[:50]}, "random words")
    return load_text(folder)


class TimedTask(LanguageModelTask):
    """Notes when every minibatch is asked for."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.times: list[float] = []
        return asked(super().batches(epoch, start), self.times)


def recipe_rate(model: str, dataset: TextDataset, steps: int, precision: str, method: str, folder: Path) -> float:
    """Tokens per second of the recipe's own loop."""
    torch.manual_seed(0)
    noise = {"method": method, "noise": 0.7} if method == "ssgd" else {"method": method}
    optim, training = OptimConfig(lr=0.1, **noise), TrainingConfig(clip=CLIP[model], precision=precision)
    config = Config(NETWORKS.settings("lstm", **ZAREMBA[model]), optim, training, BATCH, WINDOW[model])
    network = LSTMLanguageModel(VOCABULARY, **ZAREMBA[model])
    task = TimedTask(network, dataset, config, torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=folder) as out, contextlib.redirect_stdout(io.StringIO()):
        fit(task, build_optimizer(network, optim), [], training, RunDirectory(out, config), max_steps=steps)
    return (steps - 1) * BATCH * WINDOW[model] / (task.times[steps - 1] - task.times[0])


def bare_rate(model: str, dataset: TextDataset, steps: int) -> float:
    """Tokens per second of a loop without anything around it."""
    torch.manual_seed(0)
    network, window = LSTMLanguageModel(VOCABULARY, **ZAREMBA[model]), WINDOW[model]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    data, state = columns(dataset.split("train"), BATCH), None
    network.train()
    for step in range(steps):
        if step == 1:  # as there, the first step is the warm-up
            start = time.perf_counter()
        inputs, targets = data[step * window : (step + 1) * window], data[step * window + 1 : (step + 1) * window + 1]
        logits, state = network(inputs, state)
        state = tuple(s.detach() for s in state)
        (F.cross_entropy(logits.flatten(0, 1), targets.flatten()) * window).backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP[model])
        optimizer.step()
        optimizer.zero_grad()
    return (steps - 1) * BATCH * window / (time.perf_counter() - start)


def measure(model: str, args: argparse.Namespace, folder: Path) -> Figures:
    steps = args.steps
    dataset = random_text(folder / model, (steps + 2) * BATCH * WINDOW[model])
    loops = {
        "bare": lambda: bare_rate(model, dataset, steps),
        "fp32": lambda: recipe_rate(model, dataset, steps, "fp32", "none", folder),
        "bf16": lambda: recipe_rate(model, dataset, steps, "bf16", "none", folder),
        "S-SGD": lambda: recipe_rate(model, dataset, steps, "fp32", "ssgd", folder),
    }
    rates = in_turns(loops, args.rounds)
    return {
        "tokens per second, bare loop": statistics.median(rates["bare"]),
        "tokens per second, recipe": statistics.median(rates["fp32"]),
        "recipe / bare loop": ratio(rates["fp32"], rates["bare"]),
        "recipe with S-SGD (two passes) / bare loop": ratio(rates["S-SGD"], rates["bare"]),
        "bf16 autocast / fp32, both the recipe": ratio(rates["bf16"], rates["fp32"]),
    }


if __name__ == "__main__":
    about = {name: f"batch {BATCH}, {time} steps of time, vocabulary {VOCABULARY:,}" for name, time in WINDOW.items()}
    benchmark(__doc__.splitlines()[0], about, measure, default=["small", "medium"])
