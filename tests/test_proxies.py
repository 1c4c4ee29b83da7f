"""The optimizer inside wrappers and around them: proxies of trainers, distributed checkpoints, wrapped bases."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from peer_methods import METHODS, X, Y, losses_of, network
from regression import equal, loss_of, regression, weights_of
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from seqssgd.optim import MSAM, SAM, CovarianceNoise, SymmetricNoise, WeightAverage, noise_groups


class Attributes:
    """A proxy that hands on what it does not know, and steps with a closure of its own (Lightning)."""

    def __init__(self, optimizer):
        self._optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    def step(self):
        return self._optimizer.step(lambda: None)


class Subclass:
    """A proxy that becomes a subclass of what it wraps, so that methods get the proxy for ``self`` (Fabric)."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("Proxy", (type(self), type(optimizer)), {})

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    def step(self, closure=None):
        return self._optimizer.step(closure=closure)


class Copied(Subclass):
    """A proxy that copies the attributes of what it wraps (older Lightning)."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.__dict__.update({key: value for key, value in vars(optimizer).items() if key != "step"})


def train(model, optimizer, steps=3, source=None):
    for _ in range(steps):
        for part in (source or optimizer).passes():
            part.mean(losses_of(model, *part.take(X, Y))).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("proxy", [Attributes, Subclass, Copied])
@pytest.mark.parametrize("name", METHODS)
def test_steps_through_a_proxy_are_those_of_the_bare_loop(proxy, name):
    settings = dict(lr=0.1, momentum=0.9)
    plain, wrapped = network(), network()
    train(plain, METHODS[name][0](plain, **settings))
    inner = METHODS[name][0](wrapped, **settings)
    optimizer = proxy(inner)
    train(wrapped, optimizer, steps=1)
    train(wrapped, optimizer, steps=1, source=inner)  # the loop on the one, the step on the other
    train(wrapped, optimizer, steps=1)
    for p, q in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(p, q)
    assert optimizer.draws == inner.draws == 3
    for _ in optimizer.passes():
        with pytest.raises(RuntimeError, match="inside a loop over passes"):
            inner.state_dict()
        with pytest.raises(RuntimeError, match="inside a loop over passes"):
            inner.step()
        break
    with pytest.raises(RuntimeError, match="half-way"):
        optimizer.step()


def test_a_closure_after_a_loop_is_called_once_and_its_loss_handed_back():
    model, optimizer = regression()
    reference, plain = regression()
    calls = []
    for one in (optimizer, plain):
        for _ in one.passes():
            loss_of(model if one is optimizer else reference).backward()
    assert optimizer.step(lambda: calls.append(torch.is_grad_enabled()) or 7.0) == 7.0
    plain.step()
    assert calls == [True] and equal(weights_of(model), weights_of(reference))
    with pytest.raises(RuntimeError, match="without passes"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
# Shaped and balanced noise have running means of the curvature too, which torch.distributed.checkpoint drops: their
# docstrings say so.
@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith(("ssgd_shaped", "ssgd_balanced"))])
@pytest.mark.parametrize("flatten", [False, True])
def test_a_distributed_checkpoint_keeps_the_position_of_the_noise(name, flatten, tmp_path):
    """What ``get_state_dict`` drops of a state dict: all that is neither of a parameter nor of a group."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def make():
        model = network(torch.float32)
        return model, METHODS[name][0](model, lr=0.1, momentum=0.9)

    whole = make()
    train(*whole, steps=5)
    first = make()
    train(*first, steps=2)
    saved = dict(zip(("model", "optimizer"), get_state_dict(*first, options=options), strict=True))
    dcp.save(saved, checkpoint_id=tmp_path / "c", no_dist=True)
    model, optimizer = make()
    loaded = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer, options=options), strict=True))
    dcp.load(loaded, checkpoint_id=tmp_path / "c", no_dist=True)
    set_state_dict(
        model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"], options=options
    )
    assert optimizer.draws == 2
    train(model, optimizer, steps=3)
    assert equal(weights_of(model), weights_of(whole[0]))


def test_the_empty_step_that_checkpointing_takes_counts_for_nothing():
    model, _ = regression()
    optimizer = WeightAverage(torch.optim.Adam(model.parameters(), lr=0.1), model)
    get_state_dict(model, optimizer)
    assert optimizer.steps == 0 and optimizer.averaged is model


def test_a_saved_state_does_not_move_on_with_the_run():
    model, optimizer = regression()
    train(model.double(), optimizer, steps=2)
    state = optimizer.state_dict()
    kept = copy.deepcopy(state["param_groups"])
    train(model, optimizer, steps=1)
    assert state["perturbation"]["draws"] == 2 and state["param_groups"] == kept
    del state["perturbation"]  # as distributed checkpoints do
    optimizer.load_state_dict(state)
    assert optimizer.draws == 2


# ---- wrapped bases ---------------------------------------------------------------------------------------------------


class Lookahead(torch.optim.Optimizer):
    """As most wrappers of optimizers are written: it never calls ``Optimizer.__init__``."""

    def __init__(self, optimizer, k=2, alpha=0.5):
        self.optimizer, self.k, self.alpha, self.steps = optimizer, k, alpha, 0
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self, closure=None):
        self.optimizer.step()
        self.steps += 1
        if self.steps % self.k == 0:
            with torch.no_grad():
                for slow, p in zip(self.slow, (p for g in self.param_groups for p in g["params"]), strict=True):
                    p.copy_(slow.lerp_(p, self.alpha))

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group):
        self.optimizer.add_param_group(param_group)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self.optimizer.load_state_dict(state_dict)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state


def test_a_wrapper_without_the_attributes_of_an_optimizer_can_be_wrapped():
    model, reference = network(), network()
    optimizer = SymmetricNoise(Lookahead(torch.optim.SGD(noise_groups(model, 0.4), lr=0.1, momentum=0.9)))
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    base = Lookahead(torch.optim.SGD(noise_groups(reference, 0.4), lr=0.1, momentum=0.9))
    gradients = SymmetricNoise(torch.optim.SGD(noise_groups(reference, 0.4), lr=0.0))  # its base never moves anything
    for _ in range(4):
        train(model, optimizer, steps=1)
        for _ in gradients.passes():
            losses_of(reference).mean().backward()
        base.step()
        gradients.step()
        gradients.zero_grad()
    assert calls == ["step"] * 4 and not torch.equal(model[0].weight, network()[0].weight)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.draws == 4 and optimizer.param_groups is optimizer.base.optimizer.param_groups


@pytest.mark.parametrize(("method", "key"), [(SAM, "rho"), (MSAM, "rho"), (CovarianceNoise, "noise")])
def test_a_level_for_all_groups_needs_no_base_with_defaults(method, key):
    optimizer = method(Lookahead(torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9)), **{key: 0.05})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert [group[key] for group in optimizer.param_groups] == [0.05, 0.05]


def test_the_lookahead_of_pytorch_optimizer_can_be_wrapped():
    package = pytest.importorskip("pytorch_optimizer")
    model = network()
    optimizer = SymmetricNoise(package.Lookahead(torch.optim.SGD(noise_groups(model, 0.4), lr=0.1)))
    train(model, optimizer)
    assert optimizer.draws == 3 and not torch.equal(model[0].weight, network()[0].weight)


class TwoWeights(torch.optim.SGD):
    """Other weights for evaluation than for training, as ScheduleFree has: here, twice as large."""

    training = True

    @torch.no_grad()
    def _scale(self, training, factor):
        if self.training != training:
            for group in self.param_groups:
                torch._foreach_mul_(group["params"], factor)
        self.training = training

    def train(self):
        self._scale(True, 0.5)

    def eval(self):
        self._scale(False, 2.0)


def test_train_and_eval_reach_a_base_that_has_them_and_are_nothing_to_one_that_has_not():
    model, optimizer = regression(base=TwoWeights)
    clean = weights_of(model)
    optimizer.eval()
    assert torch.equal(model[0].weight, 2 * clean["0.weight"])
    optimizer.train()
    assert equal(weights_of(model), clean)
    for _ in optimizer.passes():
        with pytest.raises(RuntimeError, match="inside a loop over passes"):
            optimizer.eval()
    _, plain = regression()
    plain.train()
    plain.eval()


def test_schedule_free_is_a_base_like_any_other():
    package = pytest.importorskip("schedulefree")
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    optimizer = SymmetricNoise(package.SGDScheduleFree(noise_groups(model, 0.1), lr=0.1))
    optimizer.train()
    train(model, optimizer, steps=20)
    training = weights_of(model)
    optimizer.eval()
    assert not equal(weights_of(model), training)
    optimizer.train()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, training[name])
