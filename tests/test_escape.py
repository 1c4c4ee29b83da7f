"""Escape: the estimator against known rates, formulas against quadrature, the simulator against exact passage times."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erf

from seqssgd.landscape.escape import METHODS, Passages, Rate, WeightNoise, first_passage, time_ratio
from seqssgd.landscape.escape_theory import kramers_rate, mean_first_passage, mori_exponent, xie_rate
from seqssgd.optim import OneSidedNoise, SymmetricNoise

CORRECTION = 0.5826  # -ζ(½)/√2π: by how many step deviations a barrier seems farther away if it is looked at in steps

# ---- the estimator ---------------------------------------------------------------------------------------------------


def exponential_passages(rate, count, limit, generator, repeats):
    times = generator.exponential(1 / rate, (repeats, count))
    return (times < limit).sum(1), np.minimum(times, limit).sum(1)


@pytest.mark.parametrize("limit", [0.3, 1.0, math.inf])
def test_the_interval_covers_the_true_rate_as_often_as_it_says(limit):
    escapes, exposures = exponential_passages(2.0, 20, limit, np.random.default_rng(0), 2000)
    rates = [Rate(int(d), float(t)) for d, t in zip(escapes, exposures, strict=True)]
    covered = np.mean([low <= 2.0 <= high for low, high in (rate.interval() for rate in rates)])
    assert 0.94 < covered < 0.985  # 0.95, or a little more as escapes are counted in whole numbers
    narrow = np.mean([low <= 2.0 <= high for low, high in (rate.interval(0.5) for rate in rates)])
    assert 0.48 < narrow < 0.65
    assert np.mean([rate.value for rate in rates]) == pytest.approx(2.0, rel=0.07)


def test_without_an_escape_the_bound_is_that_of_a_poisson_process():
    rate = Rate(0, 50.0)
    low, high = rate.interval()
    assert low == 0 and math.exp(-high * 50.0) == pytest.approx(0.025)
    assert rate.time == math.inf and rate.time_interval() == (1 / high, math.inf)


@pytest.mark.parametrize("slow", [0.5, 5.0])
def test_the_interval_of_a_ratio_covers_the_true_one_for_exponential_and_for_mixed_times(slow):
    """A third of the particles has another mean time: at 5, 16 of 0.5, escape is far from a Poisson process."""
    generator = np.random.default_rng(1)
    means = np.where(np.arange(60) % 3 == 0, slow, 0.5)
    covered, narrow = [], []
    for _ in range(400):
        one, other = (
            Passages((1.0,), torch.as_tensor(times).unsqueeze(0), torch.ones(1, 60, dtype=torch.bool), 0).rate(0)
            for times in (generator.exponential(means), generator.exponential(2.0, 60))
        )
        _, low, high = time_ratio(one, other)
        covered.append(low <= means.mean() / 2.0 <= high)
        _, low, high = time_ratio(Rate(60, one.exposure), Rate(60, other.exposure))
        narrow.append(low <= means.mean() / 2.0 <= high)
    assert 0.90 < np.mean(covered) < 0.98
    assert (np.mean(narrow) < 0.87) == (slow > 1)  # what an interval for Poisson processes would do
    with pytest.raises(ValueError, match="an escape in both"):
        time_ratio(Rate(0, 1.0), Rate(3, 1.0))


def made_passages(times, limit):
    times = torch.as_tensor(times)
    return Passages((1.0,), times.clamp(max=limit).unsqueeze(0), (times <= limit).unsqueeze(0), 0)


def test_two_spans_add_up_and_the_trend_tells_a_poisson_process_from_none():
    generator = np.random.default_rng(2)
    quick, slow = (np.ceil(generator.exponential(mean, 4000)).astype(int) for mean in (100, 2000))
    alike, mixed = made_passages(quick, 1000), made_passages(np.concatenate([quick, slow]), 1000)
    whole, early, late = (alike.rate(0, 0.5, *span) for span in ((), (0, 70), (70,)))
    assert early.escapes + late.escapes == whole.escapes and early.exposure + late.exposure == whole.exposure
    assert whole.time == pytest.approx(50, rel=0.05)
    assert alike.trend(0) == pytest.approx(1, rel=0.1) and mixed.trend(0) < 0.5
    assert alike.median(0, 0.5) == pytest.approx(50 * math.log(2), rel=0.05)
    assert made_passages(slow, 100).median(0) == math.inf and made_passages(slow, 100).trend(0) is None


# ---- the theories ----------------------------------------------------------------------------------------------------


def test_the_exact_passage_time_is_that_of_cases_solved_by_hand():
    flat = mean_first_passage(0.3, 2, 0, lambda x: 0, lambda x: 0.7)
    assert flat == pytest.approx((2**2 - 0.3**2) / (2 * 0.7), rel=1e-6)
    radial = mean_first_passage(1e-6, 2, 1e-6, lambda r: 4 * 0.7 / r, lambda r: 0.7)  # Brownian motion in 5 dimensions
    assert radial == pytest.approx(2**2 / (2 * 5 * 0.7), rel=1e-4)
    pulled = mean_first_passage(0, 1.5, -6, lambda x: -x, lambda x: 0.2)  # Ornstein-Uhlenbeck
    integral = quad(lambda u: math.exp(u * u) * (1 + erf(u)), 0, 1.5 / math.sqrt(0.4))[0]
    assert pulled == pytest.approx(math.sqrt(math.pi) * integral, rel=1e-5)
    with pytest.raises(ValueError, match="in this order"):
        mean_first_passage(2, 1, 0, lambda x: 0, lambda x: 1)


def exact_of_cubic(strength, height=1.0):
    """Out of x²/2·3 - x³ times ``height``: minimum 0 with H = 3, saddle 1 with H = -3, barrier ½."""
    return mean_first_passage(0, 1.8, -1.2, lambda x: -height * (3 * x - 3 * x * x), strength)


def test_kramers_rate_is_approached_as_the_barrier_grows():
    ratios = [1 / exact_of_cubic(lambda x, d=d: d) / kramers_rate(0.5, 3, -3, d) for d in (0.1, 0.05, 0.025)]
    assert all(abs(1 - low) < abs(1 - high) for high, low in zip(ratios, ratios[1:], strict=False))
    assert ratios[-1] == pytest.approx(1, rel=0.04)


def test_xie_rate_is_kramers_with_the_temperature_of_the_curvature():
    assert xie_rate(0.5, 3, -3, 0.02) == pytest.approx(kramers_rate(0.5, 3, -3, 0.03))
    # unequal curvatures, noise as assumed: D = ratio/2 times 3 up to half the height, times 5 from there on
    logs = {}
    for ratio in (0.03, 0.025):
        exact = exact_of_cubic(lambda x, r=ratio: r / 2 * (3 if x < 0.5 else 5))
        logs[ratio] = math.log(exact), -math.log(xie_rate(0.5, 3, -5, ratio))
    by_exact, by_formula = (logs[0.025][i] - logs[0.03][i] for i in (0, 1))
    assert by_exact == pytest.approx(by_formula, rel=0.01)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_mori_exponent_is_the_slope_of_exact_times_under_noise_that_grows_with_the_loss(dimensions):
    ratio, curvature = 0.4, 0.7

    def exact(level):
        loss = lambda r: 1 + 0.5 * curvature * r * r  # noqa: E731
        strength = lambda r: ratio * curvature * loss(r)  # noqa: E731
        drift = lambda r: -curvature * r + (dimensions - 1) / r * strength(r)  # noqa: E731
        return mean_first_passage(1e-6, math.sqrt(2 * (level - 1) / curvature), 1e-6, drift, strength)

    slope = math.log(exact(4000) / exact(1000)) / math.log(4)
    assert slope == pytest.approx(mori_exponent(curvature, ratio, dimensions), rel=0.01)


# ---- the simulator ---------------------------------------------------------------------------------------------------


def simulated(pull, strength, rate, level, count, reflected, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def step(weights):
        noise = torch.randn(weights[0].shape, generator=generator) * math.sqrt(2 * rate * strength)
        return [weights[0] * (1 - rate * pull) + noise]

    value = (lambda w: w[0].abs()) if reflected else (lambda w: w[0])
    return first_passage([torch.zeros(count)], step, value, [level], 20_000)


@pytest.mark.parametrize("pull, reflected", [(1.0, False), (0.0, True)])
def test_simulated_times_are_the_exact_ones_of_a_pulled_and_of_a_free_particle(pull, reflected):
    rate, strength, level = 0.02, 0.2, 1.0
    found = simulated(pull, strength, rate, level, 1500, reflected)
    assert found.passed.all() and found.diverged == 0
    seen = level + CORRECTION * math.sqrt(2 * strength * rate)
    exact = mean_first_passage(0, seen, 0 if reflected else -6, lambda x: -pull * x, lambda x: strength)
    low, high = found.rate(0, rate).time_interval(0.999)
    assert low < exact < high and high / low < 1.25


def test_passages_of_particles_of_known_speed():
    speeds = torch.tensor([0.0, 0.3, 1.0, 2.0, -1.0, math.nan])
    state = [torch.zeros(6), speeds]
    step = lambda w: [w[0] + w[1], w[1]]  # noqa: E731
    found = first_passage(state, step, lambda w: w[0], [1.0, 2.5], 12, every=2)
    assert found.steps.tolist() == [[12, 4, 2, 2, 12, 2], [12, 10, 4, 2, 12, 2]]
    assert found.passed.tolist() == [[False, True, True, True, False, True]] * 2
    assert found.diverged == 1
    rate = found.rate(1, 0.5)
    assert (rate.escapes, rate.exposure) == (4, (12 + 10 + 4 + 2 + 12 + 2) * 0.5)


def test_what_cannot_be_followed_is_refused():
    stay, first = (lambda w: w), (lambda w: w[0])
    for levels, steps, every, count, message in (
        ([2.0, 1.0], 4, 1, 1, "ascend"),
        ([], 4, 1, 1, "ascend"),
        ([1.0], 5, 2, 1, "multiple"),
        ([1.0], 4, 1, 0, "no particles"),
        ([-1.0], 4, 1, 1, "start above"),
    ):
        with pytest.raises(ValueError, match=message):
            first_passage([torch.zeros(count)], stay, first, levels, steps, every)


def test_one_seed_gives_one_result():
    runs = [simulated(1.0, 0.2, 0.05, 0.8, 50, False, seed) for seed in (3, 3, 4)]
    assert torch.equal(runs[0].steps, runs[1].steps) and not torch.equal(runs[0].steps, runs[2].steps)


# ---- weight noise ----------------------------------------------------------------------------------------------------


def losses(weights, batch):
    """Of particles with weights (P, 3, 4) and (P, 3) on minibatches (P, B, 4), the mean over B: (P,)."""
    first, second = weights
    return ((batch @ first.mT).sin() * second.unsqueeze(1)).sum(2).square().mean(1)


def gradients(weights, batch):
    weights = [w.detach().requires_grad_() for w in weights]
    return torch.autograd.grad(losses(weights, batch).sum(), weights)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_optimizers(method):
    torch.manual_seed(1)
    weights, batch = [torch.randn(5, 3, 4), torch.randn(5, 3)], torch.randn(5, 6, 4)
    noise = WeightNoise(method, [0.4, 0.0], seed=7)
    found = [noise.gradient(gradients, weights, batch) for _ in range(2)]  # two draws
    params = [torch.nn.Parameter(w.clone()) for w in weights]
    groups = [{"params": params[:1], "noise": 0.0 if method == "none" else 0.4}, {"params": params[1:], "noise": 0.0}]
    settings = {"granularity": "filter", "seed": 7}  # each particle is a filter
    base = torch.optim.SGD(groups, lr=0.0)
    if method == "one-sided":
        optimizer = OneSidedNoise(base, **settings)
    else:
        optimizer = SymmetricNoise(base, signs="halves" if method == "halves" else "batch", **settings)
    for one in found:
        for part in optimizer.passes():
            seen = part.take(batch, dim=1) if method == "halves" else batch
            losses(params, seen).sum().backward()
        for a, b in zip(one, params, strict=True):
            torch.testing.assert_close(a, b.grad, rtol=1e-5, atol=1e-6)
        optimizer.step()
        optimizer.zero_grad()


def test_the_perturbation_has_the_norm_of_the_level_for_every_particle():
    seen = []
    weights = [torch.randn(5, 3, 4) * torch.arange(1, 6).view(5, 1, 1), torch.randn(5, 3)]
    WeightNoise("pair", [0.4, 0.0]).gradient(lambda w, batch: seen.append(w) or w, weights)
    (plus, bias), (minus, _) = seen
    noise = (plus - weights[0]).flatten(1)
    torch.testing.assert_close(noise.norm(dim=1), 0.4 * weights[0].flatten(1).norm(dim=1))
    torch.testing.assert_close(plus + minus, 2 * weights[0])
    assert bias is weights[1]
    WeightNoise("one-sided", [0.4, 0.1], absolute=True).gradient(lambda w, batch: seen.append(w) or w, weights)
    torch.testing.assert_close((seen[-1][0] - weights[0]).abs(), torch.full((5, 3, 4), 0.4), rtol=1e-4, atol=1e-5)


def test_on_a_quadratic_loss_the_pair_is_plain_sgd_and_one_sided_noise_is_not():
    matrix = torch.randn(4, 4)
    gradient = lambda w, batch: [w[0] @ (matrix + matrix.T)]  # noqa: E731
    weights = [torch.randn(6, 4)]
    plain, pair, one = (WeightNoise(m, [0.5]).gradient(gradient, weights)[0] for m in ("none", "pair", "one-sided"))
    torch.testing.assert_close(pair, plain, rtol=1e-5, atol=1e-5)
    assert (one - plain).abs().max() > 0.1
    with pytest.raises(ValueError, match="method='both' must be one of none, one-sided"):
        WeightNoise("both", [0.5])
