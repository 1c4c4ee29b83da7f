"""What is given in place of what is wanted: refused in words that name the mend, by the groups and by every method."""

import inspect
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from seqssgd import optim
from seqssgd.optim import IVON, SAM, MultiPassOptimizer, SymmetricNoise, WeightAverage, noise_groups

METHODS = [
    method
    for _, method in inspect.getmembers(optim, inspect.isclass)
    if issubclass(method, MultiPassOptimizer) and method not in (IVON, MultiPassOptimizer, optim.RandomNoise)
]


@pytest.mark.parametrize(("arguments", "word"), [
    ({"model": iter([nn.Parameter(torch.ones(2, 2))])}, "takes the model, whose modules tell"),
    ({"model": {"w": nn.Parameter(torch.ones(2, 2))}}, "takes the model, whose modules tell"),
    ({"roles": "recurrent"}, "roles='recurrent': give a dictionary"),
    ({"roles": {3: "dense"}}, "the key must be a class of modules"),
    ({"include": 3}, "include=3: give a name"),
    ({"exclude": [3]}, r"exclude=\[3\]: give a name"),
    ({"only": 3}, "only=3: give a collection of roles"),
    ({"noise": True}, "must be a finite number >= 0, not True"),
    ({"noise": "0.5"}, "must be a finite number >= 0, not '0.5'"),
    ({"noise": torch.ones(1)}, r"of a tensor give float\(...\)"),
], ids=[*"abcdefghij"])  # fmt: skip
def test_other_things_are_refused_with_the_mend(arguments, word):
    with pytest.raises((TypeError, ValueError), match=word):
        noise_groups(**{"model": nn.Linear(2, 2), "noise": 0.5, **arguments})


@pytest.mark.parametrize("level", [torch.tensor(0.25), np.float32(0.25), np.array(0.25)], ids=str)
def test_a_level_may_be_a_tensor_or_an_array_of_one_number(level):
    (group, _) = noise_groups(nn.Linear(2, 2), noise=level)
    assert float(group["noise"]) == 0.25 and isinstance(group["noise"], float)


@pytest.mark.parametrize("seed", [None, "a", 1.5, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="give a whole number"):
        SymmetricNoise(torch.optim.SGD(noise_groups(nn.Linear(2, 2), 0.5), lr=0.1), seed=seed)


def test_a_level_in_percent_that_is_set_by_hand_is_warned_of_where_levels_are_fractions():
    for granularity in ("layer", "absolute"):
        optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(nn.Linear(2, 2), 0.5), lr=0.1), granularity=granularity)
        optimizer.param_groups[0]["noise"] = 70
        with pytest.warns(UserWarning, match="divide it by 100") if granularity == "layer" else nullcontext():
            next(optimizer.passes())


# ---- of every method -------------------------------------------------------------------------------------------------


class Own(MultiPassOptimizer):
    """A method that somebody else has written."""

    def __init__(self, base, factor=1.0, **settings):
        super().__init__(base, **settings)


@pytest.mark.parametrize("method", [*METHODS, Own])
def test_every_method_wraps_one_optimizer_not_its_class_and_not_two(method):
    model = nn.Linear(2, 2)
    matrices, rest = noise_groups(model, 0.5)
    name, more = method.__name__, [model] if method is WeightAverage else []
    with pytest.raises(TypeError, match=rf"{name} wraps a torch.optim optimizer, not its class: {name}\(SGD\(groups"):
        method(torch.optim.SGD, [matrices, rest])
    pair = torch.optim.Muon([matrices], lr=0.1), torch.optim.AdamW([rest], lr=0.1)
    with pytest.raises(TypeError, match=rf"{name}\(Together\(Muon\(...\), AdamW\(...\)\)"):
        method(*pair)
    with pytest.raises(TypeError, match=rf"{name} takes one optimizer and settings by name \(.*\), not 'halves' too"):
        method(pair[0], *more, *([0.5] if method is Own else []), "halves")
    with pytest.raises(TypeError, match=f"{name} wraps a torch.optim optimizer, not "):
        method(
            [matrices, rest], *more, **{optim.CovarianceNoise: {"noise": 0.5}, optim.MSAM: {"rho": 0.5}}.get(method, {})
        )


def test_sam_as_other_programs_spell_it_is_told_how_it_is_spelled_here():
    with pytest.raises(TypeError, match=r"SAM\(SGD\(groups, lr=...\), ...\)"):
        SAM(nn.Linear(2, 2).parameters(), torch.optim.SGD, lr=0.1, rho=0.05)


def test_ivon_wraps_no_optimizer():
    model = nn.Linear(2, 2)
    for base in (torch.optim.SGD, torch.optim.SGD(model.parameters(), lr=0.1)):
        with pytest.raises(TypeError, match=r"IVON\(model.parameters\(\), lr, ess=...\)"):
            IVON(base, model.parameters(), ess=10.0)
    with pytest.raises(TypeError, match=r"settings by name \(ess=..., .*\), not 10.0 too"):
        IVON(model.parameters(), 0.1, 10.0)
