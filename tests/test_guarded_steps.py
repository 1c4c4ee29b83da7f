"""A step is what was asked for, or an error that says what to do: closures, levels that come late, loops taken back."""

import pytest
import torch
from peer_methods import bits, same_bits
from refusals import (
    assert_refused_and_then_as_good_as_new,
    by_hand,
    by_the_model,
    by_the_optimizer,
    loss_in,
    make,
    methods_of_several_passes,
    methods_that_ask_at_the_step,
    one_step,
    one_step_of,
)
from regression import equal, loss_of, regression, weights_of
from torch import nn

from seqssgd.optim import SymmetricNoise, noise_groups

# ---- closures --------------------------------------------------------------------------------------------------------


def test_a_closure_that_clips_every_pass_is_refused():
    model, optimizer = regression()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        return loss

    with pytest.raises(RuntimeError, match="clipping between the loop and step"):
        optimizer.step(closure)


@pytest.mark.parametrize("clear", [None, by_the_optimizer, by_the_model, by_hand])
def test_a_closure_on_top_of_gradients_from_outside_is_refused_unless_it_clears_them(clear):
    """As trainers accumulate: the closures of all minibatches but the last are called without a step."""
    model, optimizer = regression()
    other, reference = regression()

    def closure():
        if clear is not None:
            clear(model, optimizer)
        loss = loss_of(model)
        loss.backward()
        return loss

    closure()
    if clear is None:
        with pytest.raises(RuntimeError, match="a trainer that accumulates"):
            optimizer.step(closure)
        return
    optimizer.step(closure)
    one_step_of(other, reference)
    assert equal(weights_of(model), weights_of(other))


def test_a_closure_with_a_backward_of_its_own_after_a_loop_is_refused():
    model, optimizer = regression()
    for _ in optimizer.passes():
        loss_of(model).backward()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="did not come through passes"):
        optimizer.step(closure)


# ---- levels that come late, loops that are taken back ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["set", "loaded"])
def test_noise_that_comes_after_the_optimizer_asks_for_passes_at_once(how):
    model, optimizer = regression(noise=0.0)
    if how == "set":
        optimizer.param_groups[0]["noise"] = 0.5
    else:
        optimizer.load_state_dict(regression()[1].state_dict())
        assert model[0].weight._post_accumulate_grad_hooks
    clean = weights_of(model)
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="without passes"):
        optimizer.step()
    assert equal(weights_of(model), clean)


@methods_that_ask_at_the_step
def test_a_step_after_passes_without_any_backward_is_refused(name):
    def wrong(model, optimizer):
        for _ in optimizer.passes():
            pass
        optimizer.step()

    assert_refused_and_then_as_good_as_new(name, wrong, "no pass had a backward")


@pytest.mark.parametrize("gradients_of", ["zeros", "none"])
def test_a_step_on_gradients_that_were_only_cleared_is_refused(gradients_of):
    model, optimizer = regression()
    one_step_of(model, optimizer)
    clean = weights_of(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if gradients_of == "zeros" else None
    for _ in optimizer.passes():
        loss_of(model)
    with pytest.raises(RuntimeError, match="no pass had a backward"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="no pass had a backward"):
        regression()[1].step(lambda: loss_of(model))
    assert equal(weights_of(model), clean)


def test_passes_may_be_without_backward_where_that_is_meant():
    model, optimizer = regression()
    clean = weights_of(model)
    optimizer.step(lambda: None)  # a closure that skips its minibatch
    assert equal(weights_of(model), clean)
    summed = [torch.zeros_like(p) for p in model.parameters()]
    for _ in optimizer.passes():
        for total, g in zip(summed, torch.autograd.grad(loss_of(model), list(model.parameters())), strict=True):
            total.add_(g / 2)
    for p, total in zip(model.parameters(), summed, strict=True):
        p.grad = total  # by hand
    optimizer.step()
    assert not equal(weights_of(model), clean)


def test_a_loop_that_zero_grad_took_back_is_none():
    model, optimizer = regression()
    other, reference = regression()
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in optimizer.passes():
        loss_of(model).backward()
    optimizer.zero_grad()  # the minibatch is skipped
    with pytest.raises(RuntimeError, match="without passes"):
        optimizer.step()
    assert optimizer.draws == 0
    optimizer.step(closure)
    one_step_of(other, reference)
    assert len(calls) == 2 and equal(weights_of(model), weights_of(other))


@pytest.mark.parametrize("how", ["break", "error"])
def test_a_loop_that_is_left_with_its_iterator_in_a_variable_says_how_to_end_it(how):
    model, optimizer = regression()
    clean = weights_of(model)
    it = optimizer.passes()
    try:
        for _ in it:
            loss_of(model).backward()
            if how == "error":
                raise ValueError
            break
    except ValueError:
        pass
    for forbidden in (optimizer.step, optimizer.zero_grad, optimizer.state_dict, optimizer.passes):
        with pytest.raises(RuntimeError, match=r"it\.close\(\)"):
            forbidden()
    it.close()
    assert equal(weights_of(model), clean)
    optimizer.zero_grad()
    one_step_of(model, optimizer)
    other, reference = regression()
    one_step_of(other, reference)
    assert equal(weights_of(model), weights_of(other))


@methods_of_several_passes
def test_a_weight_that_is_frozen_inside_a_loop_is_moved_and_brought_back_in_it_all_the_same(name):
    model, optimizer = make(name)
    clean = bits(model)
    for part in optimizer.passes():
        loss_in(part, model).backward()
        model[0].weight.requires_grad_(False)
    assert same_bits(bits(model), clean)
    optimizer.step()
    optimizer.zero_grad()
    frozen = model[0].weight.detach().clone()
    for _ in optimizer.passes():  # and from the next one on it is left alone
        assert torch.equal(model[0].weight, frozen)
        break


def test_a_closure_that_returns_no_loss_is_named():
    model, optimizer = regression()
    clean = weights_of(model)

    def closure():
        loss = loss_of(model)
        loss.backward()
        return loss, {"outputs": None}

    with pytest.raises(TypeError, match="the closure must return the loss, a tensor or a number, not tuple"):
        optimizer.step(closure)
    assert equal(weights_of(model), clean)


def test_a_trained_parameter_in_no_group_is_named():
    model, other = regression()[0], regression()[0]
    clean = weights_of(model)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    optimizer = SymmetricNoise(torch.optim.SGD([{"params": matrices, "noise": 0.5}], lr=0.1), model=model)
    beside = torch.optim.SGD([p for p in model.parameters() if p.ndim == 1], lr=0.1)
    with pytest.raises(ValueError, match=r"not by this optimizer: 0\.bias, 2\.bias\. .*sum over the passes"):
        next(optimizer.passes())
    assert equal(weights_of(model), clean)
    optimizer.zero_grad()
    for p in beside.param_groups[0]["params"]:
        p.requires_grad_(False)
    one_step_of(model, optimizer)
    assert not torch.equal(model[0].weight, clean["0.weight"])
    model[0].bias.requires_grad_(True)  # thawed later on
    with pytest.raises(ValueError, match=r"not by this optimizer: 0\.bias\. "):
        one_step_of(model, optimizer)
    model[0].bias.requires_grad_(False)
    model[2] = nn.Linear(model[2].in_features, model[2].out_features)  # as many, but others
    with pytest.raises(ValueError, match=r"not by this optimizer: 2\.weight, 2\.bias\. "):
        one_step_of(model, optimizer)
    single = SymmetricNoise(
        torch.optim.SGD([{"params": [other[0].weight], "noise": 0.5}], lr=0.1), model=other, signs="steps"
    )
    for _ in single.passes():  # of one pass the sum is the mean
        loss_of(other).backward()


class DroppedWeights(nn.Module):
    """As weight dropout is often written: what it makes of a weight takes the place of a parameter."""

    def __init__(self):
        super().__init__()
        self.inner, self.raw = nn.Linear(4, 2), nn.Parameter(torch.ones(2, 4))

    def forward(self, x):
        self.inner._parameters["weight"] = nn.functional.dropout(self.raw)
        return self.inner(x)


def test_a_weight_that_is_computed_in_the_place_of_a_parameter_is_not_taken_for_one():
    model = DroppedWeights()
    del model.inner.weight
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, 0.5), lr=0.1), model=model)
    for _ in range(2):
        one_step_of(model, optimizer)
    assert not torch.equal(model.raw, torch.ones(2, 4))


# ---- states of other methods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "saved, other, said",
    [
        ("ivon", "ssgd_shaped", "factors on the posterior's standard deviation, and of this ShapedNoise fractions"),
        ("ssgd_balanced", "ivon", "fractions of the norm of the weights, and of this IVON factors"),
        ("graves", "weight_noise", "the size of n, and of this OneSidedNoise fractions of the norm of the weights"),
        ("mrwp", "dropconnect", "fractions of the norm of a filter, and of this DropConnect probabilities"),
        ("dropconnect", "covariance", "probabilities of dropping a weight, and of this CovarianceNoise factors"),
    ],
)
def test_levels_of_another_unit_are_refused(saved, other, said):
    state, (_, optimizer) = make(saved)[1].state_dict(), make(other)
    levels = [group["noise"] for group in optimizer.param_groups]
    by_groups_alone = {key: value for key, value in state.items() if key != "perturbation"}  # as after DCP
    for found in (state, by_groups_alone):
        with pytest.raises(ValueError, match=said):
            optimizer.load_state_dict(found)
        assert [group["noise"] for group in optimizer.param_groups] == levels


def test_levels_of_a_state_without_a_unit_are_taken_as_they_are():
    """As earlier versions saved it."""
    state, (_, optimizer) = make("graves", level=0.07)[1].state_dict(), make("weight_noise")
    del state["perturbation"]["unit"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["noise"] == 0.07


# ---- steps that fail -------------------------------------------------------------------------------------------------


def leaves_half_way(model, optimizer):
    """A step whose base optimizer is interrupted before it has done anything."""
    step = optimizer.base.step

    def interrupted():
        optimizer.base.step = step
        raise KeyboardInterrupt

    optimizer.base.step = interrupted
    for part in optimizer.passes():
        loss_in(part, model).backward()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()


@pytest.mark.parametrize("name", ["ssgd_shaped_step", "ssgd_balanced", "ivon", "ivon_square", "ivon_steps"])
def test_a_step_that_was_interrupted_is_made_whole_by_another(name):
    trained = []
    for interrupted in (False, True):
        model, optimizer = make(name)
        for _ in range(4):
            if interrupted:
                leaves_half_way(model, optimizer)
            else:
                for part in optimizer.passes():
                    loss_in(part, model).backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.append((bits(model), optimizer.draws))
    assert same_bits(trained[0][0], trained[1][0]) and trained[0][1] == trained[1][1] == 4


@pytest.mark.parametrize("clear", [None, by_the_optimizer, by_the_model])
def test_no_loop_adds_to_the_gradients_of_a_step_that_failed(clear):
    model, optimizer = make("ssgd_shaped_step")
    one_step(model, optimizer)
    leaves_half_way(model, optimizer)
    if clear is None:
        with pytest.raises(RuntimeError, match=r"or of a step\(\) that failed"):
            one_step(model, optimizer)
        optimizer.zero_grad()
    else:
        clear(model, optimizer)
    one_step(model, optimizer)
    assert optimizer.draws == 2


def test_a_step_that_failed_while_it_changed_gradients_is_not_made_of_them():
    model, optimizer = make("ssgd_shaped_step")
    for part in optimizer.passes():
        loss_in(part, model).backward()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optimizer.shape, "precondition", lambda entries: (_ for _ in ()).throw(KeyboardInterrupt))
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"step\(\) after a pass loop, or a step\(\), that was left half-way"):
        optimizer.step()
    optimizer.zero_grad()
    one_step(model, optimizer)
