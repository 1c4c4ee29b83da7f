"""Two base optimizers under one noise, two optimizers with noise of one model."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peer_methods import X, Y, bits, losses_of, network, same_bits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.func import functional_call

from seqssgd.optim import LambdaNoise, SymmetricNoise, Together, noise_groups, schedules
from seqssgd.optim.reference import scaled_noise, unit_noise


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


class Counting(torch.optim.SGD):
    """With a state dict of its own, as wrappers have."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        return super().step(closure)

    def state_dict(self):
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})


class Switching(torch.optim.SGD):
    calls = ()

    def train(self):
        self.calls += ("train",)

    def eval(self):
        self.calls += ("eval",)


def test_a_state_dict_of_its_own_is_kept_whole():
    models, optimizers = [network() for _ in range(2)], []
    for model in models:
        matrices, rest = parts(model)
        bases = torch.optim.Adam([matrices], lr=0.1), Counting([rest], lr=0.1, momentum=0.9)
        optimizers.append(SymmetricNoise(Together(*bases)))
    train(models[0], optimizers[0], 3)
    state = copy.deepcopy(optimizers[0].state_dict())
    assert list(state["state"]) == [0, 1, 2, 3]  # numbered as those of one optimizer
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(state)
    assert optimizers[1].base.optimizers[1].count == 3
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 2)
    assert same_bits(bits(models[0]), bits(models[1]))
    del state["own"]  # as distributed checkpoints do
    with pytest.raises(KeyError, match="count"):
        optimizers[1].load_state_dict(state)


def test_the_state_dict_is_that_of_one_optimizer():
    model, reference = network(), network()
    groups = [parts(net) for net in (model, reference)]
    both = Together(torch.optim.Adam([groups[0][0]], lr=0.1), torch.optim.Adam([groups[0][1]], lr=0.1))
    one = torch.optim.Adam(groups[1], lr=0.1)
    for net, optimizer in ((model, both), (reference, one)):
        losses_of(net).mean().backward()
        optimizer.step()
    found, wanted = both.state_dict(), one.state_dict()
    assert list(found) == list(wanted) and found["param_groups"] == wanted["param_groups"]
    torch.testing.assert_close(found["state"], wanted["state"], rtol=0, atol=0)


def test_train_and_eval_inside_a_pass_are_nothing_where_nobody_switches():
    model = network()
    optimizer = SymmetricNoise(make(model))
    for _ in optimizer.passes():
        optimizer.train()  # as Hugging Face's Trainer does at every minibatch
        optimizer.eval()
    matrices, rest = parts(model)
    rest["train_mode"] = True  # as ScheduleFree keeps it, in its groups
    silent, telling = Switching([matrices], lr=0.1), Switching([rest], lr=0.1)
    optimizer = SymmetricNoise(Together(silent, telling))
    for mode in ("train", "eval"):
        for _ in optimizer.passes():
            with pytest.raises(RuntimeError, match=rf"cannot call {mode}\(\) inside"):
                getattr(optimizer, mode)()
            break
    optimizer = SymmetricNoise(Together(torch.optim.SGD([matrices], lr=0.1), telling))
    model.zero_grad()
    for _ in optimizer.passes():
        optimizer.train()
        with pytest.raises(RuntimeError, match=r"cannot call eval\(\) inside"):
            optimizer.eval()
        break
    assert telling.calls == ()
    optimizer.eval()
    assert telling.calls == ("eval",)


def test_a_base_may_be_a_wrapper_without_defaults():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

        def step(self, closure=None):
            self.inner.step()

        def zero_grad(self, set_to_none=True):
            self.inner.zero_grad(set_to_none)

        def state_dict(self):
            return self.inner.state_dict()

        def load_state_dict(self, state_dict):
            self.inner.load_state_dict(state_dict)
            self.param_groups, self.state = self.inner.param_groups, self.inner.state

    model, plain = network(), network()
    matrices, rest = parts(model)
    wrapped = Together(Wrapper(torch.optim.SGD([matrices], lr=0.1)), torch.optim.SGD([rest], lr=0.2))
    optimizer = SymmetricNoise(wrapped)
    assert optimizer.defaults["lr"] == 0.2
    matrices, rest = parts(plain)
    bare = Together(torch.optim.SGD([matrices], lr=0.1), torch.optim.SGD([rest], lr=0.2))
    train(model, optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer)
    train(plain, SymmetricNoise(bare), 3)
    assert same_bits(bits(model), bits(plain))


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
        for _ in range(3):  # the two are told of once
            step()
    assert [("the same seed (0)" in str(warning.message)) for warning in caught] == [True] * (seeds[0] == seeds[1])


def test_loops_of_other_threads_are_not_taken_for_those_of_one_loss():
    one, other = network(), network()
    first, second = (SymmetricNoise(torch.optim.SGD(noise_groups(net, 0.1), lr=0.1)) for net in (one, other))
    train(one, first)
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(1) as elsewhere:
        warnings.simplefilter("always")
        loop = elsewhere.submit(second.passes).result()
        elsewhere.submit(next, loop).result()  # under way there, while here gradients come from outside a loop
        losses_of(one).mean().backward()
        elsewhere.submit(loop.close).result()
        first.zero_grad()
        train(one, first)
    assert not caught
