"""A regression small enough to check by hand, for the tests of the passes."""

import torch
from torch import nn

from seqssgd.optim import SymmetricNoise, noise_groups


def regression(noise=0.5, base=torch.optim.SGD, **options):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, SymmetricNoise(base(noise_groups(model, noise=noise), lr=0.1), **options)


X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.ones(6, 2)


def loss_of(model, x=X, y=Y):
    return nn.functional.mse_loss(model(x), y)


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]
