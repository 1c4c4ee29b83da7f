"""Sharpness of losses whose sharpness is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from seqssgd.landscape import CurvatureOperator, Objective, layer_traces
from seqssgd.landscape.sharpness import (
    WeightNoise,
    keskar_sharpness,
    noise_sharpness,
    predicted_sharpness,
    sam_sharpness,
    under_noise,
)


class Known(nn.Module):
    """Two layers whose weights are all that the loss looks at."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)
        self.double()

    def forward(self, _):
        return torch.cat([self.first.weight.flatten(), self.second.weight.flatten(), self.first.bias])


def objective(loss):
    model = Known()
    return Objective(model, [0], model, lambda w, _: loss(w)[None])


SYMMETRIC = torch.randn(24, 24, dtype=torch.double, generator=torch.Generator().manual_seed(5))
SYMMETRIC = SYMMETRIC + SYMMETRIC.T


def quadratic():
    return objective(lambda w: w @ SYMMETRIC @ w / 2)


def test_the_weights_move_by_the_noise_of_the_optimizer_and_come_back_exactly():
    from seqssgd.optim import SymmetricNoise, noise_groups

    model = Known()
    before = [p.clone() for p in model.parameters()]
    noise = WeightNoise(model, seed=3)
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.4), lr=0.1), seed=3)
    seen = []
    for _ in optimizer.passes():
        seen.append([p.detach().clone() for p in model.parameters()])
        model(0).sum().backward()
    with noise.moved(0.4, 0) as signs:
        for moved, sign in zip(seen, signs, strict=True):
            assert sign in (1, -1)
            for p, wanted in zip(model.parameters(), moved, strict=True):
                torch.testing.assert_close(p.detach(), wanted, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    with pytest.raises(KeyboardInterrupt), noise.moved(0.4, 1) as signs:
        next(signs)
        assert not torch.equal(model.first.weight, before[0])
        raise KeyboardInterrupt
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_noise_raises_a_quadratic_loss_by_half_of_its_curvature_along_the_noise():
    problem = quadratic()
    noise = WeightNoise(problem.model)
    rises = []
    w = problem.model(0).detach()
    for draw in range(6):
        with noise.moved(0.3, draw) as signs:
            next(signs)
            n = problem.model(0).detach() - w
        rises.append(float(n @ SYMMETRIC @ n) / 2)
    (found,) = noise_sharpness(problem, noise, [0.3], draws=6)
    assert found.increase.value == pytest.approx(np.mean(rises), rel=1e-9)
    half = 2.5706 * np.std(rises, ddof=1) / math.sqrt(6)  # Student's t, 5 degrees of freedom
    assert found.increase.high - found.increase.value == pytest.approx(half, rel=1e-4)
    assert found.clean == pytest.approx(problem.value()) and found.nonfinite == 0


def test_the_prediction_from_the_trace_is_the_expected_rise():
    problem = quadratic()
    noise = WeightNoise(problem.model)
    operator = CurvatureOperator(problem, noise.params)
    found = layer_traces(operator, noise.params, noise.layers, probes=300)
    diagonal = SYMMETRIC.diagonal()
    wanted = 0.0
    for p, block in zip(noise.params, (diagonal[:12], diagonal[12:20]), strict=True):
        wanted += 0.3**2 / 2 * float(p.detach().square().sum()) / p.numel() * float(block.sum())
    predicted = predicted_sharpness(found, 0.3)
    assert predicted.low < wanted < predicted.high
    (measured,) = noise_sharpness(problem, noise, [0.3], draws=300)
    assert measured.increase.low < wanted < measured.increase.high


def test_the_worst_case_of_a_linear_loss_is_a_corner_of_the_box_and_sams_is_along_the_gradient():
    slope = torch.randn(24, dtype=torch.double)
    problem = objective(lambda w: w @ slope + 7)
    w = problem.model(0).detach()
    before = [p.clone() for p in problem.params]
    wanted = float((slope.abs() * 1e-2 * (w.abs() + 1)).sum())
    assert keskar_sharpness(problem, 1e-2) == pytest.approx(100 * wanted / (1 + problem.loss), rel=1e-6)
    assert sam_sharpness(problem, 0.3) == pytest.approx(0.3 * float(slope.norm()), rel=1e-9)
    assert all(torch.equal(p, b) for p, b in zip(problem.params, before, strict=True))
    flat = objective(lambda w: 0 * w.sum() + 1)
    assert sam_sharpness(flat) == 0 and keskar_sharpness(flat) == 0


def test_figures_that_are_not_finite_are_left_out_and_counted():
    model = Known()
    calls = []

    def figures():
        calls.append(1)
        return {"loss": math.inf if len(calls) in (2, 8) else 1.0 * len(calls)}

    (found,) = under_noise(figures, WeightNoise(model), [0.5], draws=4)["loss"]
    assert found.nonfinite == 2 and found.increase.value == pytest.approx(np.mean([3.5, 5.5]))
    (none,) = under_noise(lambda: {"loss": math.nan}, WeightNoise(model), [0.5], draws=2)["loss"]
    assert none.nonfinite == 2 and math.isnan(none.increase.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_too_coarse_for_the_box_are_refused(dtype):
    model = Known().to(dtype)
    with pytest.raises(ValueError, match=rf"{str(dtype).removeprefix('torch.')}.*give model\.float\(\)"):
        Objective(model, [0], model, lambda w, _: w.sum()[None])
    model.float()
    assert Objective(model, [0], model, lambda w, _: w.square().sum()[None]).loss > 0
