"""A step is what was asked for, or an error that says what to do: gradients that are lost, changed, or from elsewhere.

For every method, against the loop as documented. Steps and loops are in ``test_guarded_steps.py``, what must go on
working in ``test_guards_permit.py``.
"""

import pytest
import torch
from peer_methods import METHODS, bits, losses_of, network
from refusals import (
    SEVERAL_PASSES,
    assert_refused_and_then_as_good_as_new,
    by_hand,
    by_the_model,
    by_the_model_in_place,
    by_the_optimizer,
    every_method,
    loss_in,
    make,
    methods_of_several_passes,
    methods_that_ask_at_the_step,
)
from regression import equal, gradients, loss_of, regression, weights_of
from torch import nn

from seqssgd.optim import LambdaNoise, SymmetricNoise, noise_groups, schedules

# ---- gradients that are lost inside a pass ---------------------------------------------------------------------------


CLEARINGS = (by_the_optimizer, by_the_model, by_the_model_in_place, by_hand)


@pytest.mark.parametrize(
    ("name", "clear", "when"),
    [(name, clear, "after") for name in METHODS for clear in CLEARINGS]
    + [(name, by_the_optimizer, "before") for name in METHODS]
    + [(name, clear, "before") for name in SEVERAL_PASSES for clear in CLEARINGS[1:]],
)
def test_clearing_gradients_inside_a_pass_is_refused(name, clear, when):
    if "sam" in name and when == "after" and clear in (by_the_model, by_hand):
        words = "inside a pass|found no gradient"
    else:
        words = "inside a pass|inside a loop over passes"

    def wrong(model, optimizer):
        for part in optimizer.passes():
            if when == "before":
                clear(model, optimizer)
            loss_in(part, model).backward()
            if when == "after":
                clear(model, optimizer)
        optimizer.step()

    assert_refused_and_then_as_good_as_new(name, wrong, words)


@methods_of_several_passes
def test_gradients_that_are_set_by_hand_in_a_pass_are_refused(name):
    def wrong(model, optimizer):
        for part in optimizer.passes():
            loss = loss_in(part, model)
            for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                p.grad = g
        optimizer.step()

    assert_refused_and_then_as_good_as_new(name, wrong, "cleared, replaced or changed inside a pass")


@methods_of_several_passes
@pytest.mark.parametrize("skipped", ["first", "last"])
def test_a_pass_without_backward_is_refused(name, skipped):
    def wrong(model, optimizer):
        for part in optimizer.passes():
            loss = loss_in(part, model)
            if part.last if skipped == "last" else part.index == 0:
                continue
            loss.backward()
        optimizer.step()

    assert_refused_and_then_as_good_as_new(name, wrong, "no backward|found no gradient")


@every_method
def test_clipping_inside_the_passes_is_refused(name):
    def wrong(model, optimizer):
        for part in optimizer.passes():
            loss_in(part, model).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()

    assert_refused_and_then_as_good_as_new(name, wrong, "clipping between the loop and step")


# ---- gradients from elsewhere ----------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("where", ["before", "after", "between", "broken"])
def test_gradients_from_outside_a_pass_loop_are_refused(name, where):
    def wrong(model, optimizer):
        def plain():
            losses_of(model).mean().backward()

        if where == "before":
            plain()
        if where == "broken":
            for part in optimizer.passes():
                loss_in(part, model).backward()
                break
        for part in optimizer.passes():
            loss_in(part, model).backward()
        if where == "between":
            plain()
            for part in optimizer.passes():
                loss_in(part, model).backward()
        if where == "after":
            plain()
        optimizer.step()

    assert_refused_and_then_as_good_as_new(name, wrong, "did not come through passes|inside a pass")


@methods_that_ask_at_the_step
def test_passes_made_into_a_list_are_refused(name):
    def wrong(model, optimizer):
        for part in list(optimizer.passes()):
            loss_in(part, model).backward()
        optimizer.step()

    assert_refused_and_then_as_good_as_new(name, wrong, "list")


@pytest.mark.parametrize("clear", [by_the_optimizer, by_the_model, by_the_model_in_place, by_hand])
def test_gradients_from_outside_do_no_harm_once_they_are_cleared(clear):
    """As in adversarial training: the loss of one network leaves gradients in the other."""
    model, optimizer = regression()
    other, reference = regression()
    for _ in range(2):
        loss_of(model).backward()
        clear(model, optimizer)
        for one, its_optimizer in ((model, optimizer), (other, reference)):
            for _ in its_optimizer.passes():
                loss_of(one).backward()
            its_optimizer.step()
            one.zero_grad()
    assert equal(weights_of(model), weights_of(other))


def test_what_is_done_to_the_mean_gradient_before_the_step_is_left_to_the_user():
    model, optimizer = regression()
    for _ in optimizer.passes():
        loss_of(model).backward()
    wanted = [0.5 * g + 0.1 * p for g, p in zip(gradients(model), bits(model), strict=True)]
    with torch.no_grad():
        for p in model.parameters():
            p.grad.mul_(0.5).add_(p, alpha=0.1)  # clipping, a penalty, gradient noise
    before = bits(model)
    optimizer.step()
    for p, q, g in zip(model.parameters(), before, wanted, strict=True):
        torch.testing.assert_close(p.detach(), q - 0.1 * g)


def test_a_late_phase_asks_for_the_pass_loop_in_the_first_step():
    for level_is_zero in (
        lambda optimizer: LambdaNoise(optimizer, schedules.phases("75-25S")),
        lambda optimizer: optimizer.param_groups[0].update(noise=0.0),
    ):
        model, optimizer = regression()
        level_is_zero(optimizer)
        loss_of(model).backward()
        with pytest.raises(RuntimeError, match="without passes"):
            optimizer.step()
    model = network()
    base = torch.optim.SGD(noise_groups(model, 0.5), lr=0.1)
    LambdaNoise(base, schedules.phases("75-25S"))  # before there is an optimizer with noise
    optimizer = SymmetricNoise(base)
    losses_of(model).mean().backward()
    with pytest.raises(RuntimeError, match="without passes"):
        optimizer.step()


@every_method
def test_a_clean_phase_is_as_strict(name):
    model, optimizer = make(name)
    LambdaNoise(optimizer, schedules.ramp(3, 0))
    losses_of(model).mean().backward()
    with pytest.raises(RuntimeError, match="did not come through passes"):
        for _ in optimizer.passes():
            pass
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="inside a loop over passes"):
        for _ in optimizer.passes():
            optimizer.zero_grad()
