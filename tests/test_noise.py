"""How one perturbation is drawn: its norm, its distribution, and that nothing in it depends on anything else.

Statistical bounds are five standard deviations of what independent draws would give, where a right program fails for
one seed in 1.7 million; seeds are fixed, so a test that passes once passes always.
"""

import copy
import itertools
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from seqssgd.optim import SymmetricNoise
from seqssgd.optim.noise import DISTRIBUTIONS, NORMS, NoiseSource
from seqssgd.optim.reference import scaled_noise, unit_noise

SIGMAS = 5


def perturbation(weights, levels=0.5, layers=None, draw=0, **options):
    """n for each of ``weights``; each weight is a layer unless ``layers`` says otherwise."""
    saved = [w.clone() for w in weights]
    weights = [w.clone() for w in weights]
    levels = [levels] * len(weights) if isinstance(levels, float) else levels
    layers = layers or [str(i) for i in range(len(weights))]
    NoiseSource(**options).add_(weights, saved, levels, layers, draw)
    return [a - b for a, b in zip(weights, saved, strict=True)]


def signs(count, **options):
    """Rademacher noise of a weight of ones, as ±1."""
    (n,) = perturbation([torch.ones(count, dtype=torch.float64)], levels=1.0, **options)
    return n.round()


# ---- norms -----------------------------------------------------------------------------------------------------------

SHAPES = {"rnn.weight_ih": (12, 5), "rnn.weight_hh": (12, 3), "conv": (5, 4, 3, 2), "gain": (7,), "scalar": ()}


@pytest.fixture
def weights():
    """Of very different sizes, so that a norm taken over the wrong unit is far off."""
    sizes = (1.0, 100.0, 1e-3, 10.0, 0.5)
    return [size * torch.randn(shape, dtype=torch.float64) for size, shape in zip(sizes, SHAPES.values(), strict=True)]


LAYERS = ["rnn", "rnn", "conv", "gain", "scalar"]


@pytest.mark.parametrize("granularity", NORMS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_unit_has_the_level_times_the_norm_of_its_weights(weights, distribution, granularity):
    noise = perturbation(weights, 0.3, LAYERS, distribution=distribution, granularity=granularity)
    if granularity == "tensor":
        units = [([w], [n]) for w, n in zip(weights, noise, strict=True)]
    elif granularity == "layer":
        units = [(weights[:2], noise[:2])] + [([w], [n]) for w, n in zip(weights[2:], noise[2:], strict=True)]
    else:
        pairs = [(w.view(len(w) if w.ndim else 1, -1), n) for w, n in zip(weights, noise, strict=True)]
        units = [([wf], [nf]) for w, n in pairs for wf, nf in zip(w, n.view(w.shape), strict=True)]
        assert len(units) == 12 + 12 + 5 + 7 + 1
    for unit_w, unit_n in units:
        norm_w, norm_n = (math.sqrt(sum(t.pow(2).sum().item() for t in unit)) for unit in (unit_w, unit_n))
        assert norm_n == pytest.approx(0.3 * norm_w, rel=1e-12)


def test_the_kernels_of_a_layer_share_one_magnitude(weights):
    w_ih, w_hh = weights[:2]
    n_ih, n_hh = perturbation([w_ih, w_hh], 0.3, ["rnn", "rnn"])
    rms = math.sqrt((w_ih.pow(2).sum() + w_hh.pow(2).sum()).item() / (w_ih.numel() + w_hh.numel()))
    for n in (n_ih, n_hh):
        torch.testing.assert_close(n.abs(), torch.full_like(n, 0.3 * rms), rtol=1e-12, atol=0)


def test_weights_of_one_call_may_have_different_levels(weights):
    levels = [0.0, 0.1, 0.2, 3.0, 0.5]
    for w, n, level in zip(weights, perturbation(weights, levels, granularity="tensor"), levels, strict=True):
        assert n.norm().item() == pytest.approx(level * w.norm().item(), rel=1e-12)


@pytest.mark.parametrize("granularity", NORMS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_weights_of_zero_norm_or_no_elements_get_no_noise_and_stay_finite(distribution, granularity):
    half_zero = torch.ones(4, 3)
    half_zero[1] = 0.0
    weights = [torch.zeros(3, 4), half_zero, torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(())]
    noise = perturbation(weights, distribution=distribution, granularity=granularity)
    assert all(n.isfinite().all() for n in noise)
    assert not noise[0].any() and not noise[4].any()
    assert noise[1].norm().item() > 0.5
    assert noise[1][1].any() == (granularity != "filter")  # a dead filter stays dead only if it is a unit


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float32, 1e-5), (torch.float64, 1e-12)],
    ids=["float16", "bfloat16", "float32", "float64"],
)
@pytest.mark.parametrize("granularity", NORMS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_type_of_weight_gets_the_norm_to_its_own_precision(dtype, precision, distribution, granularity):
    w = (0.02 * torch.randn(64, 1100, dtype=torch.float64)).to(dtype)  # squares that float16 could not sum
    (n,) = perturbation([w], 0.5, distribution=distribution, granularity=granularity)
    assert n.dtype == dtype
    dims = 1 if granularity == "filter" else (0, 1)
    ratios = torch.linalg.vector_norm(n.double(), dim=dims) / torch.linalg.vector_norm(w.double(), dim=dims)
    torch.testing.assert_close(ratios, torch.full_like(ratios, 0.5), rtol=precision, atol=0)


@pytest.mark.parametrize("granularity", ["filter_std", "absolute"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_without_a_fixed_norm_has_elements_of_the_level(weights, distribution, granularity):
    weights = weights[:4]
    noise = perturbation(weights, 0.3, distribution=distribution, granularity=granularity, seed=8)
    z = unit_noise([w.shape for w in weights], distribution, 8, 0, torch.float64)
    for n, wanted in zip(noise, scaled_noise(weights, z, 0.3, granularity, LAYERS), strict=True):
        torch.testing.assert_close(n, wanted, rtol=1e-9, atol=1e-12)
    (n,) = perturbation([torch.zeros(3, 4)], distribution=distribution, granularity=granularity)
    assert n.any() == (granularity == "absolute")


def laid_out(layout):
    """A parameter, and the storage around it."""
    storage = torch.randn(8, 6, 5, 4, dtype=torch.float64)
    weight = {
        "transposed": lambda: storage.transpose(0, 1),
        "channels_last": lambda: storage.to(memory_format=torch.channels_last),
        "strided": lambda: storage[:, ::2],
    }[layout]()
    assert not weight.is_contiguous()
    return nn.Parameter(weight), storage


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "strided"])
@pytest.mark.parametrize("granularity", NORMS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_weights_of_any_memory_layout_get_the_right_norm_and_reflection(layout, distribution, granularity):
    weight, storage = laid_out(layout)
    clean, around, stride = weight.detach().clone(), storage.clone(), weight.stride()
    group = {"params": [weight], "noise": 0.5}
    optimizer = SymmetricNoise(torch.optim.SGD([group], lr=0.1), distribution=distribution, granularity=granularity)
    noise = []
    for _ in optimizer.passes():
        noise.append(weight.detach() - clean)
        if layout == "strided":
            assert torch.equal(storage[:, 1::2], around[:, 1::2])  # the neighbours are not ours to move
    torch.testing.assert_close(noise[0], -noise[1], rtol=1e-9, atol=1e-12)
    for n, w in zip(noise[0], clean, strict=True) if granularity == "filter" else [(noise[0], clean)]:
        assert n.norm().item() == pytest.approx(0.5 * w.norm().item(), rel=1e-9)
    assert torch.equal(weight, clean) and torch.equal(storage, around) and weight.stride() == stride
    if distribution == "rademacher":  # the signs belong to the elements, not to their places in memory
        (plain,) = perturbation([clean.contiguous()], granularity=granularity)
        torch.testing.assert_close(noise[0], plain, rtol=1e-9, atol=1e-12)


# ---- distributions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 2**18 + 71])  # a chunk on the CPU is 2**18 elements
def test_signs_are_the_bits_of_the_generator_in_order(count):
    (slow,) = unit_noise([(count,)], "rademacher", seed=4, draw=2, dtype=torch.float64)
    assert torch.equal(signs(count, seed=4, draw=2), slow)


def test_rademacher_signs_are_fair_and_independent():
    count = 2**18
    z = signs(count)
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert abs(z.sum().item()) < SIGMAS * math.sqrt(count)
    by_bit = z.view(-1, 64).sum(0)  # every bit of the generator's 64-bit words
    assert by_bit.abs().max().item() < SIGMAS * math.sqrt(count / 64)
    for lag in range(1, 130):  # within bytes, between bytes, between words
        assert abs((z[:-lag] * z[lag:]).sum().item()) < SIGMAS * math.sqrt(count - lag), lag
    patterns = ((z.view(-1, 8) > 0) * 2 ** torch.arange(8)).sum(1).bincount(minlength=256).double()
    chi_square = ((patterns - count / 8 / 256) ** 2 / (count / 8 / 256)).sum().item()
    assert abs(chi_square - 255) < SIGMAS * math.sqrt(2 * 255)


def moments(distribution, count):
    (n,) = perturbation([torch.ones(count, dtype=torch.float64)], levels=1.0, distribution=distribution)
    assert n.pow(2).mean().item() == pytest.approx(1.0, rel=1e-12)
    assert abs(n.mean().item()) < SIGMAS / math.sqrt(count)
    return n


def test_gaussian_noise_is_gaussian():
    count = 2**17
    z = moments("gaussian", count)
    assert abs(z.pow(3).mean().item()) < SIGMAS * math.sqrt(6 / count)  # skewness 0, of variance 6/N
    assert z.pow(4).mean().item() == pytest.approx(3, abs=SIGMAS * math.sqrt(24 / count))  # kurtosis 3, 24/N
    for bound in (0.5, 1, 2, 3):
        share = math.erf(bound / math.sqrt(2))
        spread = math.sqrt(share * (1 - share) / count)
        assert (z.abs() < bound).double().mean().item() == pytest.approx(share, abs=SIGMAS * spread)


def test_uniform_noise_is_uniform():
    count = 2**17
    z = moments("uniform", count) / math.sqrt(3)  # unit variance on [-√3, √3]
    assert z.abs().max().item() == pytest.approx(1, abs=SIGMAS * math.sqrt(0.2 / count))  # the sample's norm varies
    counts = torch.histc(z.clamp(-1, 1), bins=16, min=-1, max=1)
    chi_square = ((counts - count / 16) ** 2 / (count / 16)).sum().item()
    assert chi_square < 15 + SIGMAS * math.sqrt(2 * 15)


# ---- what a perturbation depends on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_draws_and_seeds_and_tensors_are_uncorrelated(distribution):
    count = 2**14 + 5
    ones = [torch.ones(count, dtype=torch.float64)] * 2
    drawn = {
        (seed, draw, tensor): n
        for seed in (-1, 0, 1, 2**40)
        for draw in (0, 1, 2)
        for tensor, n in enumerate(perturbation(ones, 1.0, draw=draw, seed=seed, distribution=distribution))
    }
    assert len(drawn) == 24
    for (a, n), (b, m) in itertools.combinations(drawn.items(), 2):
        assert abs((n @ m).item()) < SIGMAS * math.sqrt(count), (a, b)


def test_a_perturbation_is_a_function_of_seed_and_draw_alone():
    weights = [torch.randn(30, 7), torch.randn(11)]
    source = NoiseSource("gaussian", seed=5)

    def drawn(source, draw):
        moved = [w.clone() for w in weights]
        source.add_(moved, weights, [0.5, 0.5], ["a", "b"], draw)
        return torch.cat([w.flatten() for w in moved])

    first = drawn(source, 3)
    drawn(source, 4)
    torch.rand(10)  # the global state does not matter, and is not moved
    state = torch.get_rng_state()
    for same in (source, NoiseSource("gaussian", seed=5), copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert torch.equal(drawn(same, 3), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{"distribution": "normal"}, {"granularity": "channel"}, {"granularity": None}])
def test_unknown_choices_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r} must be one of"):
        NoiseSource(**options)
    with pytest.raises(ValueError, match="must be one of"):
        SymmetricNoise(torch.optim.SGD([{"params": [nn.Parameter(torch.ones(2))], "noise": 0.1}], lr=0.1), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("granularity", ["layer", "tensor", "filter"])
def test_weights_too_coarse_for_their_level_are_told_of_once(dtype, granularity):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 64).to(dtype))
    group = {"params": [weight], "noise": 0.3}
    optimizer = SymmetricNoise(torch.optim.SGD([group], lr=0.1), granularity=granularity)
    clean = weight.detach().float().clone()
    told = []
    for level in (0.3, 0.2, 0.01, 0.001, 0.0001, 0.00001):  # as it falls
        optimizer.param_groups[0]["noise"] = level
        for _ in range(2):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for part in optimizer.passes():
                    if part.index == 0:
                        n = weight.detach().float() - clean
                optimizer.step(lambda: None)
            norm, still = (n.norm() / clean.norm() / level).item(), (n == 0).float().mean().item()
            told += [(level, str(warning.message)) for warning in caught]
            if caught:
                assert abs(norm - 1) > 0.05 or still > 0.2
                assert f"{level:g}, {still:.0%} of the {str(dtype)[6:]} weights stay" in told[-1][1]
                assert f"has {norm:.0%} of its norm" in told[-1][1]
            else:
                assert abs(norm - 1) <= 0.05 and still <= 0.2 or told
    assert [level for level, _ in told] == {torch.bfloat16: [0.001], torch.float16: [0.0001], torch.float32: []}[dtype]


def test_a_weight_without_dimensions_is_one_filter():
    """‖n‖ of one element of size 2, in the mean square of Gaussian draws."""
    assert NoiseSource("gaussian", "filter_std").norm([torch.tensor(2.0)], 0.3) == pytest.approx(0.6)
