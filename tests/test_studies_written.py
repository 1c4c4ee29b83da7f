"""The studies as they are written: what their arms are, and which are compared at equal compute."""

import pytest
import torch
import yaml
from programs import ROOT
from study_program import RECIPES, STUDIES, STUDY, TRAIN

from seqssgd.language.networks import NETWORKS
from seqssgd.optim.noise import NORMS
from seqssgd.training import OptimConfig, TrainingConfig, build_optimizer
from seqssgd.training.methods import METHODS
from seqssgd.training.reach import check_reach

NAMED = {recipe for study in STUDIES.values() for recipe in study.get("recipes", [])}  # by the studies made for them
ANY = [recipe for recipe in RECIPES if recipe not in NAMED - {"ptb", "demo"}]
MADE_FOR = [(study, recipe) for study in STUDIES for recipe in STUDIES[study].get("recipes", ANY)]


def base_of(recipe: dict):
    """The recipe's optimizer and loop, without noise."""
    file = yaml.safe_load((ROOT / "recipes" / recipe["config"]).read_text())
    sections = {"optim": dict(file["optim"]), "training": dict(file["training"])}
    for key, value in recipe["options"].items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return TRAIN.Config(
        NETWORKS.settings("lstm"), OptimConfig(**sections["optim"]), TrainingConfig(**sections["training"])
    )


def cells(study: str, recipe: str) -> dict[str, tuple[OptimConfig, TrainingConfig, dict]]:
    """Every alternative by name, as the configuration that it is; of other sections, what the study sets."""
    base, found = base_of(RECIPES[recipe]), {}
    file = yaml.safe_load((ROOT / "recipes" / RECIPES[recipe]["config"]).read_text())
    for _, name, settings in STUDY.alternatives(STUDIES[study]["arms"], RECIPES[recipe]["roles"], trials_first=False):
        sections = {"optim": dict(file["optim"]), "training": dict(file["training"])}
        options = {**RECIPES[recipe]["options"], "optim.noise": 0.0}
        for key, value in {**options, **STUDY.absolute(base, settings)}.items():
            section, _, option = key.partition(".")
            sections.setdefault(section, {})[option] = value
        found[name] = OptimConfig(**sections.pop("optim")), TrainingConfig(**sections.pop("training")), sections
    return found


def passes(optim: OptimConfig, training: TrainingConfig) -> float:
    """Passes over the training data, those of a step counted by the optimizer itself."""
    model, x, of_step = torch.nn.Sequential(torch.nn.Linear(3, 2)), torch.ones(4, 3), {}
    optimizer = build_optimizer(model, optim)
    factor = optim._noise() or (lambda epoch: 1.0)
    for on in (1.0, 0.0):
        for group in optimizer.param_groups:
            group[optimizer.level_key] = group.get(optimizer.level_key, 0.0) * on
        of_step[on] = 0.0
        for part in optimizer.passes():
            part.mean(model(part.take(x)).square().sum(1)).backward()
            of_step[on] += part.cost
        optimizer.step()
    return sum(of_step[factor(epoch)] for epoch in range(training.epochs))


@pytest.mark.parametrize("study, recipe", MADE_FOR)
def test_every_run_of_every_study_is_a_configuration_of_its_own(study, recipe):
    found = cells(study, recipe)
    assert len({repr(config) for config in found.values()}) == len(found) >= 2
    assert [text for optim, training, _ in found.values() for text in check_reach(optim, training, 1000)] == []
    kinds = {tuple(optim.only) for optim, *_ in found.values() if optim.only}
    assert kinds == ({(role,) for role in RECIPES[recipe]["roles"]} if study == "noise-level" else set())


@pytest.mark.parametrize("recipe", ["an4", "ptb", "cifar", "demo"])
@pytest.mark.parametrize("study", ["phases", "price", "rivals", "regularised", "methods"])
def test_studies_at_equal_compute_are(study, recipe):
    found = {name: passes(*config[:2]) for name, config in cells(study, recipe).items() if name != "once"}
    assert len(set(found.values())) == 1, found


def test_every_method_is_tuned_with_as_many_trials():
    found: dict[str, int] = {}
    for arm, _, settings in STUDY.alternatives(STUDIES["methods"]["arms"], [], trials_first=True):
        found[arm] = found.get(arm, 0) + 1
        assert settings["optim.method"] in METHODS
    assert set(found.values()) == {3}
    tuned = {settings["optim.method"] for settings in STUDIES["methods"]["arms"].values()}
    assert tuned == set(METHODS) - {"swa", "ivon", "msam"}  # of which studies.yaml says why


def test_what_the_pair_is_worth_is_asked_at_equal_compute_with_as_many_trials_for_each():
    for recipe in STUDIES["pair"]["recipes"]:
        found = {name: passes(*config[:2]) for name, config in cells("pair", recipe).items()}
        assert len(set(found.values())) == 1, found
    arms = [name.partition("-")[0] for name in found]
    assert {arms.count(arm) for arm in arms} == {3} and len(set(arms)) == 13


def test_the_first_trials_of_all_methods_come_first():
    names = [name for _, name, _ in STUDY.alternatives(STUDIES["methods"]["arms"], [], trials_first=True)]
    arms = list(STUDIES["methods"]["arms"])
    assert [name.partition("-")[0] for name in names] == 3 * arms
    assert names[:2] == ["none-1", "ssgd-1"] and names[len(arms)] == "none-0.5"


def test_the_small_rnn_is_compared_at_the_passes_of_both_sides_of_table_5():
    found = {name: passes(*config[:2]) for name, config in cells("rnn300", "rnn300").items()}
    at_39 = {"none", "weight_noise", "halves", "phases"}
    assert {name: 39 if name in at_39 else 78 for name in found} == found and len(found) == 8


def test_speech_is_compared_at_equal_compute_but_for_the_papers_form():
    found = {name: passes(*config[:2]) for name, config in cells("ocean", "ocean").items()}
    assert {name: 80 if name.startswith("batch") else 40 for name in found} == found


def test_the_mechanism_is_studied_at_equal_norms():
    found = [optim for optim, *_ in cells("mechanism", "ptb").values() if optim.method != "none"]
    assert len(found) == 27 and {optim.noise for optim in found} == {0.7}
    assert {optim.granularity for optim in found} == set(NORMS)
