"""How the tests of the guards make a method, clear its gradients, and see that it refuses and goes on."""

import pytest
import torch
from peer_methods import HALVES, METHODS, X, Y, bits, losses_of, network, same_bits
from regression import loss_of

every_method = pytest.mark.parametrize("name", METHODS)
# Some make one pass a step: what it leaves are the gradients of the step, and nothing is there yet to be lost.
SEVERAL_PASSES = [name for name in METHODS if METHODS[name][2] > 1]
methods_of_several_passes = pytest.mark.parametrize("name", SEVERAL_PASSES)
# Some ask for what is missing while the loop runs, before there is a step to be refused.
methods_that_ask_at_the_step = pytest.mark.parametrize(
    "name", [name for name in METHODS if not (name in HALVES or "covariance" in name or "sam" in name)]
)


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


def assert_refused_and_then_as_good_as_new(name, wrong, words):
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


def one_step_of(model, optimizer):
    for _ in optimizer.passes():
        loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad()


def by_the_optimizer(model, optimizer):
    optimizer.zero_grad()


def by_the_model(model, optimizer):
    model.zero_grad()


def by_the_model_in_place(model, optimizer):
    model.zero_grad(set_to_none=False)


def by_hand(model, optimizer):
    for p in model.parameters():
        p.grad = None
