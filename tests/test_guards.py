"""A step is what was asked for, or an error that says what to do: for every method, against the loop as documented."""

import copy
import gc
import pickle

import pytest
import torch
from peer_methods import HALVES, METHODS, X, Y, bits, losses_of, network, same_bits
from regression import equal, gradients, loss_of, regression, weights_of
from torch import nn

from seqssgd.optim import LambdaNoise, SinglePass, SymmetricNoise, noise_groups, schedules

every_method = pytest.mark.parametrize("name", METHODS)


def make(name, dtype=torch.float32, **options):
    model = network(dtype)
    return model, METHODS[name][0](model, lr=0.1, momentum=0.9, **options)


def loss_in(part, model):
    return part.mean(losses_of(model, *part.take(X, Y)))


def one_step(model, optimizer):
    for part in optimizer.passes():
        loss_in(part, model).backward()
    optimizer.step()
    optimizer.zero_grad()


def is_refused_and_then_as_good_as_new(name, wrong, words):
    """``wrong(model, optimizer)`` is an error with the weights untouched; what follows is as if it had not been."""
    model, optimizer = make(name)
    clean = bits(model)
    with pytest.raises(RuntimeError, match=words):
        wrong(model, optimizer)
    assert same_bits(bits(model), clean)
    model.zero_grad(set_to_none=False)
    optimizer.zero_grad()
    one_step(model, optimizer)
    other, reference = make(name)
    one_step(other, reference)
    if "covariance" not in name:  # its stream goes on with every loss that was weighed
        assert same_bits(bits(model), bits(other))


# ---- gradients that are lost inside a pass ---------------------------------------------------------------------------


def by_the_optimizer(model, optimizer):
    optimizer.zero_grad()


def by_the_model(model, optimizer):
    model.zero_grad()


def by_the_model_in_place(model, optimizer):
    model.zero_grad(set_to_none=False)


def by_hand(model, optimizer):
    for p in model.parameters():
        p.grad = None


@every_method
@pytest.mark.parametrize("clear", [by_the_optimizer, by_the_model, by_the_model_in_place, by_hand])
@pytest.mark.parametrize("when", ["before", "after"])
def test_clearing_gradients_inside_a_pass_is_refused(name, clear, when):
    if METHODS[name][2] == 1 and when == "before" and clear is not by_the_optimizer:
        return  # nothing is there yet to be lost
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

    is_refused_and_then_as_good_as_new(name, wrong, words)


@every_method
def test_gradients_that_are_set_by_hand_in_a_pass_are_refused(name):
    if METHODS[name][2] == 1:
        return  # there they are the gradients of the step

    def wrong(model, optimizer):
        for part in optimizer.passes():
            loss = loss_in(part, model)
            for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                p.grad = g
        optimizer.step()

    is_refused_and_then_as_good_as_new(name, wrong, "cleared, replaced or changed inside a pass")


@every_method
@pytest.mark.parametrize("skipped", ["first", "last"])
def test_a_pass_without_backward_is_refused(name, skipped):
    if METHODS[name][2] == 1:
        return

    def wrong(model, optimizer):
        for part in optimizer.passes():
            loss = loss_in(part, model)
            if part.last if skipped == "last" else part.index == 0:
                continue
            loss.backward()
        optimizer.step()

    is_refused_and_then_as_good_as_new(name, wrong, "no backward|found no gradient")


@every_method
def test_clipping_inside_the_passes_is_refused(name):
    def wrong(model, optimizer):
        for part in optimizer.passes():
            loss_in(part, model).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()

    is_refused_and_then_as_good_as_new(name, wrong, "clipping between the loop and step")


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

    is_refused_and_then_as_good_as_new(name, wrong, "did not come through passes|inside a pass")


@every_method
def test_passes_made_into_a_list_are_refused(name):
    if name in HALVES or "covariance" in name or "sam" in name:
        return  # they ask for what is missing in the loop themselves

    def wrong(model, optimizer):
        for part in list(optimizer.passes()):
            loss_in(part, model).backward()
        optimizer.step()

    is_refused_and_then_as_good_as_new(name, wrong, "list")


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


def one_step_of(model, optimizer):
    for _ in optimizer.passes():
        loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad()


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


# ---- what must go on working -----------------------------------------------------------------------------------------


def test_gradients_with_a_graph_of_their_own_accumulate():
    model, optimizer = regression()
    each = []
    with pytest.warns(UserWarning, match="create_graph=True"):
        for _ in optimizer.passes():
            each.append(torch.autograd.grad(loss_of(model), list(model.parameters())))
            loss_of(model).backward(create_graph=True)
    for p, a, b in zip(model.parameters(), *each, strict=True):
        torch.testing.assert_close(p.grad.detach(), (a + b) / 2)
    model.zero_grad()


def test_dense_gradients_on_top_of_sparse_ones_accumulate():
    table = nn.Embedding(5, 3, sparse=True)
    head = nn.Linear(3, 5)
    groups = [*noise_groups(table, 0.3), *noise_groups(head, 0.3)]
    optimizer = SymmetricNoise(torch.optim.SGD(groups, lr=0.1))
    seen = []
    for _ in optimizer.passes():
        for loss in (head(table(torch.tensor([1, 2]))).sum(), table.weight.square().sum()):
            seen.append(torch.autograd.grad(loss, table.weight, retain_graph=True)[0].to_dense())
            loss.backward()
    torch.testing.assert_close(table.weight.grad, sum(seen) / 2)
    optimizer.step()


def test_gradients_in_one_flat_buffer_accumulate():
    model, optimizer = regression()
    other, reference = regression()
    buffer = torch.zeros(sum(p.numel() for p in model.parameters()))
    start = 0
    for p in model.parameters():
        p.grad = buffer[start : start + p.numel()].view_as(p)
        start += p.numel()
    one_step_of(other, reference)
    for _ in optimizer.passes():
        loss_of(model).backward()
    optimizer.step()
    assert equal(weights_of(model), weights_of(other))


def test_the_watch_goes_with_its_optimizer_and_copies_have_their_own():
    model, optimizer = regression()
    weight = model[0].weight
    assert len(weight._post_accumulate_grad_hooks) == 1
    twin_model, twin = pickle.loads(pickle.dumps(copy.deepcopy((model, optimizer))))
    loss_of(model).backward()
    one_step_of(twin_model, twin)
    with pytest.raises(RuntimeError, match="did not come through"):
        one_step_of(model, optimizer)
    loss_of(twin_model).backward()
    with pytest.raises(RuntimeError, match="did not come through"):
        one_step_of(twin_model, twin)
    del optimizer
    gc.collect()
    assert not weight._post_accumulate_grad_hooks


def test_weights_that_join_later_are_watched():
    model, optimizer = regression()
    extra = nn.Parameter(torch.ones(3, 3))
    optimizer.add_param_group({"params": [extra], "noise": 0.1})
    extra.sum().backward()
    with pytest.raises(RuntimeError, match=r"shape \(3, 3\), did not come through"):
        next(optimizer.passes())


def test_an_optimizer_without_noise_is_left_alone():
    model = network(torch.float32)
    for optimizer in (SinglePass(torch.optim.SGD(model.parameters(), lr=0.1)), regression(noise=0.0)[1]):
        assert not any(p._post_accumulate_grad_hooks for group in optimizer.param_groups for p in group["params"])
        for _ in optimizer.passes():
            optimizer.zero_grad()
            losses_of(model).mean().backward()
        losses_of(model).mean().backward()
        optimizer.step()


def test_gradients_accumulate_without_noise_over_several_loops():
    model = network(torch.float32)
    for groups in (noise_groups(model, noise=0.0), noise_groups(model, noise=0.1)):
        optimizer = SymmetricNoise(torch.optim.SGD(groups, lr=0.0))
        gradients = []
        for minibatches in (1, 2):
            for _ in range(minibatches):  # the second loop finds gradients, and without noise no hook tells of more
                for _ in optimizer.passes():
                    losses_of(model).mean().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
            optimizer.step()
            optimizer.draws = 0  # the same noise once more
            optimizer.zero_grad()
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(2 * one, two)


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


@every_method
def test_a_step_after_passes_without_any_backward_is_refused(name):
    if name in HALVES or "covariance" in name or "sam" in name:
        return  # they ask for what is missing in the loop themselves

    def wrong(model, optimizer):
        for _ in optimizer.passes():
            pass
        optimizer.step()

    is_refused_and_then_as_good_as_new(name, wrong, "no pass had a backward")


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


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name][2] > 1])
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
    single = SymmetricNoise(
        torch.optim.SGD([{"params": [other[0].weight], "noise": 0.5}], lr=0.1), model=other, signs="steps"
    )
    for _ in single.passes():  # of one pass the sum is the mean
        loss_of(other).backward()
