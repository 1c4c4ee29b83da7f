"""The parts of a gradient's variance on losses for which they are known, and what follows from them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from seqssgd.landscape.figures import _parts
from seqssgd.landscape.section import variance_table
from seqssgd.landscape.sharpness import WeightNoise
from seqssgd.landscape.spectrum import Estimate
from seqssgd.landscape.variance import VarianceSplit, variance_split


class Cubic(nn.Module):
    """ℓ_i(w) = ½ Σ a w² + b/6 Σ w³ + Σ x_i w + s/2 Σ z_i w²: the gradient's parts are polynomials of n."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5, bias=False).double()
        nn.init.constant_(self.layer.weight, 0.7)


A, B, S, LEVEL = 2.0, 3.0, 0.4, 0.5


def halves(count, examples, generator):
    for _ in range(count):
        yield tuple(torch.randn(2, examples, 30, dtype=torch.double, generator=generator) for _ in "ab")


def gradient_of(model):
    def gradient(half):
        w = model.layer.weight.detach().flatten()
        x, z = half
        return A * w + B / 2 * w**2 + x.mean(0) + S * z.mean(0) * w

    return gradient


def test_the_parts_are_those_of_a_loss_whose_gradient_is_a_polynomial():
    model, examples = Cubic(), 5
    found = variance_split(
        gradient_of(model),
        halves(1500, examples, torch.Generator().manual_seed(1)),
        examples,
        WeightNoise(model),
        LEVEL,
    )
    w, sigma, size = 0.7, LEVEL * 0.7, 30
    wanted = {
        "data": size * (1 + S**2 * w**2),
        "noisy_data": size * (1 + S**2 * (w**2 + sigma**2)),
        "pair_data": size * (1 + S**2 * w**2),
        "first": size * (A + B * w) ** 2 * sigma**2,
        "second": 0.0,  # n² is the same for every draw of signs
    }
    for name, value in wanted.items():
        estimate = getattr(found, name)
        half = (estimate.high - estimate.low) / 2
        assert abs(estimate.value - value) <= 2 * half + 1e-9, (name, value, estimate)  # four standard errors
        assert estimate.high - estimate.low < 0.1 * max(value, 5.0), name
    # and the methods' variances are those that one finds by taking their steps
    generator, noise = torch.Generator().manual_seed(2), WeightNoise(model, seed=9)
    steps = {"none": [], "one-sided": [], "halves": [], "pair": []}
    gradient = gradient_of(model)
    for draw, (one, other) in enumerate(halves(3000, examples, generator)):
        whole = torch.cat([one, other], 1)
        steps["none"].append(gradient(whole))
        with noise.moved(LEVEL, draw) as signs:
            next(signs)
            plus, first = gradient(whole), gradient(one)
            next(signs)
            steps["pair"].append((plus + gradient(whole)) / 2)
            steps["halves"].append((first + gradient(other)) / 2)
            steps["one-sided"].append(plus)
    for name, value in found.of_step().items():
        gradients = torch.stack(steps[name])
        assert float(gradients.var(0).sum()) == pytest.approx(value, rel=0.05), name


def test_gaussian_noise_leaves_the_second_order_to_the_pair():
    model, examples = Cubic(), 5
    noise = WeightNoise(model, distribution="gaussian", granularity="absolute")
    found = variance_split(
        gradient_of(model), halves(2000, examples, torch.Generator().manual_seed(1)), examples, noise, 0.4
    )
    wanted = 30 * (B / 2) ** 2 * 2 * 0.4**4  # of b n²/2 in each of 30 weights
    assert abs(found.second.value - wanted) <= found.second.high - found.second.low
    assert found.second.high - found.second.low < 0.4 * wanted


def split(data, noisy, pair, first, second, batch=20):
    return VarianceSplit(0.5, batch, *(Estimate(v, v, v) for v in (data, noisy, pair, first, second)))


def test_the_break_even_minibatch_is_where_both_cost_the_same_and_the_advice_follows():
    found = split(100.0, 120.0, 110.0, 10.0, 0.5)
    edge = found.break_even
    at_edge = found.of_step(edge)
    assert 2 * at_edge["pair"] == pytest.approx(at_edge["one-sided"])
    assert edge == pytest.approx(100 / 9.5)
    assert found.recommendation()[0] == "halves"
    assert str(found).endswith("the pair pays against one-sided noise from 11 examples on")
    assert str(split(100.0, 120.0, 110.0, 0.3, 0.5)).endswith("against one-sided noise at no minibatch size")
    assert split(100.0, 120.0, 110.0, 0.3, 0.1).recommendation()[0] == "one-sided"
    assert split(100.0, 120.0, 110.0, 0.3, 0.5).break_even == math.inf
    wild = split(100.0, 400.0, 110.0, 10.0, 0.5)  # weight noise adds more data noise than the pair keeps
    assert wild.break_even == 0 and wild.recommendation()[0] == "pair"
    small = split(
        100.0, 400.0, 110.0, 1.0, 3.0
    )  # which it does for small minibatches, and N₂ outweighs N₁ in large ones
    assert small.pays == (0, 90) and small.break_even == math.inf
    for size, gains in ((89, True), (91, False)):
        assert (2 * small.of_step(size)["pair"] < small.of_step(size)["one-sided"]) == gains
    assert str(small).endswith("the pair pays against one-sided noise below 90 examples")
    assert np.isinf(split(1.0, 1.0, 1.0, 0.0, 0.0).break_even)
    with pytest.raises(ValueError, match="too few"):
        variance_split(gradient_of(Cubic()), halves(3, 2, torch.Generator()), 2, WeightNoise(Cubic()), 0.5)


def test_what_its_intervals_leave_open_is_not_decided():
    clear = dataclasses.replace(split(100.0, 120.0, 110.0, 10.0, 0.5), pairs=8)
    assert clear.decided and "not decided" not in str(clear)
    for first, second in (((10.0, -1.0, 21.0), (0.5, 0.5, 0.5)), ((10.0, 9.0, 11.0), (8.0, 4.0, 12.0))):
        open_ = dataclasses.replace(clear, first=Estimate(*first), second=Estimate(*second))
        assert not open_.decided
        assert "not decided by 8 pairs" in open_.recommendation()[1]
        plain = {**dataclasses.asdict(open_), "of_step": open_.of_step(), "break_even": 0.0, "recommended": "halves"}
        again = VarianceSplit.restored(plain, 8)
        assert again.pays == pytest.approx(open_.pays) and not again.decided
        found = {"settings": {"pairs": 8}, "runs": {"a": {"variance": plain}}}
        [row] = variance_table(found).rows
        assert row[-2:] == [open_.pays_in_words(), "halves (not decided by 8 pairs)"]
    wide = split(100.0, 120.0, 110.0, 0.0624, 0.0)
    assert wide.pays_in_words() == "1,600"


def test_the_parts_in_the_picture_add_up_to_the_variance_of_each_method():
    split = VarianceSplit(0.3, 10, *(Estimate(value, value, value) for value in (20.0, 26.0, 22.0, 3.0, 0.5)))
    plain = {**dataclasses.asdict(split), "of_step": split.of_step()}
    for method in ("one-sided", "halves", "pair"):
        parts = _parts(plain, method)
        assert sum(parts.values()) == pytest.approx(split.of_step()[method] / split.of_step()["none"])
    one_sided = {"D/B": 1.0, "M/B": 0.3, "N₁": 1.5, "N₂": 0.25}
    assert _parts(plain, "one-sided") == pytest.approx(one_sided)
    assert _parts(plain, "halves") == pytest.approx({**one_sided, "N₁": 0.0})
    less = {**plain, "of_step": {**split.of_step(), "pair": 0.8 * split.of_step()["none"]}}
    assert _parts(less, "pair") == pytest.approx({"D/B": 0.55, "M/B": 0.0, "N₁": 0.0, "N₂": 0.25})
