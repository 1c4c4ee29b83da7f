"""Two base optimizers under one noise, two optimizers with noise of one model."""

import copy
import warnings

import pytest
import torch
from peer_methods import X, Y, bits, losses_of, network, same_bits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.func import functional_call
from twin import scaled_noise, unit_noise

from seqssgd.optim import LambdaNoise, SymmetricNoise, Together, noise_groups, schedules


def parts(model, level=0.4):
    return noise_groups(model, noise=level)


def make(model, level=0.4):
    matrices, rest = parts(model, level)
    return Together(torch.optim.Muon([matrices], lr=0.02), torch.optim.AdamW([rest], lr=0.01))


def train(model, optimizer, steps=1, source=None):
    for _ in range(steps):
        for _ in optimizer.passes():
            losses_of(model).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_muon_and_adamw_under_one_noise_step_as_the_explicit_twin():
    model, reference = network(), network()
    optimizer = SymmetricNoise(make(model), seed=5)
    matrices, rest = parts(reference)
    bases = torch.optim.Muon([matrices], lr=0.02), torch.optim.AdamW([rest], lr=0.01)
    names = [name for name, _ in reference.named_parameters()]
    moved = [i for i, p in enumerate(reference.parameters()) if p.ndim > 1]
    for step in range(4):
        train(model, optimizer)
        w = bits(reference)
        z = unit_noise([w[i].shape for i in moved], "rademacher", 5, step, torch.float64)
        noise = dict(zip(moved, scaled_noise([w[i] for i in moved], z, 0.4, "tensor", None), strict=True))
        each = []
        for sign in (1, -1):
            point = [(x + sign * noise.get(i, 0)).requires_grad_() for i, x in enumerate(w)]
            outputs = functional_call(reference, dict(zip(names, point, strict=True)), (X,))
            each.append(torch.autograd.grad(nn.functional.mse_loss(outputs, Y), point))
        for p, a, b in zip(reference.parameters(), *each, strict=True):
            p.grad = (a + b) / 2
        for base in bases:
            base.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def test_without_noise_they_step_as_they_do_alone():
    model, bare = network(), network()
    train(model, SymmetricNoise(make(model, 0.0)), 3)
    together = make(bare, 0.0)
    for _ in range(3):
        losses_of(bare).mean().backward()
        for base in together.optimizers:
            base.step()
        together.zero_grad()
    assert same_bits(bits(model), bits(bare))


@pytest.mark.parametrize("how", ["state_dict", "distributed"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(how):
    whole = network(torch.float32)
    train(whole, SymmetricNoise(make(whole)), 5)
    first = network(torch.float32)
    optimizer = SymmetricNoise(make(first))
    train(first, optimizer, 2)
    second = network(torch.float32)
    resumed = SymmetricNoise(make(second))
    if how == "state_dict":
        second.load_state_dict(first.state_dict())
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        saved = copy.deepcopy(get_state_dict(first, optimizer))
        set_state_dict(second, resumed, model_state_dict=saved[0], optim_state_dict=saved[1])
    assert resumed.draws == 2
    train(second, resumed, 3)
    assert same_bits(bits(second), bits(whole))


def test_schedulers_hooks_copies_and_groups_are_those_of_one_optimizer():
    model = network()
    optimizer = SymmetricNoise(make(model))
    noise = LambdaNoise(optimizer, schedules.phases("1-1S"))
    rates = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    own = torch.optim.lr_scheduler.StepLR(optimizer.base.optimizers[1], 1, gamma=0.5)
    calls = []
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("saving"))
    train(model, optimizer)
    for scheduler in (rates, own, noise):
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.0025]
    assert optimizer.param_groups[0]["noise"] == 0.4 and optimizer.draws == 0
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["saving", "loaded"]
    assert all(optimizer.param_groups[i] is o.param_groups[0] for i, o in enumerate(optimizer.base.optimizers))
    twin_model, twin = copy.deepcopy((model, optimizer))
    train(model, optimizer)
    train(twin_model, twin)
    assert same_bits(bits(model), bits(twin_model))
    extra = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="one of the optimizers"):
        optimizer.add_param_group({"params": [extra]})
    optimizer.base.optimizers[0].add_param_group({"params": [extra], "noise": 0.5})
    for _ in optimizer.passes():
        assert (extra - 1).norm().item() == pytest.approx(1.0)
        break


def test_what_cannot_go_together_is_refused():
    model = network()
    sgd = torch.optim.SGD(parts(model), lr=0.1)
    with pytest.raises(ValueError, match="several of the optimizers"):
        Together(sgd, torch.optim.Adam(model.parameters()))
    with pytest.raises(TypeError, match="first-order"):
        Together(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(TypeError, match="around all"):
        Together(SymmetricNoise(sgd))
    with pytest.raises(ValueError, match="an optimizer or more"):
        Together()
    both = make(model)
    with pytest.raises(ValueError, match="1 parameter groups, not 2"):
        both.load_state_dict({"state": {}, "param_groups": [{"params": [0]}]})


# ---- loops of two optimizers -----------------------------------------------------------------------------------------


def two(model):
    matrices, rest = parts(model)
    rest["noise"] = 0.1
    return [SymmetricNoise(torch.optim.SGD([group], lr=0.1), seed=i) for i, group in enumerate((matrices, rest))]


@pytest.mark.parametrize("strict", [False, True])
def test_two_loops_over_one_model_at_a_time_are_refused(strict):
    model = network()
    clean = bits(model)
    first, second = two(model)
    with pytest.raises(RuntimeError, match="Together"):
        for _ in first.passes():
            for _ in second.passes():
                losses_of(model).mean().backward()
    assert same_bits(bits(model), clean)
    model.zero_grad()
    first, second = two(model)
    with pytest.raises(RuntimeError, match="Together"):
        for _ in zip(first.passes(), second.passes(), strict=strict):
            losses_of(model).mean().backward()
    assert same_bits(bits(model), clean)


def test_one_after_the_other_they_are_refused_unless_the_gradients_are_cleared():
    model = network()
    first, second = two(model)
    for _ in first.passes():
        losses_of(model).mean().backward()
    with pytest.raises(RuntimeError, match="did not come through passes"):
        next(second.passes())
    first.step()
    model.zero_grad()
    for _ in second.passes():
        losses_of(model).mean().backward()
    second.step()


def test_loops_over_two_models_may_lie_inside_each_other():
    model, inner = network(), network()
    optimizer, inner_optimizer = SymmetricNoise(make(model)), SymmetricNoise(make(inner), seed=1)
    for _ in optimizer.passes():
        train(inner, inner_optimizer)
        losses_of(model).mean().backward()
    optimizer.step()
    alone = network()
    train(alone, SymmetricNoise(make(alone)))
    assert same_bits(bits(model), bits(alone))


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_two_optimizers_of_one_loss_with_the_same_seed_are_told_of(seeds):
    generator, judge = network(), nn.Linear(2, 1).double()
    first, second = (
        SymmetricNoise(torch.optim.SGD(noise_groups(net, 0.1), lr=0.1), seed=seed)
        for net, seed in zip((generator, judge), seeds, strict=True)
    )

    def step():
        for net, optimizer in ((generator, first), (judge, second)):
            judge.zero_grad()
            for _ in optimizer.passes():
                judge(generator(X) if net is generator else generator(X).detach()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    assert [("the same seed (0)" in str(warning.message)) for warning in caught] == [True] * (seeds[0] == seeds[1])
