"""What symmetric noise costs beyond the passes themselves, and SAM beside it.

    python benchmarks/optimizer_overhead.py [--rounds 9] [--models lstm conv1d resnet20] [--threads 2]

For each model, ratios within one run (median, smallest and largest of the rounds):

- S-SGD step / (2 forward-backward + 1 step of the base optimizer), and the same for SAM of ``pytorch_optimizer``;
- a step with ``signs="halves"`` and ``"steps"``, which cost one pass, / a plain step of the base optimizer;
- memory beyond the plain step's, in copies of the weights (peak of a process of its own per method).

Time on one machine with 2 cores: about 8 minutes, most of it the LSTM (66 million parameters).
"""

import argparse
import contextlib
import gc
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import Figures, benchmark, interleaved, ratio
from torch import Tensor, nn

from seqssgd.models.lstm import ZAREMBA, LSTMLanguageModel
from seqssgd.optim import SymmetricNoise, noise_groups

MODELS: dict[str, Callable[[], tuple[nn.Module, Callable[..., Tensor], tuple[Tensor, ...], int]]] = {}


def model(function):
    """Registers a function that gives a model, its loss (of a minibatch), a minibatch and the examples' dimension."""
    MODELS[function.__name__] = function
    return function


def zaremba(size: str, steps: int):
    """One of Zaremba et al.'s models, batch 20, so many steps of time."""
    network = LSTMLanguageModel(10_000, **ZAREMBA[size])
    tokens = torch.randint(10_000, (steps + 1, 20))

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(network(inputs)[0].flatten(0, 1), targets.flatten()) * len(inputs)

    return network, loss, (tokens[:-1], tokens[1:]), 1


@model
def lstm():
    """The large model: 2 x 1500 units, 35 steps of time."""
    return zaremba("large", 35)


class GatedConv(nn.Module):
    """A gated linear unit and a depthwise convolution over time, as in acoustic models."""

    def __init__(self, inputs: int, width: int, kernel: int = 11):
        super().__init__()
        self.gated = nn.Conv1d(inputs, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise(F.glu(self.gated(x), dim=1))


@model
def conv1d():
    """12 gated 1-D convolution layers of 190 units with CTC: 16 utterances of 4 seconds, 40 characters each."""
    network = nn.Sequential(GatedConv(120, 190), *[GatedConv(190, 190) for _ in range(11)], nn.Conv1d(190, 31, 1))
    features, targets = torch.randn(16, 120, 400), torch.randint(1, 31, (16, 40))

    def loss(features: Tensor, targets: Tensor) -> Tensor:
        log_probs = network(features).permute(2, 0, 1).log_softmax(-1)
        lengths = torch.full((len(targets),), len(log_probs)), torch.full((len(targets),), targets.shape[1])
        return F.ctc_loss(log_probs, targets, *lengths)

    return network, loss, (features, targets), 0


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        stride = width // inputs
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.stride, self.missing = stride, width - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))
        return F.relu(y + shortcut)


@model
def resnet20():
    """The shape of a ResNet-20 for 32 x 32 images, batch 128."""
    blocks = [
        ResidualBlock(i, w) for i, w in ((16, 16),) * 3 + ((16, 32), (32, 32), (32, 32), (32, 64), (64, 64), (64, 64))
    ]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(images), labels)

    return network, loss, (images, labels), 0


def plain_step(network, loss, batch, dim) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)

    def step():
        loss(*batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def noisy_step(signs: str, seed: int):
    def build(network, loss, batch, dim) -> Callable[[], None]:
        optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(network, noise=0.5), lr=1e-4), signs=signs, seed=seed)

        def step():
            for part in optimizer.passes():
                loss(*part.take(*batch, dim=dim)).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return build


def sam_step(network, loss, batch, dim) -> Callable[[], None]:
    from pytorch_optimizer import SAM

    optimizer = SAM(network.parameters(), torch.optim.SGD, lr=1e-4, rho=0.05, foreach=True)

    def closure():
        optimizer.zero_grad()
        loss(*batch).backward()

    def step():
        closure()
        optimizer.step(closure)
        optimizer.zero_grad()

    return step


STEPS = {
    "plain": plain_step,
    "S-SGD": noisy_step("batch", seed=0),
    "SAM": sam_step,
    "halves": noisy_step("halves", seed=1),
    "steps": noisy_step("steps", seed=2),
}


def measure_time(name: str, rounds: int) -> Figures:
    torch.manual_seed(0)
    network, loss, batch, dim = MODELS[name]()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)

    def forward_backward():
        optimizer.zero_grad()
        loss(*batch).backward()

    functions = {"forward-backward": forward_backward, "base step": optimizer.step}
    functions |= {label: build(network, loss, batch, dim) for label, build in STEPS.items()}
    seconds = interleaved(functions, rounds if name == "lstm" else 4 * rounds)  # the others take a fifth of the time
    ideal = [2 * f + b for f, b in zip(seconds["forward-backward"], seconds["base step"], strict=True)]
    return {
        "S-SGD step / (2 forward-backward + base step)": ratio(seconds["S-SGD"], ideal),
        "SAM step / (2 forward-backward + base step)": ratio(seconds["SAM"], ideal),
        "halves step / plain step": ratio(seconds["halves"], seconds["plain"]),
        "steps step / plain step": ratio(seconds["steps"], seconds["plain"]),
        "seconds of a plain step": min(seconds["plain"]),
    }


def peak_memory(name: str, label: str, threads: int, answer) -> None:
    """Puts the peak memory of two steps, in bytes, into the queue ``answer``; called in a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network, loss, batch, dim = MODELS[name]()
    step = STEPS[label](network, loss, batch, dim)
    for _ in range(2):
        step()
        gc.collect()
    answer.put((peak_of_this_process(), sum(p.nbytes for p in network.parameters())))


def peak_of_this_process() -> int:
    """In bytes. On Linux getrusage would tell that of the process that started this one, if it is larger."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_memory(name: str, threads: int) -> dict[str, float]:
    """Memory beyond the plain step's, in copies of the weights."""
    context, peaks = multiprocessing.get_context("spawn"), {}
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "4194304"  # glibc gives a large tensor's memory back as soon as it is freed
    for label in STEPS:
        answer = context.Queue()
        process = context.Process(target=peak_memory, args=(name, label, threads, answer))
        process.start()
        peaks[label], weights = answer.get()
        process.join()
    return {label: (peak - peaks["plain"]) / weights for label, peak in peaks.items() if label != "plain"}


def measure(name: str, args: argparse.Namespace, folder: Path) -> Figures:
    figures = measure_time(name, args.rounds)
    if name == "lstm":  # the weights of the others are too small to see beside their activations
        figures["memory"] = measure_memory(name, args.threads)
    return figures


if __name__ == "__main__":
    about = {name: function.__doc__ for name, function in MODELS.items()}
    benchmark(__doc__.splitlines()[0], about, measure, rounds=9, steps=None)
