"""Every method by its name in a configuration: what is built, what it costs, what is refused."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from test_training_resume import assert_same_runs
from torch import nn
from toy_task import ToyTask, toy_config, train

from seqssgd.errors import UserError
from seqssgd.optim import (
    IVON,
    MRWP,
    MSAM,
    NSO,
    SAM,
    CovarianceNoise,
    DropConnect,
    OneSidedNoise,
    ShapedNoise,
    SinglePass,
    SymmetricNoise,
    WeightAverage,
)
from seqssgd.runs import checkpoints
from seqssgd.training import OptimConfig, RunDirectory, build_optimizer, build_schedulers, fit
from seqssgd.training.methods import METHODS

# name: settings, the class, attributes of the optimizer, distribution and granularity, passes of a step
BUILT = {
    "none": ({}, SinglePass, {}, None, 1),
    "ssgd": ({"noise": 0.3}, SymmetricNoise, {"signs": "batch"}, ("rademacher", "layer"), 2),
    "ssgd_shaped": ({"noise": 0.3, "damping": 0.2}, ShapedNoise, {"signs": "batch"}, ("rademacher", "layer"), 2),
    "weight_noise": (
        {"noise": 0.3, "granularity": "tensor"}, OneSidedNoise, {"copies": 1}, ("rademacher", "tensor"), 1,
    ),
    "two_draws": ({"noise": 0.3, "distribution": "gaussian"}, OneSidedNoise, {"copies": 2}, ("gaussian", "layer"), 2),
    "smoothout": ({"noise": 0.01}, OneSidedNoise, {"copies": 1}, ("uniform", "absolute"), 1),
    "adasmoothout": ({"noise": 0.3, "copies": 3}, OneSidedNoise, {"copies": 3}, ("uniform", "filter"), 3),
    "graves": ({"noise": 0.075}, OneSidedNoise, {"copies": 1}, ("gaussian", "absolute"), 1),
    "nso": (
        {"noise": 0.01, "pairs": 2, "clean_weight": 0.2}, NSO, {"pairs": 2, "clean_weight": 0.2},
        ("gaussian", "absolute"), 5,
    ),
    "mrwp": ({"noise": 0.01}, MRWP, {"clean_weight": 0.5}, ("gaussian", "filter_std"), 1),
    "dropconnect": ({"noise": 0.2}, DropConnect, {}, ("uniform", "absolute"), 1),
    "covariance": ({"noise": 2.0}, CovarianceNoise, {"diagonal": False}, None, 1),
    "sam": ({}, SAM, {"adaptive": False}, None, 2),
    "asam": ({"eta": 0.02}, SAM, {"adaptive": True, "eta": 0.02}, None, 2),
    "msam": ({"rho": 0.2, "momentum": 0.9}, MSAM, {}, None, 1),
    "ivon": (
        {"ess": 120.0, "signs": "halves"}, IVON, {"signs": "halves", "estimate": "price"}, ("gaussian", "absolute"), 1,
    ),
    "ema": ({"average_decay": 0.9}, WeightAverage, {"start": 0}, None, 1),
    "swa": ({"average_start": 2}, WeightAverage, {"start": 2}, None, 1),
}  # fmt: skip
every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_a_name_builds_its_method_and_training_counts_its_passes(name, tmp_path):
    settings, kind, attributes, noise, passes = BUILT[name]
    optim = {"noise": 0.0, **settings, "method": name, "lr": 0.05}
    config = toy_config(optim, {"epochs": 1, "checkpoint_every": None}, seed=2)
    optimizer = build_optimizer(ToyTask(config).model, config.optim)
    assert type(optimizer) is kind and {key: getattr(optimizer, key) for key in attributes} == attributes
    if noise:
        assert (optimizer.source.distribution, optimizer.source.granularity) == noise
    result, task = train(tmp_path / "run", config)
    assert result["steps"] == 5 and result["passes"] == 5 * passes
    read_once = 5 * 4 * 6  # steps × sequences × length
    assert result["units"] == read_once
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert row["noise"] == {"sam": 0.05, "asam": 0.5, "msam": 0.2, "ivon": 1.0}.get(name, optim["noise"])


@every_method
def test_a_configuration_that_was_settled_and_read_again_is_the_same(name):
    config = OptimConfig(method=name, **BUILT[name][0])
    assert OptimConfig(**asdict(config)) == config
    for key, value in METHODS[name].settings.items():
        assert getattr(config, key) == BUILT[name][0].get(key, value)


def test_settings_of_other_methods_are_refused_unless_there_is_no_method():
    for name, settings, message in (
        (
            "sam",
            {"noise": 0.5},
            r"optim.noise: sam has no such setting \(these have: ssgd, .*\); leave",
        ),
        ("ssgd", {"rho": 0.1}, r"optim.rho: ssgd has no such setting \(these have: sam, asam, msam\)"),
        ("nso", {"signs": "halves"}, "optim.signs: nso has no such setting"),
        ("two_draws", {"copies": 3}, "optim.copies: two_draws has no such setting"),
        ("dropconnect", {"distribution": "gaussian"}, "optim.distribution: dropconnect"),
        ("ema", {"noise_schedule": "1-1S"}, "optim.noise_schedule: ema"),
        ("swa", {"average_decay": 0.9}, "optim.average_decay: swa"),
        ("ivon", {"noise": 0.5}, "optim.noise: ivon has no such setting"),
    ):
        with pytest.raises(UserError, match=message):
            OptimConfig(method=name, **settings)
        OptimConfig(method="none", **settings)  # the baseline of any configuration


def test_a_sign_on_each_rank_takes_an_even_number_of_processes():
    config = OptimConfig(method="ssgd", noise=0.3, signs="ranks")
    with pytest.raises(UserError, match=r'optim: signs="ranks" needs an even number of .* processes; there are 1'):
        build_optimizer(torch.nn.Linear(2, 2), config)


def test_momentum_sam_asks_for_a_radius_and_a_momentum():
    for settings, message in (
        ({"momentum": 0.9}, "optim: msam needs optim.rho"),
        ({"rho": 0.2}, "optim: MSAM looks along the momentum of the base optimizer"),
    ):
        with pytest.raises(UserError, match=message):
            build_optimizer(torch.nn.Linear(2, 2), OptimConfig(method="msam", **settings))


def test_ivon_asks_for_the_size_of_the_data_and_has_betas_of_its_own():
    with pytest.raises(UserError, match=r"optim: ivon needs optim.ess, λ, the effective sample size"):
        build_optimizer(torch.nn.Linear(2, 2), OptimConfig(method="ivon"))
    optimizer = build_optimizer(torch.nn.Linear(2, 2), OptimConfig(method="ivon", ess=10.0, weight_decay=0.2))
    wanted = {"ess": 10.0, "betas": (0.9, 0.99999), "weight_decay": 0.2, "hess_init": 1.0, "noise": 1.0, "lr": 0.1}
    assert {key: optimizer.param_groups[0][key] for key in wanted} == wanted
    only = build_optimizer(Roles(), OptimConfig(method="ivon", ess=10.0, only=["dense"]))
    assert [len(group["params"]) for group in only.param_groups if group["noise"]] == [1]
    assert OptimConfig(method="ssgd", noise=0.3).betas == (0.9, 0.999)


def test_impossible_settings_are_refused_before_anything_is_read():
    for name, settings, message in (
        ("smoothout", {"copies": 0}, "optim.copies: 0 is not a whole number >= 1"),
        ("nso", {"pairs": 0}, "optim.pairs: 0 is not a whole number >= 1"),
        ("nso", {"clean_weight": 1.0}, "optim.clean_weight: 1.0 is not a number >= 0 and < 1"),
        ("mrwp", {"clean_weight": float("nan")}, "optim.clean_weight: nan is not"),
        ("dropconnect", {"noise": 1.0}, "optim.noise: 1.0 is not a level >= 0 and < 1"),
        ("sam", {"rho": float("inf")}, "optim.rho: inf is not a finite number >= 0"),
        ("asam", {"eta": 0.0}, "optim.eta: 0.0 is not a finite number > 0"),
        ("ema", {"average_decay": 1.0}, "optim.average_decay: 1.0 is not a number > 0 and < 1"),
        ("swa", {"average_start": -1}, "optim.average_start: -1 is not a whole number >= 0"),
        ("ivon", {"ess": 0.0}, "optim.ess: 0.0 is not a finite number > 0"),
        ("ivon", {"hess_init": -1.0}, "optim.hess_init: -1.0 is not a finite number > 0"),
        ("ivon", {"clip_radius": 0.0}, "optim.clip_radius: 0.0 is not a finite number > 0, or null"),
        ("graves", {"distribution": "cauchy"}, "optim.distribution: 'cauchy' is not one of rademacher, gaussian"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            OptimConfig(method=name, **settings)


class Roles(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(4, 4), nn.Linear(4, 5)


def test_sam_moves_every_parameter_or_the_roles_that_are_named():
    model = Roles()
    every = build_optimizer(model, OptimConfig(method="sam", rho=0.2))
    assert [group["rho"] for group in every.param_groups] == [0.2]
    dense = build_optimizer(model, OptimConfig(method="sam", rho=0.2, only=["dense"]))
    moved = [p for group in dense.param_groups if group["rho"] == 0.2 for p in group["params"]]
    assert len(moved) == 1 and moved[0] is model.out.weight
    assert sum(len(group["params"]) for group in dense.param_groups) == len(list(model.parameters()))


def test_a_late_start_holds_for_every_level():
    for name, key in (("graves", "noise"), ("sam", "rho")):
        settings = {"noise": 0.075} if name == "graves" else {"rho": 0.2}
        config = OptimConfig(method=name, noise_ramp=(20, 0), noise_unit="step", **settings)
        optimizer = build_optimizer(Roles(), config)
        ((scheduler, unit),) = build_schedulers(optimizer, config, epochs=1)
        assert unit == "step"
        for _ in range(19):
            scheduler.step()
        assert max(group[key] for group in optimizer.param_groups) == 0.0
        scheduler.step()
        assert max(group[key] for group in optimizer.param_groups) == settings[key]


def test_evaluation_sees_the_average_and_the_best_checkpoint_holds_it(tmp_path):
    seen = []

    class Watched(ToyTask):
        def evaluate(self):
            assert not self.model.training
            seen.append({key: value.clone() for key, value in self.model.state_dict().items()})
            return super().evaluate()

    optim = {"method": "swa", "noise": 0.0, "lr": 0.5}
    config = toy_config(optim, {"epochs": 2, "keep": 20})
    _, task = train(tmp_path / "run", config, Watched)
    paths = sorted((tmp_path / "run/checkpoints").glob("step-*.pt"))
    weights = [checkpoints.load(path)["model"] for path in paths]
    assert len(weights) == 10 and len(seen) == 2
    for count, averaged in zip((5, 10), seen, strict=True):
        for key, value in averaged.items():
            torch.testing.assert_close(value, torch.stack([w[key] for w in weights[:count]]).mean(0))
    best = checkpoints.load(tmp_path / "run/checkpoints/best.pt")
    for key, value in seen[best["step"] // 5 - 1].items():
        assert torch.equal(best["model"][key], value)
    for key, value in weights[-1].items():  # the trained one is back
        assert torch.equal(task.model.state_dict()[key], value)

    def assert_evaluated(path, wanted):  # of what a command takes from a checkpoint
        found = checkpoints.load_evaluated(path)
        assert list(found["model"]) == list(wanted) and "averaged" not in found
        assert all(torch.equal(found["model"][key], value) for key, value in wanted.items())

    assert_evaluated(paths[4], seen[0])
    assert_evaluated(paths[-1], seen[1])
    state, size = checkpoints.load(paths[-1]), paths[-1].stat().st_size
    assert state.pop("averaged").keys() == seen[1].keys()
    checkpoints.save(paths[-1], state)  # as earlier versions did
    assert_evaluated(paths[-1], seen[1])
    held = sum(value.nbytes for value in seen[1].values())
    assert size - paths[-1].stat().st_size < held / 2 + 2000  # names alone: the tensors are in the optimizer's state
    config = toy_config({**optim, "average_start": 7}, {"epochs": 2, "keep": 20})
    train(tmp_path / "late", config)
    for path, known in zip(sorted((tmp_path / "late/checkpoints").glob("step-*.pt")), weights, strict=True):
        assert ("averaged" in checkpoints.load(path)) == (path.name > "step-00000007.pt")
        if path.name <= "step-00000008.pt":  # no average yet, or the first
            assert_evaluated(path, known)


def test_a_method_from_elsewhere_that_evaluates_another_model_has_it_in_its_checkpoints(tmp_path):
    class Halved(SinglePass):
        """Evaluates half of the weights."""

        @property
        def averaged(self):
            other = copy.deepcopy(self.model)
            with torch.no_grad():
                for parameter in other.parameters():
                    parameter.mul_(0.5)
            return other

    config = toy_config({"method": "none", "noise": 0.0}, {"epochs": 1})
    task = ToyTask(config)
    optimizer = Halved(torch.optim.SGD(task.model.parameters(), lr=0.1), model=task.model)
    fit(task, optimizer, [], config.training, RunDirectory(tmp_path, asdict(config)))
    path, state = checkpoints.load_newest(tmp_path / "checkpoints")
    found = checkpoints.load_evaluated(path)["model"]
    assert all(torch.equal(found[key], value / 2) for key, value in state["model"].items())


@pytest.mark.parametrize("name", ["ema", "mrwp", "sam", "dropconnect", "covariance"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(name, tmp_path):
    config = toy_config({"noise": 0.0, **BUILT[name][0], "method": name}, {"epochs": 2})
    train(tmp_path / "whole", config)
    result, _ = train(tmp_path / "stopped", config, max_minutes=1e-9)
    path, state = checkpoints.load_newest(tmp_path / "stopped/checkpoints")
    assert (state.pop("averaged", None) is not None) == (name == "ema")
    checkpoints.save(path, state)  # as earlier versions did
    while not result["finished"]:
        result, _ = train(tmp_path / "stopped", config, max_minutes=1e-3)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_begun_before_a_setting_existed_goes_on(tmp_path):
    config = toy_config(training={"epochs": 2})
    train(tmp_path / "run", config, max_minutes=1e-9)
    known = tmp_path / "run/config.yaml"
    kept = [line for line in known.read_text().splitlines() if line.strip() not in ("rho: null", "pairs: null")]
    assert len(kept) == len(known.read_text().splitlines()) - 2
    known.write_text("\n".join(kept))
    result, _ = train(tmp_path / "run", config)
    assert result["finished"]
    with pytest.raises(UserError, match="optim.method = ssgd, now nso"):
        train(tmp_path / "run", toy_config({"method": "nso"}, {"epochs": 2}))
