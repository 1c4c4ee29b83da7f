"""Any optimizer of torch or from elsewhere inside a method: what is built, what is refused, and that runs go on."""

import sys
import textwrap

import pytest
import torch
from test_training_building import Network
from test_training_resume import assert_same_runs
from toy_task import ToyTask, toy_config, train

from seqssgd.errors import UserError
from seqssgd.optim import MuonAdamW, SinglePass, SymmetricNoise, noise_groups
from seqssgd.runs.checkpoints import rng_state
from seqssgd.training import OptimConfig, bases, build_optimizer
from seqssgd.training.command_line import parse_recipe

from test_methods_from_elsewhere import Config  # isort: skip

OF_TORCH = [name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)]
IMPOSSIBLE = {"LBFGS": "cannot step by gradients alone", "SparseAdam": "cannot step", "Optimizer": "optim.base: "}


@pytest.mark.parametrize("name", OF_TORCH)
def test_every_optimizer_of_torch_is_built_and_steps_or_is_refused_before_anything_is_read(name):
    if name in IMPOSSIBLE:
        with pytest.raises(UserError, match=IMPOSSIBLE[name]):
            OptimConfig(base=f"torch.optim.{name}")
        return
    config = OptimConfig(method="ssgd", noise=0.3, base=f"torch.optim.{name}", lr=0.01)
    model = torch.nn.Linear(3, 4, bias=False) if name == "Muon" else torch.nn.Linear(3, 4)
    optimizer = build_optimizer(model, config)
    assert type(optimizer) is SymmetricNoise and type(optimizer.base) is getattr(torch.optim, name)
    twin = getattr(torch.optim, name)(noise_groups(model, 0.3), lr=0.01)
    for key, value in twin.defaults.items():
        assert optimizer.param_groups[0][key] == value  # nothing of its own is touched


@pytest.mark.parametrize("name", [name for name in OF_TORCH if name not in (*IMPOSSIBLE, "Muon")])
def test_a_run_with_any_of_them_ends_as_one_that_was_not_stopped(name, tmp_path):
    config = toy_config({"base": f"torch.optim.{name}", "lr": 0.01, "momentum": 0.0}, {"epochs": 2})
    train(tmp_path / "whole", config)
    train(tmp_path / "stopped", config, max_minutes=1e-9)
    train(tmp_path / "stopped", config)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_short_names_are_what_they_were_and_take_further_arguments():
    plain = build_optimizer(Network(), OptimConfig(momentum=0.9, weight_decay=0.1)).base
    named = build_optimizer(Network(), OptimConfig(momentum=0.9, weight_decay=0.1, base_settings={})).base
    assert type(plain) is torch.optim.SGD and plain.defaults == named.defaults and not plain.defaults["nesterov"]
    more = build_optimizer(Network(), OptimConfig(momentum=0.9, base_settings={"nesterov": True})).base
    assert more.defaults["nesterov"] and more.defaults["momentum"] == 0.9
    adam = build_optimizer(Network(), OptimConfig(base="adam", base_settings={"eps": 1e-5, "fused": False})).base
    assert (adam.defaults["eps"], adam.defaults["fused"], adam.defaults["betas"]) == (1e-5, False, (0.9, 0.999))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"base": "rprop"}, "optim.base: 'rprop' is not one of .* module:Class; did you mean torch.optim.Rprop?"),
        ({"base": "torch.optim.Nothing"}, "optim.base: torch.optim:Nothing: module 'torch.optim' has no attribute"),
        ({"base": "torch.nn:Linear"}, "optim.base: torch.nn:Linear is no class of optimizers"),
        ({"base": "seqssgd.optim:SAM"}, "optim.base: seqssgd.optim:SAM is a method; give it as optim.method"),
        ({"base_settings": {"nestrov": True}}, "optim.base_settings: sgd: .*unexpected keyword argument 'nestrov'"),
        ({"base_settings": {"lr": 1.0}}, "optim.base_settings: lr of sgd is optim.lr; set that"),
        ({"base": "adam", "base_settings": {"eps": -1.0}}, "optim.base_settings: adam: Invalid epsilon value: -1.0"),
        (
            {"base": "torch.optim.NAdam", "base_settings": {"betas": 3}},
            "optim.base_settings: torch.optim.NAdam: 'int' ",
        ),
        ({"base": "torch.optim.RMSprop", "momentum": 0.9}, "optim.momentum: .*RMSprop takes it in optim.base_settings"),
        ({"base": "torch.optim.Rprop", "weight_decay": 0.1}, "optim.weight_decay: .*Rprop takes it in"),
        ({"base": "torch.optim.NAdam", "betas": [0.8, 0.9]}, "optim.betas: .*NAdam takes it in optim.base_settings"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        OptimConfig(**settings)
    assert "\n" not in str(caught.value)


def test_a_base_that_does_not_take_a_networks_parameters_says_so():
    with pytest.raises(UserError, match="^optim.base: torch.optim.Muon: .*2D.*seqssgd.optim:MuonAdamW"):
        build_optimizer(Network(), OptimConfig(base="torch.optim.Muon"))


def test_its_settings_are_a_mapping_in_files_and_options(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("x")
    (tmp_path / "c.yaml").write_text("optim:\n  base: torch.optim.RMSprop\n  base_settings: {alpha: 0.5, eps: 1e-3}\n")
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    file = parse_recipe(Config, [*where, "--config", str(tmp_path / "c.yaml")]).config.optim
    option = ["--optim.base", "torch.optim.RMSprop", "--optim.base_settings", "{alpha: 0.5, eps: 1e-3}"]
    assert file == parse_recipe(Config, [*where, *option]).config.optim
    base = build_optimizer(Network(), file).base
    assert (base.defaults["alpha"], base.defaults["eps"]) == (0.5, 1e-3)


def test_a_class_from_elsewhere_steps_and_a_run_with_it_goes_on(tmp_path, monkeypatch):
    (tmp_path / "signs.py").write_text(
        textwrap.dedent("""
        import torch

        class SignSGD(torch.optim.Optimizer):
            def __init__(self, params, lr, scale=1.0):
                super().__init__(params, {"lr": lr, "scale": scale})

            @torch.no_grad()
            def step(self, closure=None):
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is not None:
                            p.sub_(p.grad.sign(), alpha=group["lr"] * group["scale"])
    """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    bases.find_base.cache_clear()
    optim = {"base": "signs:SignSGD", "base_settings": {"scale": 0.5}, "lr": 0.01, "momentum": 0.0}
    config = toy_config(optim, {"epochs": 2})
    optimizer = build_optimizer(ToyTask(config).model, config.optim)
    assert type(optimizer.base).__name__ == "SignSGD" and optimizer.param_groups[0]["scale"] == 0.5
    train(tmp_path / "whole", config)
    train(tmp_path / "stopped", config, max_minutes=1e-9)
    train(tmp_path / "stopped", config)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")
    del sys.modules["signs"]
    bases.find_base.cache_clear()


HIDDEN = """
import random
import numpy
import torch

class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.m, self.t, self.last = {}, 0, None

    @torch.no_grad()
    def step(self, closure=None):
        self.t += 1
        for group in self.param_groups:
            for number, p in enumerate(group["params"]):
                p.sub_(self.direction(p, number), alpha=group["lr"])

    def direction(self, p, number):
        return p.grad

class Momentum(Plain):
    def direction(self, p, number):
        self.m[number] = 0.9 * self.m.get(number, 0) + p.grad
        return self.m[number]

class Signs(Plain):
    def direction(self, p, number):
        self.m[number] = 0.99 * self.m.get(number, 0) + 0.01 * p.grad
        return (0.9 * self.m[number] + 0.1 * p.grad).sign()

class Count(Plain):
    def direction(self, p, number):
        return p.grad / self.t

class Noisy(Plain):
    def direction(self, p, number):
        return p.grad + torch.randn(p.shape) + numpy.random.rand() + random.random()

class Kept(Noisy):
    def direction(self, p, number):
        state = self.state[p]
        state["m"] = 0.9 * state.get("m", 0) + super().direction(p, number)
        return state["m"]

class Deaf(Kept):
    def load_state_dict(self, state):
        raise KeyError("m")
"""
OTHERWISE = "hidden:{} steps otherwise once its state_dict.. was loaded.*in self.state.p. or in its groups$"


@pytest.mark.parametrize("name, message", [
    ("Momentum", OTHERWISE), ("Signs", OTHERWISE), ("Count", OTHERWISE),
    ("Deaf", "hidden:{} cannot load its own state_dict.. "), ("Kept", None), ("Noisy", None), ("Plain", None),
])  # fmt: skip
def test_a_base_that_remembers_what_no_checkpoint_holds_is_refused(name, message, tmp_path, monkeypatch):
    (tmp_path / "hidden.py").write_text(HIDDEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hidden", raising=False)
    bases.find_base.cache_clear()
    before = rng_state()
    if message is None:
        assert OptimConfig(base=f"hidden:{name}", lr=0.1).base == f"hidden:{name}"
    else:
        with pytest.raises(UserError, match=f"^optim.base: {message.format(name)}"):
            OptimConfig(base=f"hidden:{name}", lr=0.1)
    after = rng_state()
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1]) and before["numpy"][2:] == after["numpy"][2:]
    sys.modules.pop("hidden")
    bases.find_base.cache_clear()


def test_muon_with_adamw_steps_matrices_as_muon_does_and_the_rest_as_adamw(tmp_path):
    def network():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))

    model, twin = network(), network()
    optimizer = MuonAdamW(model.parameters(), lr=0.01)
    muon = torch.optim.Muon([p for p in twin.parameters() if p.ndim == 2], lr=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([p for p in twin.parameters() if p.ndim != 2], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        for net, steppers in ((model, [optimizer]), (twin, [muon, adamw])):
            net(torch.ones(5, 3)).square().sum().backward()
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    groups = SymmetricNoise(MuonAdamW(noise_groups(network(), 0.3))).param_groups
    assert [(group["noise"], group["names"]) for group in groups] == [
        (0.3, ["0.weight", "1.weight"]), (0.0, ["0.bias", "1.bias"]),
    ]  # fmt: skip
    betas = [0.8, 0.9]  # two values, for each of two parameters
    groups = MuonAdamW([{"params": list(network()[0].parameters()), "betas": betas}]).param_groups
    assert [group["betas"] for group in groups] == [betas, betas]
    with pytest.raises(ValueError, match="no parameter is a matrix"):
        MuonAdamW([torch.nn.Parameter(torch.ones(3))])
    optim = {"method": "ssgd", "noise": 0.2, "base": "seqssgd.optim:MuonAdamW", "lr": 0.01, "momentum": 0.0}
    config = toy_config(optim, {"epochs": 2})
    assert type(build_optimizer(ToyTask(config).model, config.optim)) is SymmetricNoise
    train(tmp_path / "whole", config)
    train(tmp_path / "stopped", config, max_minutes=1e-9)
    train(tmp_path / "stopped", config)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")
    assert type(build_optimizer(network(), OptimConfig(base="seqssgd.optim:MuonAdamW"))) is SinglePass
