"""A base optimizer is stepped by the one that wraps it, or the noise of a step would be that of the one before."""

import copy
import gc
import pickle

import pytest
import torch
from regression import loss_of, regression
from torch.optim.lr_scheduler import LambdaLR

from seqssgd.optim import SymmetricNoise, Together, noise_groups


def gradients_of(model, optimizer):
    for _ in optimizer.passes():
        loss_of(model).backward()


@pytest.mark.parametrize("how", ["step", "closure", "scaler"])
def test_a_step_of_the_base_past_its_wrapper_is_refused_and_changes_nothing(how):
    model, optimizer = regression()
    before = copy.deepcopy(model.state_dict())
    gradients_of(model, optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) of \w+ past the SymmetricNoise that wraps it.*gradient scalers"):
        if how == "scaler":
            torch.amp.GradScaler("cpu", enabled=False).step(optimizer.base)
        else:
            optimizer.base.step(*[lambda: None] * (how == "closure"))
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    optimizer.step()
    assert optimizer.draws == 1


def test_copies_without_a_wrapper_and_bases_whose_wrapper_is_gone_step_by_themselves():
    model, optimizer = regression()
    base = optimizer.base
    optimizer.scheduler = LambdaLR(optimizer, lambda _: 1.0)  # a circle, which only the garbage collector ends
    copies = copy.deepcopy(base), pickle.loads(pickle.dumps(base))
    for each in copies:
        each.step()
    gc.disable()
    try:
        del optimizer
        base.step()
    finally:
        gc.enable()
    again = SymmetricNoise(base)
    with pytest.raises(RuntimeError, match="past the SymmetricNoise"):
        base.step()
    again = copy.deepcopy(again)
    with pytest.raises(RuntimeError, match="past the SymmetricNoise"):
        again.base.step()


def test_a_base_that_several_wrap_is_stepped_by_each_of_them():
    model, first = regression()
    second = SymmetricNoise(first.base, seed=1)
    for optimizer in (first, second, first):
        gradients_of(model, optimizer)
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="past the"):
        first.base.step()


def test_optimizers_that_were_put_together_are_not_stepped_one_by_one():
    model, _ = regression()
    matrices, rest = noise_groups(model, noise=0.3)
    parts = torch.optim.SGD([matrices], lr=0.1), torch.optim.SGD([rest], lr=0.1)
    optimizer = SymmetricNoise(Together(*parts))
    gradients_of(model, optimizer)
    for part in parts:
        with pytest.raises(RuntimeError, match="step.. of SGD past the SymmetricNoise"):
            part.step()
    optimizer.step()


def test_a_base_without_noise_and_an_empty_step_are_left_alone():
    model, _ = regression()
    plain = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.0), lr=0.1))
    plain.base.step()
    still = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.3), lr=0.0))
    still.base.step()  # as a checkpointing library makes the state
    still.param_groups[0]["lr"] = 0.1
    with pytest.raises(RuntimeError, match="past the"):
        still.base.step()
