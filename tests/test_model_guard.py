"""Perturbed weights are nobody's: not saved, not evaluated, not changed by the model itself."""

import copy
import io
import pickle

import pytest
import torch
from peer_methods import METHODS, X, bits, losses_of, network, same_bits
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from seqssgd.optim import SymmetricNoise, noise_groups


def make(model, **options):
    return SymmetricNoise(torch.optim.SGD(noise_groups(model, 0.5), lr=0.1), model=model, **options)


def evaluate(model):
    model.eval()
    try:
        return model(X)
    finally:
        model.train()


def without_gradients(model):
    model.eval()
    with torch.no_grad():
        return model(X)


USES = {
    "state_dict": lambda model: model.state_dict(),
    "wrapped": lambda model: nn.ModuleDict({"model": model}).state_dict(),
    "save": lambda model: torch.save(model, io.BytesIO()),
    "copy": lambda model: copy.deepcopy(model),
    "average": lambda model: AveragedModel(model),
    "evaluation": evaluate,
    "no_grad": without_gradients,
}


@pytest.mark.parametrize("use", USES)
def test_a_model_is_neither_saved_nor_evaluated_inside_a_pass(use):
    model = network()
    optimizer = make(model)
    clean = bits(model)
    USES[use](model)
    model.train()
    for index in range(2):
        with pytest.raises(RuntimeError, match="inside a loop over passes"):
            for part in optimizer.passes():
                losses_of(model).mean().backward()
                if part.index == index:
                    USES[use](model)
        assert same_bits(bits(model), clean)
        model.zero_grad()
        model.train()
        USES[use](model)
        model.train()
    for group in optimizer.param_groups:
        group["noise"] = 0.0
    for _ in optimizer.passes():  # nothing is perturbed
        USES[use](model)


def test_a_network_may_be_trained_in_evaluation_mode_and_looked_at_in_training_mode():
    model = network().eval()
    optimizer = make(model)
    for _ in optimizer.passes():
        losses_of(model).mean().backward()
    optimizer.step()
    model.train()
    looked = []
    for _ in optimizer.passes():
        with torch.no_grad():
            looked.append(model(X))
    assert len(looked) == 2 and not torch.equal(*looked)  # the network as it is perturbed, at either sign


def test_copies_and_saved_models_are_free_and_guards_go_with_their_optimizer():
    model = network()
    optimizer = make(model)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for _ in optimizer.passes():
        twin.state_dict()
        twin.eval()(X)
    other_model, other = copy.deepcopy((model, optimizer))
    with pytest.raises(RuntimeError, match="inside a loop"):
        for _ in other.passes():
            other_model.state_dict()
    assert b"seqssgd" not in pickle.dumps(model)  # which is then read where this package is not installed
    del optimizer
    assert not model._state_dict_pre_hooks and not model._forward_pre_hooks


WRAPPERS = {"DataParallel": nn.DataParallel, "compiled": lambda model: torch.compile(model, backend="eager")}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_the_model_inside_a_wrapper_is_guarded_too(wrap):
    model = network()
    wrapper = WRAPPERS[wrap](model)
    optimizer = make(wrapper)
    for use in ("state_dict", "evaluation", "copy"):
        with pytest.raises(RuntimeError, match="inside a loop over passes"):
            for _ in optimizer.passes():
                losses_of(model).mean().backward()
                USES[use](model)
        model.zero_grad()
        model.train()
        USES[use](model)
        model.train()


def test_a_layer_is_not_saved_inside_a_pass():
    model = network()
    optimizer = make(model)
    with pytest.raises(RuntimeError, match=r"for functional_call take dict\(model.named_parameters\(\)\)"):
        for _ in optimizer.passes():
            model[0].state_dict()


def test_terms_of_the_loss_that_need_no_gradient_are_no_evaluation():
    """Re-entrant checkpoints and pseudo-labels, of a model that was in evaluation mode before the loop."""
    model = network().eval()
    optimizer = make(model)
    for _ in optimizer.passes():
        with torch.no_grad():
            model(X)
        inputs = X.clone().requires_grad_()
        checkpoint(model, inputs, use_reentrant=True).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    model.train()
    with pytest.raises(RuntimeError, match="a term of the loss, make the optimizer without model="):
        for _ in optimizer.passes():
            without_gradients(model)


def test_a_model_that_is_not_the_one_that_is_trained_is_refused():
    with pytest.raises(ValueError, match="model=Linear has none of the optimizer's parameters"):
        SymmetricNoise(torch.optim.SGD(noise_groups(network(), 0.5), lr=0.1), model=nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model='x': give the module"):
        SymmetricNoise(torch.optim.SGD(noise_groups(network(), 0.5), lr=0.1), model="x")


def test_scripted_models_take_no_guards():
    with pytest.warns(DeprecationWarning, match="script"):
        model = torch.jit.script(network())
    optimizer = SymmetricNoise(
        torch.optim.SGD([{"params": list(model.parameters()), "noise": 0.5}], lr=0.1), model=model
    )
    for _ in optimizer.passes():
        losses_of(model).mean().backward()
    optimizer.step()


# ---- weights that the model changes ----------------------------------------------------------------------------------


class Clamped(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(4, 2), how

    def forward(self, x):
        if self.how == "no_grad":
            with torch.no_grad():
                self.layer.weight.clamp_(-0.1, 0.1)
        else:
            self.layer.weight.data.clamp_(-0.1, 0.1)
        return self.layer(x)


@pytest.mark.parametrize("how", ["no_grad", "data"])
@pytest.mark.parametrize(
    "named, name",
    [
        ("by the model", "'layer.weight' was"),
        ("by its group", "'layer' in parameter group 0, of"),
        ("not at all", "^parameter 1 of group 0, of"),
    ],
)
def test_a_weight_that_the_model_clamps_is_refused_by_name(how, named, name):
    model = Clamped(how)
    groups = [{"params": [model.layer.bias, model.layer.weight], "noise": 0.5}]
    base = torch.optim.SGD(groups if named == "not at all" else noise_groups(model, 0.5), lr=0.1)
    optimizer = SymmetricNoise(base, model=model if named == "by the model" else None)
    clean = bits(model)
    with pytest.raises(RuntimeError, match=name):
        for _ in optimizer.passes():
            model(X.float()).sum().backward()
    assert same_bits(bits(model), clean)


def test_an_embedding_that_bounds_its_norms_is_refused_under_noise_and_trained_without():
    model = nn.Sequential(nn.Embedding(6, 4, max_norm=0.5), nn.Linear(4, 2))
    tokens = torch.arange(6)
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, 0.5), lr=0.1))
    with pytest.raises(RuntimeError, match="max_norm"):
        for _ in optimizer.passes():
            model(tokens).sum().backward()
    model.zero_grad()
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, 0.5, only={"dense"}), lr=0.1))
    for _ in optimizer.passes():
        model(tokens).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", METHODS)
def test_a_weight_that_is_changed_inside_a_pass_is_refused(name):
    for index in range(METHODS[name][2]):
        model = network()
        optimizer = METHODS[name][0](model, lr=0.1, momentum=0.9)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="changed inside a pass"):
                for part in optimizer.passes():
                    part.mean(losses_of(model, *part.take(X, torch.ones(5, 2).double()))).backward()
                    if part.index == index:
                        with torch.no_grad():
                            model[0].weight.mul_(0.5)
            optimizer.zero_grad()


@pytest.mark.parametrize("like", [lambda w: w, lambda w: w.t(), lambda w: w[:2]], ids=["same", "transposed", "rows"])
def test_two_weights_under_noise_in_one_memory_are_refused(like):
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight.data = like(model["a"].weight.data)
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.5), lr=0.1), model=model)
    before = model["a"].weight.detach().clone()
    with pytest.raises(ValueError, match=r"'b\.weight' and 'a\.weight' are two parameters in the same memory"):
        next(iter(optimizer.passes()))
    assert torch.equal(model["a"].weight, before)
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.5, exclude="b.*"), lr=0.1), model=model)
    points = []
    for _ in optimizer.passes():
        points.append(model["a"].weight.detach().clone())
        model["b"](model["a"](torch.ones(1, 3))[:, : model["b"].weight.shape[1]]).sum().backward()
    torch.testing.assert_close((points[0] + points[1]) / 2, before)
