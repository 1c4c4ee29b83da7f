"""What only some of the methods have: radii by group, a momentum to look along, moments of the gradients."""

import pytest
import torch
from peer_methods import METHODS, bits, loss_of, losses_of, make, network, same_bits, train
from torch import nn

from seqssgd.optim import (
    MRWP,
    MSAM,
    NSO,
    SAM,
    CovarianceNoise,
    DropConnect,
    OneSidedNoise,
    ShapedNoise,
    SymmetricNoise,
    WeightAverage,
    noise_groups,
)


def test_sam_moves_and_measures_only_groups_with_a_radius_of_their_own():
    model, wanted = network(), network()
    matrices, biases = [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]
    groups = [{"params": matrices, "rho": 0.3}, {"params": biases, "rho": 0.0}]
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.7)
    for part in optimizer.passes():
        if part.index == 1:
            moved = [p - q for p, q in zip(model.parameters(), wanted.parameters(), strict=True)]
            assert torch.cat([x.flatten() for x in moved]).norm().item() == pytest.approx(0.3)
            assert not moved[1].any() and not moved[3].any()
        loss_of(model).backward()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert optimizer.param_groups[-1]["rho"] == 0.7  # as any other default of the base optimizer


def test_impossible_settings_are_refused_at_once():
    weight = nn.Parameter(torch.ones(2, 2))

    def base(level=0.1):
        return torch.optim.SGD([{"params": [weight], "noise": level}], lr=0.1)

    for build, word in (
        (lambda: OneSidedNoise(base(), copies=0), "copies=0"),
        (lambda: OneSidedNoise(base(), copies=1.5), "copies=1.5"),
        (lambda: NSO(base(), pairs=0), "pairs=0"),
        (lambda: NSO(base(), clean_weight=1.0), "clean_weight=1.0"),
        (lambda: MRWP(base(), clean_weight=float("nan")), "clean_weight=nan"),
        (lambda: DropConnect(base(1.0)), "must be below 1, not 1.0"),
        (lambda: SAM(torch.optim.SGD([weight], lr=0.1), rho=-1.0), "not -1.0"),
        (lambda: SAM(torch.optim.SGD([weight], lr=0.1), eta=0.0), "eta=0.0"),
        (lambda: SAM(torch.optim.SGD([weight], lr=0.1), adaptive="no"), "adaptive='no' must be True or False"),
        (lambda: SymmetricNoise(base(), balance="no"), "balance='no' must be True or False"),
        (lambda: ShapedNoise(base(), precondition=1), "precondition=1 must be True or False"),
        (lambda: CovarianceNoise(torch.optim.SGD([weight], lr=0.1), noise=0.1, centred=None), "centred=None must be"),
        (lambda: MSAM(torch.optim.SGD([weight], lr=0.1, momentum=0.9), rho=-1.0), "not -1.0"),
        (lambda: MSAM(torch.optim.SGD([weight], lr=0.1), rho=0.1), "has none: give SGD momentum=0.9"),
        (lambda: MSAM(torch.optim.Adagrad([weight]), rho=0.1), "has none: give Adagrad"),
        (lambda: OneSidedNoise(torch.optim.SGD([weight], lr=0.1)), "noise_groups"),
        (lambda: CovarianceNoise(torch.optim.SGD([weight], lr=0.1), noise=-1.0), "not -1.0"),
        (lambda: CovarianceNoise(torch.optim.SGD(noise_groups(network(), 0.1), lr=0.1), noise=0.1), "one level"),
        (lambda: WeightAverage(torch.optim.SGD([weight], lr=0.1), network(), decay=1.0), "decay=1.0"),
        (lambda: WeightAverage(torch.optim.SGD([weight], lr=0.1), network(), start=-1), "start=-1"),
    ):
        with pytest.raises(ValueError, match=word):
            build()


def test_what_a_method_needs_in_the_loop_it_asks_for():
    for name, word in (("sam", "backward"), ("mrwp", "part.take"), ("covariance", "part.mean")):
        model, optimizer = make(name)
        clean = bits(model)
        with pytest.raises(RuntimeError, match=word):
            for _ in optimizer.passes():
                pass
        assert same_bits(bits(model), clean)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RMSprop"])
def test_momentum_sam_looks_along_the_momentum_of_any_optimizer_that_has_some(name):
    model = network()
    settings = {"momentum": 0.9} if name == "RMSprop" else {}
    base = getattr(torch.optim, name)(model.parameters(), lr=0.01, **settings)
    optimizer = MSAM(base, rho=0.2)
    train(model, optimizer, 2)
    key = "momentum_buffer" if settings else "exp_avg"
    momentum = torch.cat([base.state[p][key].flatten() for p in model.parameters()])
    clean = torch.cat([w.flatten() for w in bits(model)])
    for part in optimizer.passes():
        moved = torch.cat([w.flatten() for w in bits(model)]) - clean
        torch.testing.assert_close(moved, -0.2 * momentum / momentum.norm())
        part.mean(losses_of(model)).backward()


def test_momentum_sam_refuses_a_momentum_that_it_cannot_find():
    class Velocity(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                state["velocity"] = state.pop("momentum_buffer")

    model = network()
    optimizer = MSAM(Velocity(model.parameters(), lr=0.1, momentum=0.9), rho=0.2)
    with pytest.raises(
        ValueError, match=r"the state of Velocity has none under the name .* \(velocity\); take another"
    ):
        train(model, optimizer, 2)


@pytest.mark.parametrize("name", ["sam", "asam", "msam", "ssgd_shaped", "ivon", "ivon_batch", "ivon_square"])
def test_sparse_gradients_are_refused_where_they_cannot_be_reckoned_with(name):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(4, 3, sparse=True), nn.Linear(3, 2)

    model = Words()
    optimizer = METHODS[name][0](model, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="takes no sparse gradients, as of nn.Embedding"):
        for _ in range(2):
            for _ in optimizer.passes():
                model.out(model.table(torch.arange(2))).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", ["sam", "asam", "msam"])
@pytest.mark.parametrize("factor", [0.0, 1e-4])  # nothing, and so little that 1/norm is beyond float16
def test_ascents_in_float16_take_gradients_of_any_size(name, factor):
    model, optimizer = make(name, dtype=torch.float16)
    level = next(iter(optimizer.param_groups))[optimizer.level_key]
    for _ in range(2):
        for part in optimizer.passes():
            moved = sum((entry.weight - entry.saved).float().square().sum() for entry in optimizer.entries()) ** 0.5
            (part.mean(losses_of(model)) * factor).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.isfinite().all() for p in model.parameters())
    assert moved == 0 or abs(moved / level - 1) < 0.05 or (factor and name == "asam")


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_covariance_noise_has_the_second_moments_of_the_gradients_or_their_diagonal(diagonal, centred):
    """Over 1,000 draws; the bounds are five standard deviations of an entry of the estimate."""
    weight, s, draws = nn.Parameter(torch.zeros(3, dtype=torch.float64)), 2.0, 1000
    examples = torch.tensor([[1.0, 0.5, 0.0], [2.0, -1.0, 1.0], [0.0, 1.0, 3.0], [1.0, 1.0, 1.0]]).double()
    optimizer = CovarianceNoise(torch.optim.SGD([weight], lr=0.0), noise=s, diagonal=diagonal, centred=centred)
    noise = torch.empty(draws, 3, dtype=torch.float64)
    for draw in range(draws):
        for part in optimizer.passes():
            part.mean(examples @ weight).backward()  # the gradients are the examples
        noise[draw] = weight.grad - examples.mean(0)
        optimizer.step()
        optimizer.zero_grad()
    rows = examples - centred * examples.mean(0)
    wanted = s**2 / 4 * (rows.T @ rows / 4)
    if diagonal:
        wanted = wanted.diag().diag()
    size = (s**2 / 4 * (rows.T @ rows / 4)).diag().sqrt()
    bound = 5 * (2 / draws) ** 0.5 * torch.outer(size, size)
    assert ((noise.T @ noise / draws - wanted).abs() < bound).all()
    assert (noise.mean(0).abs() < 5 * size / draws**0.5).all()
