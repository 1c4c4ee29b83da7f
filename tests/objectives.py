"""Small losses whose matrices of second derivatives can be written out."""

import torch
import torch.nn.functional as F
from torch import nn

from seqssgd.landscape import Objective, ctc_loss
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.models.sgcn import SimpleGatedConvNet

LENGTHS, TARGET_LENGTHS = torch.tensor([7, 5, 6, 3, 3]), torch.tensor([3, 2, 1, 0, 2])
TARGETS = torch.tensor([[1, 1, 2], [3, 2, 9], [4, 9, 9], [9, 9, 9], [2, 2, 9]])  # 9: beyond the length
UTTERANCES = (LENGTHS, TARGETS.clamp_max(4), TARGET_LENGTHS)


def images(count):
    return torch.randn(count, 3, 6, 6, dtype=torch.double), torch.arange(count) % 3


class Cnn(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        )


def classification(model, sizes, make=images):
    model.double().train()
    batches = [make(size) for size in sizes]
    return Objective(model, batches, lambda b: model(b[0]), lambda z, b: F.cross_entropy(z, b[1], reduction="none"))


def rows(count):
    return torch.randn(count, 5, dtype=torch.double), torch.arange(count) % 3


def smooth(sizes=(7, 3)):
    return classification(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), sizes, rows)


def language(sizes=(3, 2)):
    model = LSTMLanguageModel(7, 4, 2, init_scale=0.7)

    def make(count):
        tokens = torch.randint(7, (6, count))
        return tokens[:-1], tokens[1:]

    model.double().train()
    return Objective(
        model,
        [make(size) for size in sizes],
        lambda b: model(b[0])[0].flatten(0, 1),
        lambda z, b: F.cross_entropy(z, b[1].flatten(), reduction="none"),
    )


def speech(loss=ctc_loss, front_end="stack"):
    model = SimpleGatedConvNet(6, 5, 4, 2, 3, front_end=front_end, subsampling=2).double()
    batch = (torch.randn(5, 14, 6, dtype=torch.double), 2 * LENGTHS, *UTTERANCES[1:])
    return Objective(
        model, [batch], lambda b: model(*b[:2])[0], lambda z, b: loss(z, -(-b[1] // 2), *b[2:]) / (b[3] + 1)
    )


def mean_loss(objective, flat):
    """L as a function of all weights in one vector: outputs of all batches by functional_call, one loss after all."""
    named = {name: p for name, p in objective.model.named_parameters() if p.requires_grad}
    pieces = flat.split([p.numel() for p in named.values()])
    weights = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
    terms = []
    for batch in objective.batches:
        with torch.nn.utils.stateless._reparametrize_module(objective.model, weights):
            terms.append(objective.losses(objective.outputs(batch), batch).flatten())
    return torch.cat(terms).mean()


def dense(objective):
    flat = torch.cat([p.detach().flatten() for p in objective.params])
    objective.model.eval()
    matrix = torch.autograd.functional.hessian(lambda w: mean_loss(objective, w), flat)
    objective.model.train()
    return matrix
