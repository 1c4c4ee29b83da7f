"""Schedules of the noise level and of the learning rate, against torch's own and against sums done by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LambdaLR, MultiStepLR

from seqssgd.optim import LambdaNoise, SymmetricNoise, noise_groups
from seqssgd.optim.schedules import cosine, phases, ramp, sgdr, steps, zaremba_decay

# ---- the functions ---------------------------------------------------------------------------------------------------


def rates_of(make_scheduler, count):
    """Learning rates of ``count`` epochs for an initial rate of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("factor", "torchs_own"),
    [
        (sgdr(10), lambda o: CosineAnnealingWarmRestarts(o, T_0=10, T_mult=2)),
        (sgdr(3, 3), lambda o: CosineAnnealingWarmRestarts(o, T_0=3, T_mult=3)),
        (sgdr(7, 1), lambda o: CosineAnnealingWarmRestarts(o, T_0=7, T_mult=1)),
        (sgdr(1), lambda o: CosineAnnealingWarmRestarts(o, T_0=1, T_mult=2)),
        (steps([20, 45]), lambda o: MultiStepLR(o, [20, 45], gamma=0.1)),
        (steps([45, 20, 20], 5), lambda o: MultiStepLR(o, [45, 20, 20], gamma=0.2)),
        (steps([0, 3]), lambda o: LambdaLR(o, lambda t: 0.1 if t < 3 else 0.01)),
        (steps([]), lambda o: MultiStepLR(o, [])),
    ],
)
def test_sgdr_and_steps_are_those_of_torch(factor, torchs_own):
    expected = rates_of(torchs_own, 75)
    assert [factor(t) for t in range(75)] == pytest.approx(expected, abs=1e-12)
    assert rates_of(lambda o: LambdaLR(o, factor), 75) == pytest.approx(expected, abs=1e-12)


def test_cosine_is_that_of_torch_and_then_stays_at_zero():
    assert [cosine(30)(t) for t in range(31)] == pytest.approx(
        rates_of(lambda o: CosineAnnealingLR(o, 30), 31), abs=1e-12
    )
    assert {cosine(30)(t) for t in (30, 31, 60, 10**6)} == {0.0}


def test_sgdr_restarts_where_loshchilov_and_hutter_say():
    # T_0 = 10, T_mult = 2: restarts at 10 (2^k - 1); halfway through each period the rate is one half
    factor = sgdr(10)
    starts = [10 * (2**k - 1) for k in range(6)]
    assert [t for t in range(320) if factor(t) == 1.0] == starts
    for k, start in enumerate(starts):
        assert factor(start + 5 * 2**k) == pytest.approx(0.5)
        assert factor(start + 10 * 2**k - 1) == pytest.approx(math.sin(math.pi / 20 / 2**k) ** 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("75-25S-25S", [0] * 75 + [1] * 50 + [1] * 20),  # Table 1 of Sung et al. 2020
        ("3-2S-4-1S-2", [0] * 3 + [1] * 2 + [0] * 4 + [1] + [0] * 10),
        ("2S-3", [1] * 2 + [0] * 9),
        ("5S", [1] * 9),
        ("5", [0] * 9),
        ("0-4S", [1] * 9),
        (" 1-1S ", [0] + [1] * 5),
    ],
)
def test_phases_switch_where_they_are_written(text, expected):
    factor = phases(text)
    assert [factor(t) for t in range(len(expected))] == expected


@pytest.mark.parametrize(
    "text", ["", "S", "75-", "-75S", "75s", "75-25S,25S", "7.5-2S", "75--25S", "75-25SS", "75 25S"]
)
def test_phases_that_cannot_be_read_are_refused(text):
    with pytest.raises(ValueError, match="phases .*: write lengths joined by hyphens"):
        phases(text)


@pytest.mark.parametrize(("start", "length"), [(0, 0), (3, 0), (0, 4), (3, 5)])
def test_a_ramp_rises_by_equal_steps(start, length):
    rising = [k / length for k in range(length)]  # the level is full once `length` has passed since the start
    expected = [0.0] * start + rising + [1.0] * 5
    assert [ramp(start, length)(t) for t in range(len(expected))] == pytest.approx(expected)


def test_zarembas_decay_is_that_of_his_program():
    # the program counts epochs from 1 and divides after an epoch once it has passed max_epoch
    for max_epoch, divisor in ((4, 2.0), (6, 1.2), (14, 1.15)):
        rate, expected = 1.0, []
        for epoch in range(1, 40):
            expected.append(rate)
            if epoch > max_epoch:
                rate /= divisor
        assert [zaremba_decay(max_epoch, divisor)(t) for t in range(39)] == pytest.approx(expected)
    assert zaremba_decay(4, 2)(10**6) == 0.0  # and no overflow


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ramp(-1, 3), "ramp"),
        (lambda: ramp(1, -3), "ramp"),
        (lambda: zaremba_decay(-1, 2), "zaremba_decay"),
        (lambda: zaremba_decay(4, 0.5), "divisor"),
        (lambda: zaremba_decay(4, float("nan")), "divisor"),
        (lambda: steps([3], 0.1), "divisor"),
        (lambda: steps([3], float("nan")), "divisor"),
        (lambda: sgdr(0), "sgdr"),
        (lambda: sgdr(5, 0), "sgdr"),
        (lambda: cosine(0), "cosine"),
    ],
)
def test_impossible_arguments_are_refused_at_once(make, word):
    with pytest.raises(ValueError, match=word):
        make()


# ---- LambdaNoise -----------------------------------------------------------------------------------------------------


def regression(noise=0.5):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=noise), lr=0.1))


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def train_step(model, optimizer):
    parts = []
    for part in optimizer.passes():
        parts.append(part.sign)
        model(X).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return parts


def test_noise_that_goes_and_comes_makes_one_pass_and_two_again():
    model, optimizer = regression()
    noise = LambdaNoise(optimizer, phases("1S-2-1S"))
    signs = []
    for _ in range(5):
        signs.append(train_step(model, optimizer))
        noise.step()
    assert signs == [[1, -1], [0], [0], [1, -1], [1, -1]]
    assert optimizer.draws == 3  # steps without noise use none of the stream


def test_steps_without_noise_are_the_bare_optimizers_and_its_state_goes_on():
    model, optimizer = regression()
    noise = LambdaNoise(optimizer, phases("1S-2"))
    train_step(model, optimizer)
    noise.step()
    bare = copy.deepcopy(model)
    base = torch.optim.Adam(bare.parameters(), lr=0.1)
    for p, q in zip(model.parameters(), bare.parameters(), strict=True):
        base.state[q] = copy.deepcopy(optimizer.state[p])
    for _ in range(2):
        train_step(model, optimizer)
        bare(X).square().sum().backward()
        base.step()
        base.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), bare.parameters(), strict=True))


def test_every_group_keeps_its_own_initial_level():
    model, optimizer = regression()
    noise = LambdaNoise(optimizer, ramp(0, 4))
    assert noise.get_last_level() == [0.0, 0.0]
    noise.step()
    noise.step()
    late = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [late], "noise": 0.2})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})  # without a level
    noise.step()
    assert noise.get_last_level() == pytest.approx([0.5 * 0.75, 0.0, 0.2 * 0.75, 0.0])
    noise.step()
    noise.step()
    assert noise.get_last_level() == [0.5, 0.0, 0.2, 0.0] == [g["noise"] for g in optimizer.param_groups]


def test_it_schedules_the_noise_beside_the_learning_rate():
    model, optimizer = regression()
    noise, rate = LambdaNoise(optimizer, cosine(4)), LambdaLR(optimizer, zaremba_decay(1, 2))
    for epoch in range(6):
        group = optimizer.param_groups[0]
        assert group["noise"] == pytest.approx(0.5 * cosine(4)(epoch))
        assert group["lr"] == pytest.approx(0.1 * zaremba_decay(1, 2)(epoch))
        train_step(model, optimizer)
        noise.step()
        rate.step()


@pytest.mark.parametrize(
    "order", ["schedule first", "optimizer first", "schedule built last", "schedule built last and not loaded"]
)
def test_a_resumed_schedule_goes_on_as_if_nothing_had_been(order, tmp_path):
    def build():
        model, optimizer = regression()
        return model, optimizer, LambdaNoise(optimizer, ramp(1, 4))

    def train(model, optimizer, noise, count):
        for _ in range(count):
            train_step(model, optimizer)
            noise.step()

    whole = build()
    train(*whole, 7)
    first = build()
    train(*first, 3)
    torch.save([part.state_dict() for part in first], tmp_path / "c.pt")
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    if "built last" in order:
        model, optimizer = regression()
        optimizer.load_state_dict(saved[1])
        noise = LambdaNoise(optimizer, ramp(1, 4))  # the initial levels are in the optimizer's checkpoint
        assert noise.get_last_level() == [0.25, 0.0] and noise.time == 3
        if order == "schedule built last":
            noise.load_state_dict(saved[2])
    else:
        model, optimizer, noise = build()
        pairs = [(noise, saved[2]), (optimizer, saved[1])]
        for part, state in pairs if order == "schedule first" else reversed(pairs):
            part.load_state_dict(state)
    model.load_state_dict(saved[0])
    assert noise.get_last_level() == first[2].get_last_level() == [0.25, 0.0]
    train(model, optimizer, noise, 4)
    assert noise.get_last_level() == [0.5, 0.0]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole[0].parameters(), strict=True))


def test_a_schedule_that_gives_an_impossible_level_is_noticed_before_the_weights_move():
    model, optimizer = regression()
    optimizer.param_groups[0]["noise"] = -0.5  # by a schedule of one's own
    clean = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="noise level of parameter group 0 .* -0.5"):
        train_step(model, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), clean, strict=True))


def test_what_is_no_optimizer_no_schedule_or_no_text_is_refused():
    _, optimizer = regression()
    for make, word in (
        (lambda: LambdaNoise(torch.nn.Linear(2, 2), ramp(1, 2)), "takes an optimizer"),
        (lambda: LambdaNoise(optimizer, "75-25S"), r"such as phases\('75-25S'\)"),
        (lambda: phases(75), "phases 75: write lengths"),
    ):
        with pytest.raises((TypeError, ValueError), match=word):
            make()


def test_a_noise_schedule_of_an_optimizer_without_levels_is_refused():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r'no group of the optimizer has a "noise" entry'):
        LambdaNoise(optimizer, phases("1-2S"))
    assert "noise" not in optimizer.param_groups[0]


@pytest.mark.parametrize("factor", [None, -1.0, math.inf, math.nan])
def test_a_factor_that_is_none_is_refused(factor):
    optimizer = torch.optim.SGD(noise_groups(nn.Linear(2, 2), noise=0.4), lr=0.1)
    with pytest.raises(ValueError, match="at time 0 is .*, not a finite number >= 0"):
        LambdaNoise(optimizer, lambda time: factor)
    assert optimizer.param_groups[0]["noise"] == 0.4
