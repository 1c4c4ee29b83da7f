"""Levels at which the noise of every layer costs the same: against a slow twin, and what is promised of them."""

import copy

import pytest
import torch
from peer_methods import X, Y, bits, losses_of, network, same_bits
from torch import nn
from torch.func import functional_call

from seqssgd.optim import ShapedNoise, SymmetricNoise, noise_groups
from seqssgd.optim.reference import scaled_noise, unit_noise

LEVEL, DECAY, FIRST = 0.4, 0.7, 2


def make(model, method=SymmetricNoise, lr=0.1, **settings):
    optimizer = method(torch.optim.SGD(noise_groups(model, LEVEL), lr=lr), seed=6, balance=True, **settings)
    optimizer._balance.decay, optimizer._balance.first = DECAY, FIRST
    return optimizer


def step(model, optimizer, loops=1):
    for _ in range(loops):
        for part in optimizer.passes():
            (part.mean(losses_of(model, *part.take(X, Y))) / loops).backward()
    optimizer.step()
    optimizer.zero_grad()


class Twin:
    """For the network of the peers: weights 0 and 2 of its parameters are perturbed, each a layer."""

    def __init__(self):
        self.model, self.prices, self.count = network(), {0: 0.0, 2: 0.0}, 0

    def gradients(self, weights):
        names = [name for name, _ in self.model.named_parameters()]
        leaves = [w.clone().requires_grad_() for w in weights]
        outputs = functional_call(self.model, dict(zip(names, leaves, strict=True)), (X,))
        return torch.autograd.grad(nn.functional.mse_loss(outputs, Y), leaves)

    def levels(self, w):
        if self.count < FIRST:
            return {0: LEVEL, 2: LEVEL}
        mean = sum(max(price, 0.0) for price in self.prices.values()) / 2
        e = {i: 1 / max(price, 0.01 * mean) ** 0.5 for i, price in self.prices.items()}
        wanted = sum((LEVEL * w[i].norm()) ** 2 for i in e)
        s = (wanted / sum((e[i] * w[i].norm()) ** 2 for i in e)) ** 0.5
        return {i: s * e[i] for i in e}

    def step(self):
        w = bits(self.model)
        z = unit_noise([w[0].shape, w[2].shape], "rademacher", 6, self.count, torch.float64)
        n, levels = [torch.zeros_like(x) for x in w], self.levels(w)
        for i, e in zip((0, 2), z, strict=True):
            n[i] = scaled_noise([w[i]], [e], levels[i], "tensor", None)[0]
        plus = self.gradients([a + b for a, b in zip(w, n, strict=True)])
        minus = self.gradients([a - b for a, b in zip(w, n, strict=True)])
        for i in (0, 2):
            along = float((n[i] * (plus[i] - minus[i])).sum() / 2)
            price = along * float(w[i].square().sum() / n[i].square().sum())
            self.prices[i] = DECAY * self.prices[i] + (1 - DECAY) * price
        with torch.no_grad():
            for p, a, b in zip(self.model.parameters(), plus, minus, strict=True):
                p -= 0.1 * (a + b) / 2
        self.count += 1
        return levels


def test_it_takes_the_steps_of_its_twin():
    model, twin = network(), Twin()
    optimizer, plain = make(model), network()
    for _ in range(6):
        step(model, optimizer)
        levels = twin.step()
        for p, q in zip(model.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert max(levels.values()) > 1.1 * min(levels.values())  # there was something to balance
    unbalanced = SymmetricNoise(torch.optim.SGD(noise_groups(plain, LEVEL), lr=0.1), seed=6)
    for _ in range(6):
        step(plain, unbalanced)
    assert not torch.allclose(plain[0].weight, model[0].weight, rtol=1e-3)


def quadratic(steepness):
    """A loss whose Hessian in each layer is a multiple of the identity, so that every price is exact."""
    model = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in steepness]).double()
    return model, lambda: sum(s * layer.weight.square().sum() for s, layer in zip(steepness, model, strict=True)) / 2


@pytest.mark.parametrize("method", [SymmetricNoise, ShapedNoise])
def test_every_layer_pays_the_same_and_the_whole_has_its_level(method):
    model, loss = quadratic([1.0, 5.0, 30.0])
    optimizer = make(model, method, lr=0.0)
    for number in range(FIRST + 1):
        for part in optimizer.passes():
            loss().backward()
            entries = optimizer.entries()
            n = [entry.weight - entry.saved for entry in entries]
            whole = torch.cat([x.flatten() for x in n]).norm() / torch.cat([e.saved.flatten() for e in entries]).norm()
            assert whole.item() == pytest.approx(LEVEL)
            if part.last:
                prices = [s * x.square().sum().item() for s, x in zip((1.0, 5.0, 30.0), n, strict=True)]
        optimizer.step()
        optimizer.zero_grad()
        assert (max(prices) < 1.001 * min(prices)) == (number == FIRST)
    told = [optimizer.noise_norm(optimizer.param_groups[0], [layer.weight]) for layer in model]
    assert told == pytest.approx([x.norm().item() for x in n])


def test_tensors_of_one_layer_with_noise_of_other_sizes_pay_together():
    model, loss = quadratic([1.0, 5.0, 30.0])
    model[1].weight.data.mul_(4)
    optimizer = make(model, lr=0.0, granularity="tensor")
    optimizer.param_groups[0]["layers"] = ["rnn", "rnn", "out"]
    sizes = sizes_once_balanced(optimizer, loss)
    assert sizes[0] ** 2 + 5 * sizes[1] ** 2 == pytest.approx(30 * sizes[2] ** 2)


def sizes_once_balanced(optimizer, loss) -> list[float]:
    """The norms of the layers' noise in the first step whose levels are balanced."""
    for _ in range(FIRST + 1):
        for _ in optimizer.passes():
            loss().backward()
            sizes = [(entry.weight - entry.saved).norm().item() for entry in optimizer.entries()]
        optimizer.step()
        optimizer.zero_grad()
    return sizes


def test_a_layer_without_a_price_has_at_most_ten_times_the_level_of_the_mean_one():
    model, loss = quadratic([0.0, 1.0, 1.0])
    for layer in model:
        layer.weight.data.fill_(1.0)
    optimizer = make(model, lr=0.0)
    sizes = sizes_once_balanced(optimizer, loss)
    assert sizes[0] / sizes[1] == pytest.approx((1.0 / (0.01 * 2 / 3)) ** 0.5)


def test_a_layer_of_zeros_keeps_no_other_from_its_level():
    model, loss = quadratic([1.0, 100.0, 1.0])
    for layer, value in zip(model, (1.0, 1.0, 0.0), strict=True):
        layer.weight.data.fill_(value)
    optimizer = make(model, lr=0.0)
    sizes = sizes_once_balanced(optimizer, loss)
    assert sizes[0] / sizes[1] == pytest.approx(10) and sizes[2] == 0


def test_a_layer_that_thaws_late_has_the_plain_level_until_its_price_is_known():
    """The second layer is four times as steep as the first; the third, frozen at first, is as steep as that."""
    model, loss = quadratic([1.0, 4.0, 1.0])
    for layer in model:
        layer.weight.data.fill_(1.0)
    optimizer, levels = make(model, lr=0.0), []
    for number in range(2 * FIRST + 1):
        model[2].weight.requires_grad_(number >= FIRST)
        for part in optimizer.passes():
            loss().backward()
            if part.last:
                levels.append([((e.weight - e.saved).norm() / e.saved.norm()).item() for e in optimizer.entries()])
        optimizer.step()
        optimizer.zero_grad()
    steep = LEVEL * (2 / 5) ** 0.5  # squares are as 4 : 1, and their sum is that of two plain levels
    assert levels[FIRST - 1] == pytest.approx([LEVEL, LEVEL])
    for found in levels[FIRST : 2 * FIRST]:
        assert found == pytest.approx([2 * steep, steep, LEVEL])
    steep = LEVEL * (3 / 9) ** 0.5
    assert levels[2 * FIRST] == pytest.approx([2 * steep, steep, 2 * steep])


def test_where_no_layer_has_a_price_the_levels_stay():
    model, loss = quadratic([-1.0, -2.0])
    optimizer = make(model, lr=0.0)
    for _ in range(FIRST + 1):
        for _ in optimizer.passes():
            loss().backward()
            for entry in optimizer.entries():
                assert ((entry.weight - entry.saved).norm() / entry.saved.norm()).item() == pytest.approx(LEVEL)
        optimizer.step()
        optimizer.zero_grad()


def test_over_several_loops_of_one_step_the_prices_are_those_of_the_mean_loss():
    models = [network(), network()]
    for model, loops in zip(models, (1, 3), strict=True):
        optimizer = make(model)
        for _ in range(4):
            step(model, optimizer, loops)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_a_loss_that_overflowed_leaves_no_price():
    model, other = network(), network()
    optimizer, reference = make(model), make(other)
    for _ in range(3):
        step(model, optimizer)
        step(other, reference)
    before = {layer: price.clone() for layer, price in optimizer._balance.prices.items()}
    for part in optimizer.passes():
        (part.mean(losses_of(model)) * float("inf")).backward()
    optimizer.zero_grad()  # the step is skipped
    step(model, optimizer)
    step(other, reference)
    assert same_bits(bits(model), bits(other))
    optimizer._balance._latest = {layer: price * float("nan") for layer, price in before.items()}
    optimizer._balance.update()
    assert all(price.isfinite() for price in optimizer._balance.prices.values())


@pytest.mark.parametrize("how", ["state_dict", "copy"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(how, tmp_path):
    model = network(torch.float32)
    optimizer = make(model)
    for _ in range(3):
        step(model, optimizer)
    if how == "copy":
        again, resumed = copy.deepcopy((model, optimizer))
    else:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
        saved = torch.load(tmp_path / "c.pt", weights_only=True)
        again = network(torch.float32)
        resumed = make(again)
        again.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["optimizer"])
    for _ in range(3):
        step(model, optimizer)
        step(again, resumed)
    assert same_bits(bits(model), bits(again))


@pytest.mark.parametrize("settings", [{"signs": "halves"}, {"signs": "steps"}, {"granularity": "absolute"}])
def test_where_prices_cannot_be_measured_it_is_refused(settings):
    with pytest.raises(ValueError, match="balance=True needs both signs on one minibatch"):
        make(network(), **settings)
