"""What two data-parallel ranks share: a model, its minibatches, and what must be the same on both."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from seqssgd.optim import SAM, SymmetricNoise, noise_groups

WORLD = 2


class Model(nn.Module):
    """Layers whose first dimension two ranks cannot share out evenly; the last has a row for one of them only."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 5)
        self.norm = nn.LayerNorm(5)
        self.hidden = nn.Linear(5, 3)
        self.out = nn.Linear(3, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(self.norm(self.rnn(x.transpose(0, 1))[0]))))


def make_model():
    torch.manual_seed(3)
    return Model().double()


def make_optimizer(model, **options):
    return SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=0.5), lr=0.01), model=model, **options)


def minibatches(count=3, size=6):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, size, 4, 3, dtype=torch.float64, generator=generator)


def mine(batch):
    return batch[dist.get_rank() :: WORLD]


def loss_fn(model, x):
    return model(x).sub(1).square().mean()


def full(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def assert_same_on_every_rank(tensors):
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    everyones = [torch.empty_like(flat) for _ in range(WORLD)]
    dist.all_gather(everyones, flat)
    assert all(torch.equal(flat, other) for other in everyones)


def sharded(mesh=None, **options):
    model = make_model()
    reference = copy.deepcopy(model)
    for child in (model.rnn, model.hidden):
        fully_shard(child, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)  # the root has the rest: the norm and the output layer
    return model, reference


def make_sam(model, **options):
    return SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3, model=model, **options)


def raises(error, text, function):
    try:
        function()
    except error as caught:
        assert text in str(caught), caught
        return
    raise AssertionError(f"no {error.__name__} with {text!r}")


def step_all(*optimizers):
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def assert_same_weights(model, other, what="weights"):
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11, msg=lambda text: f"{what}: {text}")
