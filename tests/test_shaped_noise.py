"""Noise that follows the curvature: against a slow twin, and what it is for.

What holds for every method is in ``test_peers.py``.
"""

import copy

import pytest
import torch
from peer_methods import X, Y, bits, losses_of, network, same_bits
from torch import nn
from torch.func import functional_call

from seqssgd.optim import ShapedNoise, chunks, noise_groups
from seqssgd.optim.reference import unit_noise


def make(model, noise=0.4, **settings):
    return ShapedNoise(torch.optim.SGD(noise_groups(model, noise=noise), lr=0.1, momentum=0.9), seed=6, **settings)


def train(model, optimizer, steps):
    for _ in range(steps):
        for part in optimizer.passes():
            part.mean(losses_of(model, *part.take(X, Y))).backward()
        optimizer.step()
        optimizer.zero_grad()


class Twin:
    """For the network of the peers: weights 0 and 2 of its parameters are perturbed, each a layer."""

    def __init__(self, decay, damping, distribution, shares, average="weight", preconditions=False):
        self.decay, self.damping, self.distribution, self.shares = decay, damping, distribution, shares
        self.average, self.preconditions = average, preconditions
        self.model = network()
        self.base = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.h, self.count = {0: None, 2: None}, 0

    def gradients(self, weights, examples):
        names = [name for name, _ in self.model.named_parameters()]
        leaves = [w.clone().requires_grad_() for w in weights]
        outputs = functional_call(self.model, dict(zip(names, leaves, strict=True)), (X[examples],))
        return torch.autograd.grad(nn.functional.mse_loss(outputs, Y[examples]), leaves)

    def precision(self, index, like):
        if self.h[index] is None:
            return torch.ones_like(like)
        positive = self.h[index].clamp(min=0)
        if not positive.any():
            return torch.ones_like(like)
        return positive / positive.mean() + self.damping

    def step(self, level=0.4):
        w = bits(self.model)
        z = unit_noise([w[0].shape, w[2].shape], self.distribution, 6, self.count, torch.float64)
        n = [torch.zeros_like(x) for x in w]
        for index, e in zip((0, 2), z, strict=True):
            shaped = e / self.precision(index, w[index]).sqrt()
            n[index] = shaped * level * w[index].norm() / shaped.norm()
        plus = self.gradients([x + y for x, y in zip(w, n, strict=True)], self.shares[0][1])
        minus = self.gradients([x - y for x, y in zip(w, n, strict=True)], self.shares[1][1])
        a, b = self.shares[0][0], self.shares[1][0]
        for index in (0, 2) if level else ():
            precision = self.precision(index, w[index])
            size = n[index].square().sum() / (1 / precision).sum()
            estimate = (a * n[index] * plus[index] - b * n[index] * minus[index]) * precision / size
            if self.average == "row":
                estimate = estimate.mean(1, keepdim=True) * torch.ones_like(estimate)
            elif self.average == "layer":
                estimate = estimate.mean() * torch.ones_like(estimate)
            before = torch.zeros_like(estimate) if self.h[index] is None else self.h[index]
            self.h[index] = self.decay * before + (1 - self.decay) * estimate
        for index, (p, g, k) in enumerate(zip(self.model.parameters(), plus, minus, strict=True)):
            p.grad = a * g + b * k
            if self.preconditions and self.h.get(index) is not None:
                p.grad *= (1 + self.damping) / self.precision(index, p.grad)
        self.base.step()
        self.count += bool(level)


BATCH = ((0.5, slice(None)), (0.5, slice(None)))
HALVES = ((2 / 5, slice(0, 2)), (3 / 5, slice(2, 5)))


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("signs, shares", [("batch", BATCH), ("halves", HALVES)])
def test_it_takes_the_steps_of_its_twin(signs, shares, distribution):
    model, twin = network(), Twin(0.7, 0.2, distribution, shares)
    optimizer = make(model, signs=signs, distribution=distribution, curvature_decay=0.7, damping=0.2)
    for _ in range(5):
        train(model, optimizer, 1)
        twin.step()
        for p, q in zip(model.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    flat = network()
    train(flat, make(flat, signs=signs, distribution=distribution, damping=1e9), 5)
    assert not torch.allclose(flat[0].weight, model[0].weight, rtol=1e-3)  # the shape matters


@pytest.mark.parametrize("settings", [
    {"average_over": "row"}, {"average_over": "layer"}, {"precondition": True},
    {"average_over": "row", "precondition": True, "signs": "halves"},
], ids=str)  # fmt: skip
def test_averages_and_the_preconditioner_are_those_of_its_twin(settings):
    shares = HALVES if "signs" in settings else BATCH
    average, preconditions = settings.get("average_over", "weight"), settings.get("precondition", False)
    model, twin = network(), Twin(0.7, 0.2, "gaussian", shares, average, preconditions)
    optimizer = make(model, distribution="gaussian", curvature_decay=0.7, damping=0.2, **settings)
    for _ in range(5):
        train(model, optimizer, 1)
        twin.step()
        for p, q in zip(model.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_steps_without_noise_are_preconditioned_by_what_was_known_last():
    model, twin = network(), Twin(0.7, 0.2, "rademacher", BATCH, preconditions=True)
    optimizer = make(model, curvature_decay=0.7, damping=0.2, precondition=True)
    levels = [group["noise"] for group in optimizer.param_groups]
    for on in (False, True, True, False, False, True):
        for group, level in zip(optimizer.param_groups, levels, strict=True):
            group["noise"] = level * on
        train(model, optimizer, 1)
        twin.step(level=0.4 * on)
        for p, q in zip(model.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_the_preconditioner_makes_a_newton_step_where_curvature_is_all_there_is():
    """A quadratic loss with the diagonal as its Hessian: with little damping every weight falls by the same share."""
    steepness = torch.tensor([[1.0, 3.0, 8.0]], dtype=torch.float64)
    layer = nn.Linear(3, 1, bias=False).double()
    base = torch.optim.SGD(noise_groups(layer, noise=0.1), lr=0.01)
    optimizer = ShapedNoise(base, damping=1e-6, precondition=True)
    before = layer.weight.detach().clone()
    for _ in optimizer.passes():
        (steepness * layer.weight**2).sum().div(2).backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach() / before, torch.full_like(before, 1 - 0.01 * 4), rtol=1e-4, atol=0)


def test_a_layer_without_curvature_is_stepped_as_sgd_steps_it():
    layer = nn.Linear(3, 1, bias=False)
    optimizer = ShapedNoise(torch.optim.SGD(noise_groups(layer, noise=0.1), lr=0.1), precondition=True)
    before = layer.weight.detach().clone()
    for _ in optimizer.passes():
        layer.weight.sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before - 0.1)


def test_the_preconditioner_is_for_sgd():
    with pytest.raises(ValueError, match="precondition=True .* Adam divides .* take torch.optim.SGD"):
        ShapedNoise(torch.optim.Adam(noise_groups(network(), 0.1)), precondition=True)


def test_layers_of_two_tensors_are_averaged_together():
    both = []
    for average in ("layer", "weight"):
        torch.manual_seed(0)
        model = nn.LSTM(3, 4, batch_first=True).double()
        both.append(ShapedNoise(torch.optim.SGD(noise_groups(model, noise=0.3), lr=0.0), average_over=average))
        for _ in both[-1].passes():
            model(torch.ones(2, 5, 3).double())[0].square().sum().backward()
        both[-1].step()
    optimizer, other = both
    mean = torch.cat([h.flatten() for h in other.shape.means.values()]).mean()
    assert len(optimizer.shape.means) == 2
    for h in optimizer.shape.means.values():
        torch.testing.assert_close(h, mean.expand_as(h))


def test_steep_weights_move_little_flat_ones_much_and_the_layer_as_far_as_ever():
    """A quadratic loss has the diagonal as its Hessian, so that every estimate is exact."""
    steepness = torch.tensor([[0.0, 1.0, 3.0, 8.0]], dtype=torch.float64)
    layer = nn.Linear(4, 1, bias=False).double()
    optimizer = ShapedNoise(torch.optim.SGD(noise_groups(layer, noise=0.5), lr=0.0), damping=0.1)
    for step in range(2):
        for part in optimizer.passes():
            before = optimizer.entries()[0].saved
            n = (layer.weight - before).detach()
            (steepness * layer.weight**2).sum().div(2).backward()
            assert n.norm().item() == pytest.approx(0.5 * before.norm().item())
            if step == 1:
                wanted = (steepness / 3 + 0.1).rsqrt()
                torch.testing.assert_close(n.abs(), wanted * n.norm() / wanted.norm())
            else:
                torch.testing.assert_close(n.abs(), n.abs().mean().expand_as(n))
            assert part.cost == 1
        optimizer.step()
        optimizer.zero_grad()


def test_layers_of_two_tensors_have_one_mean():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, batch_first=True).double()
    optimizer = ShapedNoise(torch.optim.SGD(noise_groups(model, noise=0.3), lr=0.0), damping=0.5)
    for _ in range(2):
        for _ in optimizer.passes():
            model(torch.ones(2, 5, 3).double())[0].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    means = [optimizer.shape.means[i].clamp(min=0) for i in range(2)]
    size = torch.cat([h.flatten() for h in means]).mean()
    noise = [torch.ones_like(h) for h in means]
    optimizer.shape.apply(optimizer.entries(), noise)
    for z, h in zip(noise, means, strict=True):
        torch.testing.assert_close(z, (h / size + 0.5).rsqrt())


@pytest.mark.parametrize("settings", [{}, {"precondition": True, "signs": "halves"}], ids=str)
def test_large_tensors_are_worked_on_in_pieces(settings, monkeypatch):
    found = []
    for size in (10**6, 5):
        monkeypatch.setattr(chunks, "CHUNK", size)
        model = network()
        model[2].weight.data = model[2].weight.detach().T.contiguous().T  # one that no pieces are made of
        train(model, make(model, **settings), 3)
        found.append(bits(model))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-14)


def test_a_copy_of_the_optimizer_goes_on_alike():
    model = network()
    optimizer = make(model)
    train(model, optimizer, 3)
    twin_model, twin = copy.deepcopy((model, optimizer))
    for each in ((model, optimizer), (twin_model, twin)):
        train(*each, 2)
    assert same_bits(bits(model), bits(twin_model))


def test_what_does_not_go_with_it_is_refused():
    for settings, word in (
        ({"signs": "steps"}, 'not "steps"'),
        ({"average_over": "filter"}, "average_over='filter' must be one of weight, row, layer"),
        ({"granularity": "absolute"}, 'not granularity="absolute"'),
        ({"granularity": "filter"}, 'not granularity="filter"'),
        ({"damping": 0.0}, "damping=0.0"),
        ({"curvature_decay": 1.0}, "curvature_decay=1.0"),
    ):
        with pytest.raises(ValueError, match=word):
            make(network(), **settings)
    with pytest.raises(ValueError, match="one size in a layer"):
        make(network()).record_curvature()
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=f"ShapedNoise needs weights of float32 or more, not {dtype}"):
            make(network(dtype))
