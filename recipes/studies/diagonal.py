"""How good are the estimates of the Hessian's diagonal that noisy passes give away, by method, level and β₂?

    python recipes/studies/diagonal.py [--draws 300] [--networks lstm ctc resnet8] [--json FILE]

On networks so small that the exact diagonal can be had, product by product: a character LSTM, a gated convolutional
network with CTC, a ResNet-8 (batch norm as in evaluation), each on data made up for it and trained for a while. At the
trained weights, which stay where they are, perturbations of level c give estimates, each from the passes of one step:

- one: n∘g(w+n), one pass; two: the mean of two such with n of their own, two passes;
- batch: ½(n∘g(w+n) - n∘g(w-n)) on one minibatch, two passes; halves: on a half of it each, one pass;
- steps: on a minibatch each, one pass in each of two steps.

All over the mean square of n in the tensor. Printed is ‖error‖/‖diagonal‖, over the weights that training perturbs: of
the mean of all draws (bias: what no average takes away), of a single estimate, and of running means with β₂, whose
variance is (1-β₂)/(1+β₂) of one estimate's; by weight, and averaged over rows (of matrices; filters of convolutions).
β₂ acts once an estimate, as in IVON: with steps that is every second step.

On one core: about five minutes.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqssgd.errors import UserError, run_cli
from seqssgd.files import atomic_path, make_folder
from seqssgd.landscape.ctc import ctc_loss
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.models.resnet import BasicBlock, ResNet
from seqssgd.models.sgcn import SGCNBlock
from seqssgd.optim import noise_groups

LEVELS, BETAS, EXAMPLES, BATCH = (0.03, 0.1, 0.3), (0.99, 0.999, 0.99999), 128, 16
METHODS = ("one", "two", "batch", "halves", "steps")


class Subject(NamedTuple):
    """A network, its loss of the examples with given numbers, and the weights that noise moves."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]
    weights: list[Tensor]


def subject(model: nn.Module, loss: Callable[[Tensor], Tensor], steps: int = 150) -> Subject:
    """Trains ``model`` for a while."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        loss(torch.arange(BATCH) + BATCH * step % EXAMPLES).backward()
        optimizer.step()
    model.eval()
    return Subject(model, loss, [p for group in noise_groups(model, 0.1) if group["noise"] for p in group["params"]])


def lstm() -> Subject:
    """6 units, 8 characters of a random Markov chain."""
    likely = torch.rand(8, 8).pow(4)
    rows = [torch.randint(8, (EXAMPLES,))]
    for _ in range(12):
        rows.append(torch.multinomial(likely[rows[-1]], 1).squeeze(1))
    text = torch.stack(rows)  # (13, examples)
    model = LSTMLanguageModel(8, 6, 1).double()

    def loss(examples: Tensor) -> Tensor:
        logits = model(text[:-1, examples])[0]
        return nn.functional.cross_entropy(logits.flatten(0, 1), text[1:, examples].flatten())

    return subject(model, loss)


def ctc() -> Subject:
    """Two gated blocks of width 6, 4 labels: each label three frames long, with noise."""
    labels = torch.randint(1, 5, (EXAMPLES, 4))
    frames = nn.functional.one_hot(labels, 5).double().repeat_interleave(3, dim=1)
    frames = frames + 0.3 * torch.randn(frames.shape, dtype=torch.double)
    blocks = nn.ModuleList([SGCNBlock(5, 6, 3), SGCNBlock(6, 6, 3)])
    model = nn.ModuleDict({"blocks": blocks, "out": nn.Linear(6, 5)}).double()

    def loss(examples: Tensor) -> Tensor:
        x, count = frames[examples], len(examples)
        lengths = torch.full((count,), x.shape[1])
        mask = torch.ones(*x.shape[:2], 1, dtype=torch.double)
        for block in blocks:
            x = block(x, mask)
        losses = ctc_loss(model["out"](x), lengths, labels[examples], torch.full((count,), 4))
        return losses.mean()

    return subject(model, loss)


def resnet8() -> Subject:
    """2, 4 and 8 channels; images of 8 × 8 of three classes, stripes of three directions with noise."""
    classes = torch.arange(EXAMPLES) % 3
    rows, columns = torch.arange(8)[:, None], torch.arange(8)[None, :]
    stripes = torch.stack([rows + 0 * columns, columns + 0 * rows, rows + columns]).double().sin()
    images = stripes[classes][:, None] + 0.7 * torch.randn(EXAMPLES, 3, 8, 8, dtype=torch.double)
    model = ResNet(BasicBlock, (1, 1, 1), 3, width=2, imagenet=False).double()
    return subject(model, lambda examples: nn.functional.cross_entropy(model(images[examples]), classes[examples]))


NETWORKS = {"lstm": lstm, "ctc": ctc, "resnet8": resnet8}


def exact_diagonal(this: Subject) -> list[Tensor]:
    """Of the Hessian of the mean loss over all examples: a product with every unit vector."""
    gradients = torch.autograd.grad(this.loss(torch.arange(EXAMPLES)), this.weights, create_graph=True)
    found = []
    for w, g in zip(this.weights, gradients, strict=True):
        rows = [torch.autograd.grad(entry, w, retain_graph=True)[0].flatten()[i] for i, entry in enumerate(g.flatten())]
        found.append(torch.stack(rows).view_as(w))
    return found


def gradient(this: Subject, noise: list[Tensor], sign: int, examples: Tensor) -> list[Tensor]:
    """At w + sign·n; the weights are brought back."""
    before = [w.detach().clone() for w in this.weights]
    with torch.no_grad():
        for w, n in zip(this.weights, noise, strict=True):
            w.add_(n, alpha=sign)
    found = torch.autograd.grad(this.loss(examples), this.weights)
    with torch.no_grad():
        for w, saved in zip(this.weights, before, strict=True):
            w.copy_(saved)
    return list(found)


def estimates(this: Subject, level: float) -> dict[str, list[Tensor]]:
    """One of each method, all of the same first n and minibatch."""

    def noise() -> list[Tensor]:
        z = [torch.randn_like(w) for w in this.weights]
        return [e * (level * w.detach().norm() / e.norm()) for e, w in zip(z, this.weights, strict=True)]

    n, other = noise(), noise()
    first, second = torch.randperm(EXAMPLES)[: 2 * BATCH].view(2, BATCH)
    plus, minus = gradient(this, n, +1, first), gradient(this, n, -1, first)
    parts = gradient(this, n, +1, first[: BATCH // 2]), gradient(this, n, -1, first[BATCH // 2 :])
    later, independent = gradient(this, n, -1, second), gradient(this, other, +1, first)

    def over(n: list[Tensor], products: list[Tensor]) -> list[Tensor]:
        return [product / e.square().mean() for e, product in zip(n, products, strict=True)]

    def pair(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        return over(n, [e * (x - y) / 2 for e, x, y in zip(n, a, b, strict=True)])

    one = over(n, [e * g for e, g in zip(n, plus, strict=True)])
    more = over(other, [e * g for e, g in zip(other, independent, strict=True)])
    two = [(x + y) / 2 for x, y in zip(one, more, strict=True)]
    return {"one": one, "two": two, "batch": pair(plus, minus), "halves": pair(*parts), "steps": pair(plus, later)}


def by_row(tensors: list[Tensor]) -> Tensor:
    """The means of the rows, each as often as it has weights."""
    return torch.cat([t.flatten(1).mean(1, keepdim=True).expand(-1, t[0].numel()).flatten() for t in tensors])


def by_weight(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def errors(rows: Tensor, exact: Tensor) -> dict[str, float]:
    """From estimates (draws, weights): relative errors. The mean's own spread is taken out of the bias."""
    size, variance = exact.square().sum(), rows.var(0).sum()
    bias = ((rows.mean(0) - exact).square().sum() - variance / len(rows)).clamp_min(0)
    found = {"bias": bias, "one estimate": bias + variance}
    for beta in BETAS:
        found[f"β₂ {beta:g}"] = bias + variance * (1 - beta) / (1 + beta)
    return {name: math.sqrt(value / size) for name, value in found.items()}


def study(name: str, draws: int, levels: tuple[float, ...] = LEVELS) -> dict[str, dict[str, dict[str, float]]]:
    """Relative errors by kind of average, then by level and method."""
    torch.manual_seed(0)
    this = NETWORKS[name]()
    exact = exact_diagonal(this)
    found: dict[str, dict[str, dict[str, float]]] = {"weight": {}, "row": {}}
    for level in levels:
        drawn = [estimates(this, level) for _ in range(draws)]
        for kind, average in (("weight", by_weight), ("row", by_row)):
            for method in METHODS:
                rows = torch.stack([average(each[method]) for each in drawn])
                found[kind][f"{level:g} {method}"] = errors(rows, average(exact))
    return found


def markdown(figures: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Tables of what :func:`study` found of some networks: a row for each level and method, by weight and by row."""
    shown, lines = ["bias", "one estimate", *(f"β₂ {beta:g}" for beta in BETAS)], []
    for name, kinds in figures.items():
        columns = [f"{column}, by {kind}" for kind in kinds for column in shown]
        lines += ["", f"{name}:", "", f"| c, method | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
        for row in kinds["weight"]:
            cells = [f"{kinds[kind][row][column]:.2g}" for kind in kinds for column in shown]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--draws", type=int, default=300, help="estimates of each kind (default 300)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args(argv)
    if args.draws < 2:
        raise UserError(f"--draws {args.draws}: it must be at least 2, which have a spread")
    if args.json:
        make_folder(args.json.parent)
    figures = {}
    for name in args.networks:
        figures[name] = study(name, args.draws)
        print(markdown({name: figures[name]}) + "\n", flush=True)
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
