"""Batch-norm running statistics: which passes count, and their estimation with clean weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seqssgd.optim import SymmetricNoise, noise_groups, recalibrate_bn


class RunningRMS(nn.Module):
    """A norm layer that torch does not know; like torch's it averages by momentum and counts batches."""

    def __init__(self, features, momentum=0.2):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_square", torch.ones(features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.register_buffer("table", torch.ones(features))  # no statistic

    def forward(self, x):
        square = x.pow(2).mean(0)
        if self.training:
            self.running_square.lerp_(square.detach(), self.momentum)
            self.num_batches_tracked += 1
            self.table += 1
        return x / (square if self.training else self.running_square).sqrt()


def network(momentum=0.1, dropout=0.0):
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(3, 4),
        nn.BatchNorm1d(4, momentum=momentum),
        nn.Tanh(),
        nn.Linear(4, 5),
        RunningRMS(5),
        nn.BatchNorm1d(5, track_running_stats=False),
        nn.Linear(5, 2),
    ).double()


BATCHES = [torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (8, 5, 8, 7)]


def statistics(model):
    return {name: b.clone() for name, b in model.named_buffers() if "table" not in name}


# ---- during training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None], ids=["exponential", "cumulative"])
@pytest.mark.parametrize(("bn_stats", "counted"), [("both", {0, 1}), ("first", {0}), ("none", set())])
def test_the_passes_that_count_are_averaged_in_order_and_no_others(bn_stats, counted, momentum):
    model = network(momentum)
    addresses = [b.data_ptr() for b in model.buffers()]
    mean, var, square = torch.zeros(4).double(), torch.ones(4).double(), torch.ones(5).double()
    seen = {}
    for name in ("2", "5"):
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    optimizer = SymmetricNoise(
        torch.optim.SGD(noise_groups(model, noise=0.5), lr=0.1), model=model, bn_stats=bn_stats, distribution="gaussian"
    )
    count = 0
    for batch in BATCHES:
        for part in optimizer.passes():
            model(batch).square().sum().backward()
            if part.index in counted:
                count += 1
                factor = momentum if momentum is not None else 1 / count
                mean += factor * (seen["2"].detach().mean(0) - mean)
                var += factor * (seen["2"].detach().var(0, unbiased=True) - var)
                square += 0.2 * (seen["5"].detach().pow(2).mean(0) - square)
        optimizer.step()
        optimizer.zero_grad()
    assert count == len(BATCHES) * len(counted)
    torch.testing.assert_close(model[2].running_mean, mean)
    torch.testing.assert_close(model[2].running_var, var)
    torch.testing.assert_close(model[5].running_square, square)
    assert model[2].num_batches_tracked == model[5].num_batches_tracked == count
    assert (model[5].table == 1 + 2 * len(BATCHES)).all()  # other buffers are the model's own business
    assert [b.data_ptr() for b in model.buffers()] == addresses


@pytest.mark.parametrize("bn_stats", ["first", "none"])
def test_an_exception_in_a_pass_that_does_not_count_leaves_no_trace_in_the_statistics(bn_stats):
    model = network()
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.5), lr=0.1), model=model, bn_stats=bn_stats)
    with pytest.raises(KeyboardInterrupt):
        for part in optimizer.passes():
            before = statistics(model)
            model(BATCHES[0])
            if part.index == (1 if bn_stats == "first" else 0):
                assert not torch.equal(statistics(model)["2.running_mean"], before["2.running_mean"])
                raise KeyboardInterrupt
    assert all(torch.equal(before[name], value) for name, value in statistics(model).items())


@pytest.mark.parametrize("bn_stats", ["first", "none"])
def test_without_noise_the_statistics_are_those_of_plain_training(bn_stats):
    model, plain = network(), network()
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.0), lr=0.1), model=model, bn_stats=bn_stats)
    for _ in optimizer.passes():
        model(BATCHES[0])
    plain(BATCHES[0])
    assert all(torch.equal(value, statistics(plain)[name]) for name, value in statistics(model).items())


def test_wrong_settings_are_refused():
    model = network()
    groups = noise_groups(model, noise=0.5)
    with pytest.raises(ValueError, match="bn_stats='second' must be one of both, first, none"):
        SymmetricNoise(torch.optim.SGD(groups, lr=0.1), model=model, bn_stats="second")
    for bn_stats in ("first", "none"):
        with pytest.raises(ValueError, match="needs model="):
            SymmetricNoise(torch.optim.SGD(groups, lr=0.1), bn_stats=bn_stats)


# ---- recalibration ---------------------------------------------------------------------------------------------------


def by_hand(model, batches):
    """The mean over ``batches`` of each layer's batch statistics, with dropout off and every norm on its own batch."""
    sums = [0.0, 0.0, 0.0]
    with torch.no_grad():
        for x in batches:
            a = F.linear(x, model[1].weight, model[1].bias)
            centred = a - a.mean(0)
            hidden = centred / (centred.pow(2).mean(0) + model[2].eps).sqrt() * model[2].weight + model[2].bias
            b = F.linear(hidden.tanh(), model[4].weight, model[4].bias)
            new = (a.mean(0), centred.pow(2).sum(0) / (len(x) - 1), b.pow(2).mean(0))
            sums = [total + value for total, value in zip(sums, new, strict=True)]
    return [total / len(batches) for total in sums]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_recalibration_gives_the_plain_mean_of_the_batch_statistics(momentum):
    model = network(momentum, dropout=0.7)
    for _ in range(3):
        model(BATCHES[0] * 5 + 2)  # statistics of something else
    model[5].running_square[0] = float("inf")  # a step that overflowed must not stay in them either
    model[2].running_mean[1] = float("nan")
    random_state = torch.get_rng_state()
    weights = [p.detach().clone() for p in model.parameters()]
    recalibrate_bn(model, iter(BATCHES))
    for actual, expected in zip(
        (model[2].running_mean, model[2].running_var, model[5].running_square), by_hand(model, BATCHES), strict=True
    ):
        torch.testing.assert_close(actual, expected)
    assert torch.equal(torch.get_rng_state(), random_state)  # dropout drew nothing
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(model.parameters(), weights, strict=True))
    assert model[2].momentum == momentum and model[5].momentum == 0.2


def test_recalibration_is_what_evaluation_sees():
    model = network(dropout=0.5)
    recalibrate_bn(model, [BATCHES[0]])
    expected = F.batch_norm(model[1](BATCHES[1]), *by_hand(model, [BATCHES[0]])[:2], model[2].weight, model[2].bias)
    torch.testing.assert_close(model.eval()[:3](BATCHES[1]), expected)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, y=None):
        return self.norm(x if y is None else x + y)


def test_a_tuple_is_spread_over_the_arguments():
    model = TwoInputs().double()
    x, y = BATCHES[0], BATCHES[2]
    recalibrate_bn(model, [(x, y), x])
    torch.testing.assert_close(model.norm.running_mean, (2 * x + y).mean(0) / 2)


def broken_loader():
    yield BATCHES[0]
    raise RuntimeError("no such file")


def out_of_memory(*_):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("how", ["forward", "loader", "nothing goes wrong", "no batches"])
def test_modes_and_momentum_are_left_as_they_were_whatever_happens(how):
    model = network()
    model[1].eval()
    model[2].eval()  # a mix that neither train() nor eval() would give
    modes = {name: module.training for name, module in model.named_modules()}
    before = statistics(model)
    if how == "no batches":
        with pytest.raises(ValueError, match="at least one batch"):
            recalibrate_bn(model, [])
        assert all(torch.equal(before[name], value) for name, value in statistics(model).items())
    elif how == "nothing goes wrong":
        recalibrate_bn(model, BATCHES)
    elif how == "loader":
        with pytest.raises(RuntimeError, match="no such file"):
            recalibrate_bn(model, broken_loader())
    else:
        model[7].register_forward_pre_hook(out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            recalibrate_bn(model, BATCHES)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model[2].momentum == 0.1 and model[5].momentum == 0.2


def test_layers_that_cannot_be_recalibrated_are_named_and_nothing_is_touched():
    model = network()
    del model[5].momentum
    before = statistics(model)
    with pytest.raises(ValueError, match="RunningRMS keeps running statistics but has no momentum"):
        recalibrate_bn(model, BATCHES)
    assert all(torch.equal(before[name], value) for name, value in statistics(model).items())
    assert model[2].momentum == 0.1 and model.training


def test_a_model_without_running_statistics_is_not_run_at_all():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 3))
    recalibrate_bn(model, broken_loader())
    assert model.training


def test_batches_with_targets_in_them_are_refused_and_say_what_batches_are():
    model, x, y = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.ones(5, 3), torch.ones(5)
    for batches in ([(x, y)], [[x, y]], [{"x": x}]):
        with pytest.raises(TypeError, match=r"inputs alone: \(x for x, y in loader\)"):
            recalibrate_bn(model, batches)
    with pytest.raises(TypeError, match="not one tensor"):
        recalibrate_bn(model, x)
