"""The optimizer and the schedulers that a configuration describes."""

import re

import pytest
import torch
from torch import nn
from toy_task import ToyTask, toy_config

from seqssgd.errors import UserError
from seqssgd.optim import LambdaNoise, ShapedNoise, SinglePass, SymmetricNoise, WeightAverage, noise_groups
from seqssgd.optim.schedules import phases
from seqssgd.training import OptimConfig, RunDirectory, TrainingConfig, build_optimizer, build_schedulers, fit, recipe
from seqssgd.training.command_line import Command
from seqssgd.training.reach import check_begins, check_reach, highest


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(5, 4), nn.LSTM(4, 4), nn.Linear(4, 5)


def levels(optimizer):
    """{shape of a weight: its noise level}"""
    return {tuple(p.shape): group["noise"] for group in optimizer.param_groups for p in group["params"]}


def test_the_base_optimizer_is_the_one_described():
    for base, wanted in (("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        for method, wrapper in (("none", SinglePass), ("ssgd", SymmetricNoise)):
            config = OptimConfig(method=method, base=base, lr=0.3, momentum=0.8, weight_decay=0.1, betas=(0.7, 0.6))
            model = Network()
            optimizer = build_optimizer(model, config)
            assert type(optimizer) is wrapper and type(optimizer.base) is wanted
            for group in optimizer.param_groups:
                assert (group["lr"], group["weight_decay"]) == (0.3, 0.1)
                assert group.get("momentum", 0.8) == 0.8 and group.get("betas", (0.7, 0.6)) == (0.7, 0.6)
                assert ("momentum" in group, "betas" in group) == ((True, False) if base == "sgd" else (False, True))
            assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_the_noise_is_the_one_described():
    settings = dict(distribution="gaussian", granularity="filter", signs="halves", noise_seed=4, bn_stats="none")
    optimizer = build_optimizer(Network(), OptimConfig(method="ssgd", noise=0.7, **settings))
    source = optimizer.source
    assert (source.distribution, source.granularity, source.seed) == ("gaussian", "filter", 4)
    assert (optimizer.signs, optimizer.bn_stats) == ("halves", "none")
    assert levels(optimizer) == {(5, 4): 0.7, (16, 4): 0.7, (16,): 0.0, (5,): 0.0}
    optimizer = build_optimizer(Network(), OptimConfig(method="ssgd", noise=0.7, only=["recurrent"]))
    assert levels(optimizer)[(16, 4)] == 0.7
    noisy = [p.shape for group in optimizer.param_groups if group["noise"] for p in group["params"]]
    assert noisy == [(16, 4), (16, 4)]


def test_roles_that_the_model_lacks_are_a_users_mistake():
    with pytest.raises(UserError, match="^optim: no weights to perturb: Network has none with a role in conv$"):
        build_optimizer(Network(), OptimConfig(method="ssgd", noise=0.7, only=["conv"]))


BEYOND = {  # what is asked of a training of 8 epochs with 5 steps each: an error (~), or warnings
    "noise_schedule=8-2S": "~optim.noise_schedule: 8-2S has no noise in the 8 epochs of this training",
    "noise_schedule=5": "~optim.noise_schedule: 5 has no noise in the 8 epochs",
    "noise_schedule=40-1S noise_unit=step": "~optim.noise_schedule: 40-1S has no noise in the 40 steps",
    "noise_ramp=7,3": "~optim.noise_ramp: [7, 3] has no noise in the 8 epochs",
    "noise_schedule=2S-9 noise_ramp=2,0": "~optim.noise_schedule: 2S-9 with optim.noise_ramp: [2, 0] has no noise",
    "noise_schedule=9-1S noise_ramp=2,0": "~optim.noise_schedule: 9-1S has no noise in the 8 epochs",
    "method=swa average_start=40": "~optim.average_start: 40 is not below 40, the steps of this training",
    "noise_schedule=7-1S noise_ramp=7,0": "",
    "noise_schedule=39-1S noise_unit=step": "",
    "noise_ramp=3,4": "",
    "noise_ramp=3,1000000 noise=3750": "",  # of the noise finder
    "method=swa average_start=39": "",
    "method=none noise_schedule=8-2S noise=0": "",
    "noise_schedule=5-2S-2S": "optim.noise_schedule: 5-2S-2S has 9 epochs, and those after 8 are not reached",
    "noise_ramp=3,8": "optim.noise_ramp: [3, 8] rises to 0.5 of the level in the 8 epochs of training",
    "noise_schedule=2-6S max_steps=10": "optim.noise_schedule: 2-6S has no noise up to --max-steps; it begins when",
    "noise_schedule=2-6S max_steps=11": "",
    "noise_schedule=2S-6 max_steps=1": "",
    "method=ema average_start=9 max_steps=9": "optim.average_start: 9 is not below --max-steps 9, so that there is no",
    "method=sam noise_schedule=9S": "optim.noise_schedule: 9S has 9 epochs",
    "balance=1": "~optim.balance: levels are balanced after 100 steps with noise, and this training of 40 steps has no",
    "balance=1 noise_schedule=1-7S epochs=22": "",
    "balance=1 noise_schedule=1-20S epochs=21": "~optim.balance: levels are balanced after 100",  # in the last step
    "balance=1 noise_schedule=1-20S noise_unit=step epochs=25": "",
    "balance=1 epochs=21 max_steps=100": "optim.balance: levels are balanced after 100 steps with noise, and there are",
    "balance=1 epochs=21 max_steps=101": "",
    "log_every=41 log_curvature=1": "training.log_curvature: there is no line of it in the 40 steps of this training",
    "log_every=40 log_curvature=1": "",
    "lr_schedule=zaremba lr_constant_epochs=7": "optim.lr_constant_epochs: 7 lowers no learning rate in the 8",
    "lr_schedule=zaremba lr_constant_epochs=6": "",
    "lr_schedule=zaremba lr_constant_epochs=7 lr_divisor=1": "optim.lr_divisor: 1 lowers no learning rate",
    "lr_schedule=steps lr_milestones=2,7 lr_divisor=1": "optim.lr_divisor: 1 lowers no learning rate",
    "lr_schedule=steps lr_milestones=8,9": "optim.lr_milestones: 8, 9 are not reached in the 8 epochs of this training",
    "lr_schedule=steps lr_milestones=2,8": "optim.lr_milestones: 8 is not reached in the 8 epochs of this training",
    "lr_schedule=steps lr_milestones=2,7": "",
    "lr_schedule=steps": "optim.lr_schedule: steps lowers no learning rate without optim.lr_milestones",
    "lr_schedule=sgdr lr_period=9": "optim.lr_period: 9 does not end in the 8 epochs of this training",
    "lr_schedule=sgdr lr_period=8": "",
    "lr_schedule=sgdr lr_period=8 lr_multiplier=3": "optim.lr_multiplier: 3 does nothing, as the 8 epochs",
    "lr_schedule=sgdr lr_period=7 lr_multiplier=3": "",
    "lr_schedule=sgdr lr_period=1 lr_multiplier=1": "optim.lr_period: 1 has one learning rate, as it goes by epochs",
    "lr_schedule=sgdr lr_period=1": "",
    "lr_schedule=cosine epochs=1": "optim.lr_schedule: cosine goes by epochs, and one epoch has one learning rate",
    "lr_schedule=cosine": "",
    "lr_warmup=10": "optim.lr_warmup: 10 rises to 0.8 of the learning rate in the 8 epochs of this training",
    "lr_warmup=8": "optim.lr_warmup: 8 takes all of the 8 epochs of this training",
    "lr_warmup=7": "",
    "lr_warmup=1": "optim.lr_warmup: 1 lowers no learning rate; give 2 or more, or its steps with optim.lr_warmup_unit",
    "lr_warmup=1 lr_warmup_unit=step": "optim.lr_warmup: 1 lowers no learning rate; give 2 or more",
    "lr_warmup=40 lr_warmup_unit=step": "optim.lr_warmup: 40 takes all of the 40 steps of this training",
    "lr_warmup=39 lr_warmup_unit=step": "",
    "patience=7": "training.patience: 7 ends nothing early in the 8 epochs of this training; give at most 6",
    "patience=6": "",
    "patience=3 evaluate_every=2": "training.patience: 3 ends nothing early in the 8 epochs",
    "patience=2 evaluate_every=2": "",
    "patience=1 evaluate_every=4": "training.patience: 1 ends nothing early in the 8 epochs of this training; evaluate",
}  # fmt: skip


TRAINING = ("epochs", "evaluate_every", "log_curvature", "log_every", "patience")


@pytest.mark.parametrize("asked", BEYOND)
def test_what_never_begins_in_a_training_is_refused_and_what_it_does_not_reach_is_said(asked):
    given = dict(word.split("=") for word in asked.split())
    settings = {"method": "ssgd", **given}
    for key in ("noise_ramp", "lr_milestones"):
        if key in given:
            settings[key] = tuple(map(int, given[key].split(",")))
    numbers = {"average_start", "lr_constant_epochs", "lr_divisor", "lr_multiplier", "lr_period", "lr_warmup"}
    settings |= {key: int(given[key]) for key in set(given) & numbers}
    if settings["method"] not in ("sam", "swa", "ema"):
        settings["noise"] = float(given.get("noise", 0.5))
    settings["balance"] = True if "balance" in given else None
    loop = {key: int(settings.pop(key)) for key in TRAINING if key in settings}
    limit, wanted = settings.pop("max_steps", None), BEYOND[asked]
    config, training = OptimConfig(**settings), TrainingConfig(**{"epochs": 8, **loop})
    if wanted.startswith("~"):
        with pytest.raises(UserError, match=f"^{re.escape(wanted[1:])}"):
            check_reach(config, training, 5)
        return
    found = check_reach(config, training, 5, limit and int(limit))
    assert [text.startswith(wanted) for text in found] == [True] * bool(wanted)


def test_the_highest_noise_of_a_schedule_is_that_of_all_its_times():
    for text in ("3-2S-4-1S-2", "2S-3", "5", "0-4S", "0S", None):
        for rise in ((0, 0), (4, 0), (1, 5), (2, 20), None):
            factor = OptimConfig(method="ssgd", noise=0.1, noise_schedule=text, noise_ramp=rise)._noise()
            for length in range(16):
                levels = [1.0 if factor is None else factor(time) for time in range(length)]
                assert highest(text, rise, length) == max(levels, default=0.0), (text, rise, length)


def test_a_training_that_cannot_be_what_is_asked_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    def run(schedule, training=None, **limits):
        optim = {"noise_schedule": schedule, "lr_warmup_unit": "step"}
        config = toy_config(optim, {"epochs": 2, **(training or {})})
        limits = {"max_steps": None, "max_minutes": None, **limits}
        return recipe.train(Command(config, tmp_path, tmp_path / "run", **limits), ToyTask(config), {})

    with pytest.raises(UserError, match="^optim.noise_schedule: 5-5S has no noise in the 2 epochs"):
        run("5-5S")
    with pytest.raises(UserError, match="^training.graphs: this task's network does not do the same"):
        run("1-1S", {"graphs": True})
    with pytest.raises(UserError, match="^training.log_curvature: curvature by layer needs noise of one size"):
        monkeypatch.setattr(SymmetricNoise, "_check_curvature", ShapedNoise._check_curvature)
        run("1-1S", {"log_curvature": True})
    assert not (tmp_path / "run").exists()
    assert run("1-5S", max_minutes=1e-9) == 0
    said = capsys.readouterr().err
    assert f"warning: {tmp_path / 'run'}: optim.noise_schedule: 1-5S has 6 epochs, and those after 2 are" in said
    assert f"warning: {tmp_path / 'run'}: optim.lr_warmup_unit: step does nothing without optim.lr_warmup;" in said


def test_a_training_of_ones_own_optimizer_is_held_to_the_same(tmp_path):
    """fit() without train(), and so without a configuration of the optimizer."""
    network = ToyTask(toy_config()).model

    def refused(message, make, *schedules):
        optimizer = make(torch.optim.SGD(noise_groups(network, noise=0.3), lr=0.1))
        schedulers = [(LambdaNoise(optimizer, factor), unit) for factor, unit in schedules]
        with pytest.raises(ValueError, match=message):
            check_begins(optimizer, schedulers, epochs=2, steps=10)
        with pytest.raises(ValueError, match=message):
            run = RunDirectory(tmp_path / "run", {})
            fit(ToyTask(toy_config()), optimizer, schedulers, TrainingConfig(epochs=2), run)

    refused("factor is 0 in all 2 epochs", SymmetricNoise, (phases("2-1S"), "epoch"))
    refused("factor is 0 in all 10 steps", SymmetricNoise, (phases("10-1S"), "step"))
    refused('every "epoch" or every "step", not \'epochs\'', SymmetricNoise, (phases("1-1S"), "epochs"))
    refused("start=10 is not below 10", lambda base: WeightAverage(base, network, start=10))
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(network, noise=0.3), lr=0.1))
    check_begins(optimizer, [(LambdaNoise(optimizer, phases("9-1S")), "step")], epochs=2, steps=10)


def test_schedulers_are_those_described():
    def units(**settings):
        config = OptimConfig(**settings)
        optimizer = build_optimizer(Network(), config)
        return [(type(s).__name__, unit) for s, unit in build_schedulers(optimizer, config, epochs=4)]

    assert units() == units(method="ssgd", noise=0.1) == []
    assert units(method="ssgd", noise=0.1, noise_schedule="1-1S") == [("LambdaNoise", "epoch")]
    assert units(method="ssgd", noise=0.1, noise_ramp=(0, 2), noise_unit="step") == [("LambdaNoise", "step")]
    assert units(noise_schedule="1-1S") == []  # nothing to schedule
    assert units(lr_schedule="cosine") == [("LambdaLR", "epoch")]
    both = units(method="ssgd", noise=0.1, noise_schedule="1-1S", lr_schedule="zaremba", noise_unit="step")
    assert both == [("LambdaLR", "epoch"), ("LambdaNoise", "step")]
    with pytest.raises(ValueError, match="give steps_per_epoch"):
        units(lr_warmup=9, lr_warmup_unit="step")
