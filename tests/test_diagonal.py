"""The estimate of the Hessian's diagonal between the passes and the step: loops that went wrong leave nothing in it."""

import pytest
import torch
from peer_methods import METHODS, X, bits, losses_of, network, same_bits
from torch import nn

from seqssgd.optim import IVON

every_estimate = pytest.mark.parametrize("name", ["ivon", "ivon_batch", "ivon_steps", "ssgd_shaped"])


def make(name):
    model = network()
    return model, METHODS[name][0](model, lr=0.1)


def one_loop(model, optimizer, factor=1.0):
    for part in optimizer.passes():
        (factor * part.mean(losses_of(model))).backward()


def step(model, optimizer):
    one_loop(model, optimizer)
    optimizer.step()
    optimizer.zero_grad()


def takes_the_steps_of_a_new_one(name, model, optimizer):
    return takes_the_steps_of_another(model, optimizer, *make(name))


def takes_the_steps_of_another(model, optimizer, other_model, other):
    for _ in range(3):
        step(model, optimizer)
        step(other_model, other)
    return same_bits(bits(model), bits(other_model))


@every_estimate
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_loop_that_overflowed_and_was_cleared_is_forgotten(name, set_to_none):
    model, optimizer = make(name)
    one_loop(model, optimizer, float("inf"))
    optimizer.zero_grad(set_to_none=set_to_none)
    assert takes_the_steps_of_a_new_one(name, model, optimizer)


@every_estimate
def test_a_loop_of_gradients_that_are_zero_gives_an_estimate_of_zero(name):
    model, optimizer = make(name)
    one_loop(model, optimizer, 0.0)
    for p in model.parameters():
        p.grad.add_(1)  # by hand, as a penalty would: what the sum of the passes is scaled by is 1/0
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    states = [optimizer.state[p] for p in model.parameters()]
    assert all(state["hess"].isfinite().all() for state in states if "hess" in state)
    assert all(mean.eq(0).all() for mean in optimizer.position().get("means", {}).values())


@every_estimate
def test_gradients_that_are_replaced_before_the_step_keep_their_estimate(name):
    """As by ``p.grad = clip(p.grad)``: what is in them counts, not which tensors they are."""
    found = []
    for how in ("mul_", "mul"):
        model, optimizer = make(name)
        for _ in range(4):
            one_loop(model, optimizer)
            for p in model.parameters():
                p.grad = getattr(p.grad, how)(0.5)
            optimizer.step()
            optimizer.zero_grad()
        found.append(bits(model))
    assert same_bits(*found)


CHANGES = {
    "decay": lambda p: p.grad.add_(p.detach(), alpha=3.0),
    "signs": lambda p: p.grad.sign_(),
    "clipped": lambda p: p.grad.clamp_(-1e-3, 1e-3),
    "another's": lambda p: p.grad.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1))),
}


@pytest.mark.parametrize("name", ["ivon", "ivon_batch", "ssgd_shaped"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_no_scaling_of_a_gradient_leaves_the_estimate_alone(name, change):
    found = []
    for changes in (lambda p: None, change, lambda p: p.grad.mul_(0.5)):
        model, optimizer = make(name)
        one_loop(model, optimizer)
        for p in model.parameters():
            if p.numel() > 1:
                changes(p)
        optimizer.step()
        states = [optimizer.state[p].get("hess") for p in model.parameters()]
        means = [*optimizer.position().get("means", {}).values()]
        found.append([tensor for tensor in (*states, *means) if tensor is not None])
    plain, changed, scaled = found
    assert plain and all(map(torch.equal, plain, changed))
    assert not all(map(torch.equal, plain, scaled))


@every_estimate
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_elements_that_are_made_finite_before_the_step_leave_finite_estimates(name, bad):
    model, optimizer = make(name)
    for step in range(6):
        for part in optimizer.passes():
            extra = bad * model(X)[:, 0].sum() if step in (2, 3) else 0.0  # of the last layer's first row
            (part.mean(losses_of(model)) + extra).backward()
        for p in model.parameters():
            p.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(mean.isfinite().all() for mean in optimizer.position().get("means", {}).values())


@every_estimate
def test_the_estimate_of_a_step_that_was_skipped_is_gone_though_a_gradient_is_put_there_by_hand(name):
    model, optimizer = make(name)
    one_loop(model, optimizer, 100.0)
    optimizer.zero_grad()
    fresh, reference = make(name)
    for network_of, each in ((model, optimizer), (fresh, reference)):
        for p in network_of.parameters():
            p.grad = torch.full_like(p, 0.1)
        step(network_of, each)
    assert takes_the_steps_of_another(model, optimizer, fresh, reference)


def test_a_loop_that_was_left_half_way_is_in_no_later_estimate():
    """The weight that it has seen has no gradient in the first pass of the next loop."""
    found = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)]).double()
        optimizer = IVON(model.parameters(), 0.1, ess=50.0, signs="batch")
        if interrupted:
            for part in optimizer.passes():
                (model[0](X) + model[1](X)).square().mean().backward()
                if part.last:
                    break
            optimizer.zero_grad()
        for part in optimizer.passes():
            outputs = model[0](X) + (model[1](X) if part.last else 0)
            outputs.square().mean().backward()
        optimizer.step()
        found.append([optimizer.state[p]["hess"].clone() for p in model.parameters()])
    assert same_bits(*found)
