"""The optimizer and the schedulers that a configuration describes."""

import pytest
import torch
from torch import nn

from seqssgd.errors import UserError
from seqssgd.optim import SinglePass, SymmetricNoise
from seqssgd.training import OptimConfig, build_optimizer, build_schedulers


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(5, 4), nn.LSTM(4, 4), nn.Linear(4, 5)


def levels(optimizer):
    """{shape of a weight: its noise level}"""
    return {tuple(p.shape): group["noise"] for group in optimizer.param_groups for p in group["params"]}


def test_the_base_optimizer_is_the_one_described():
    for base, wanted in (("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        for method, wrapper in (("none", SinglePass), ("ssgd", SymmetricNoise)):
            config = OptimConfig(method=method, base=base, lr=0.3, momentum=0.8, weight_decay=0.1, betas=(0.7, 0.6))
            model = Network()
            optimizer = build_optimizer(model, config)
            assert type(optimizer) is wrapper and type(optimizer.base) is wanted
            for group in optimizer.param_groups:
                assert (group["lr"], group["weight_decay"]) == (0.3, 0.1)
                assert group.get("momentum", 0.8) == 0.8 and group.get("betas", (0.7, 0.6)) == (0.7, 0.6)
                assert ("momentum" in group, "betas" in group) == ((True, False) if base == "sgd" else (False, True))
            assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_the_noise_is_the_one_described():
    settings = dict(distribution="gaussian", granularity="filter", signs="halves", noise_seed=4, bn_stats="none")
    optimizer = build_optimizer(Network(), OptimConfig(method="ssgd", noise=0.7, **settings))
    source = optimizer.source
    assert (source.distribution, source.granularity, source.seed) == ("gaussian", "filter", 4)
    assert (optimizer.signs, optimizer.bn_stats) == ("halves", "none")
    assert levels(optimizer) == {(5, 4): 0.7, (16, 4): 0.7, (16,): 0.0, (5,): 0.0}
    optimizer = build_optimizer(Network(), OptimConfig(method="ssgd", noise=0.7, only=["recurrent"]))
    assert levels(optimizer)[(16, 4)] == 0.7
    noisy = [p.shape for group in optimizer.param_groups if group["noise"] for p in group["params"]]
    assert noisy == [(16, 4), (16, 4)]


def test_roles_that_the_model_lacks_are_a_users_mistake():
    with pytest.raises(UserError, match="^optim: no weights to perturb: Network has none with a role in conv$"):
        build_optimizer(Network(), OptimConfig(method="ssgd", noise=0.7, only=["conv"]))


def test_schedulers_are_those_described():
    def units(**settings):
        config = OptimConfig(**settings)
        optimizer = build_optimizer(Network(), config)
        return [(type(s).__name__, unit) for s, unit in build_schedulers(optimizer, config, epochs=4)]

    assert units() == units(method="ssgd", noise=0.1) == []
    assert units(method="ssgd", noise=0.1, noise_schedule="1-1S") == [("LambdaNoise", "epoch")]
    assert units(method="ssgd", noise=0.1, noise_ramp=(0, 2), noise_unit="step") == [("LambdaNoise", "step")]
    assert units(noise_schedule="1-1S") == []  # nothing to schedule
    assert units(lr_schedule="cosine") == [("LambdaLR", "epoch")]
    both = units(method="ssgd", noise=0.1, noise_schedule="1-1S", lr_schedule="zaremba", noise_unit="step")
    assert both == [("LambdaLR", "epoch"), ("LambdaNoise", "step")]
