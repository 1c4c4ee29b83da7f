"""Training tokens per second of the language-model recipe, against two other loops over the same network.

    python benchmarks/lm_throughput.py [--models small medium] [--steps 40] [--rounds 5] [--threads 2]

The bare loop is what one would write by hand: forward, loss, backward, clip, step, detach the state. The example's does
what ``word_language_model`` of pytorch/examples does, on a network of the same sizes: log-softmax as a part of it,
dropout of 0, the negative log-likelihood, clipping, a step written out, the loss read at every step. The recipe's loop
does the same work and also checks for non-finite values, counts, logs and can resume. Its time runs from the first
minibatch to the last, all of that included.

A recipe keeps freed memory for the next step (``seqssgd/training/memory.py``), which is what puts it before the others;
the bare loop is also timed with that. All train on the same random tokens, in turns, each in a process of its own, and
ratios are taken turn by turn. With one thread the time is the processor's, with more the clock's. The last line is what
bf16 autocast brings on the CPU, where it has an LSTM in bf16.

Time on one machine with 2 cores: about 6 minutes for both models.
"""

import argparse
import contextlib
import io
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import Figures, apart, asked, benchmark, in_turns, ratio, spent
from torch import Tensor, nn

from seqssgd.data.text import TextDataset, columns, load_text, write_text_dataset
from seqssgd.errors import UserError
from seqssgd.language.config import Config
from seqssgd.language.networks import NETWORKS
from seqssgd.language.task import LanguageModelTask
from seqssgd.models.lstm import ZAREMBA, LSTMLanguageModel
from seqssgd.training import OptimConfig, RunDirectory, TrainingConfig, build_optimizer, fit, setup
from seqssgd.training.memory import keep_freed_memory
from seqssgd.training.precision import check_precision

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


def recipe(model: str, dataset: TextDataset, steps: int, threads: int, precision: str, method: str) -> float:
    """Seconds of the recipe's own loop."""
    noise = {"method": method, "noise": 0.7} if method == "ssgd" else {"method": method}
    optim = OptimConfig(lr=0.1, **noise)
    training = TrainingConfig(clip=CLIP[model], precision=precision, threads=threads, device="cpu")
    config = Config(NETWORKS.settings("lstm", **ZAREMBA[model]), optim, training, BATCH, WINDOW[model])
    device = setup(training, 0)
    network = LSTMLanguageModel(VOCABULARY, **ZAREMBA[model])
    check_precision(network, training)
    task = TimedTask(network, dataset, config, device)
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        fit(task, build_optimizer(network, optim), [], training, RunDirectory(out, config), max_steps=steps)
    return task.times[steps - 1] - task.times[0]


def bare(model: str, dataset: TextDataset, steps: int, threads: int) -> float:
    """Seconds of a loop without anything around it."""
    torch.manual_seed(0)
    network, window = LSTMLanguageModel(VOCABULARY, **ZAREMBA[model]), WINDOW[model]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    data, state = columns(dataset.split("train"), BATCH), None
    network.train()
    for step in range(steps):
        if step == 1:  # as there, the first step is the warm-up
            start = spent(threads)
        inputs, targets = data[step * window : (step + 1) * window], data[step * window + 1 : (step + 1) * window + 1]
        logits, state = network(inputs, state)
        state = tuple(s.detach() for s in state)
        (F.cross_entropy(logits.flatten(0, 1), targets.flatten()) * window).backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP[model])
        optimizer.step()
        optimizer.zero_grad()
    return spent(threads) - start


class ExampleNetwork(nn.Module):
    """The network of the example: its output is log-probabilities, one row for each token."""

    def __init__(self, size: int, layers: int):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(VOCABULARY, size), nn.Dropout(0.0)
        self.lstm, self.output = nn.LSTM(size, size, layers), nn.Linear(size, VOCABULARY)

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return F.log_softmax(self.output(self.dropout(hidden)).flatten(0, 1), dim=1), state


def example(model: str, dataset: TextDataset, steps: int, threads: int) -> float:
    """Seconds of a loop that does what the example does."""
    torch.manual_seed(0)
    size, layers, window = int(ZAREMBA[model]["hidden_size"]), int(ZAREMBA[model]["num_layers"]), WINDOW[model]
    network, total = ExampleNetwork(size, layers), 0.0
    data, loss_fn = columns(dataset.split("train"), BATCH), nn.NLLLoss()
    state = torch.zeros(layers, BATCH, size), torch.zeros(layers, BATCH, size)
    network.train()
    for step in range(steps):
        if step == 1:
            start = spent(threads)
        inputs, targets = data[step * window : (step + 1) * window], data[step * window + 1 : (step + 1) * window + 1]
        network.zero_grad()
        state = (state[0].detach(), state[1].detach())
        log_probabilities, state = network(inputs, state)
        loss = loss_fn(log_probabilities, targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP[model])
        for p in network.parameters():
            if p.grad is not None:
                p.data.add_(p.grad, alpha=-0.1)
        total += loss.item()
    return spent(threads) - start


def kept(*args) -> float:
    """Seconds of the bare loop where freed memory stays with the process, as in a recipe's."""
    keep_freed_memory()
    return bare(*args)


LOOPS = {
    "bare": bare,
    "kept": kept,
    "example": example,
    "fp32": lambda *args: recipe(*args, "fp32", "none"),
    "bf16": lambda *args: recipe(*args, "bf16", "none"),
    "S-SGD": lambda *args: recipe(*args, "fp32", "ssgd"),
}


def rate(loop: str, model: str, args: argparse.Namespace, folder: Path) -> float:
    """Tokens per second of a loop in a process of its own; 0 if the machine has nothing to run it with."""
    seconds = apart(__file__, loop, model, args.steps, args.threads, folder)
    return (args.steps - 1) * BATCH * WINDOW[model] / seconds


def one(loop: str, model: str, steps: str, threads: str, folder: str) -> None:
    """Prints the seconds of a loop: the program of such a process."""
    torch.set_num_threads(int(threads))
    try:
        print(LOOPS[loop](model, load_text(folder), int(steps), int(threads)))
    except UserError:  # no LSTM in bf16
        print("inf")


def measure(model: str, args: argparse.Namespace, folder: Path) -> Figures:
    random_text(folder / model, (args.steps + 2) * BATCH * WINDOW[model])
    rates = in_turns({loop: lambda loop=loop: rate(loop, model, args, folder / model) for loop in LOOPS}, args.rounds)
    figures: Figures = {
        "tokens per second, bare loop": statistics.median(rates["bare"]),
        "tokens per second, recipe": statistics.median(rates["fp32"]),
        "recipe / bare loop": ratio(rates["fp32"], rates["bare"]),
        "recipe / bare loop that keeps freed memory": ratio(rates["fp32"], rates["kept"]),
        "recipe / pytorch/examples": ratio(rates["fp32"], rates["example"]),
        "recipe with S-SGD (two passes) / bare loop": ratio(rates["S-SGD"], rates["bare"]),
    }
    if all(rates["bf16"]):
        figures["bf16 autocast / fp32, both the recipe"] = ratio(rates["bf16"], rates["fp32"])
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
        sys.exit()
    about = {name: f"batch {BATCH}, {time} steps of time, vocabulary {VOCABULARY:,}" for name, time in WINDOW.items()}
    benchmark(__doc__.splitlines()[0], about, measure, default=["small", "medium"])
