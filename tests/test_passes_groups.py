"""Parameter groups of an optimizer with noise: those that it takes, and those that it refuses.

How ``noise_groups`` makes them is in ``test_groups.py``.
"""

import pytest
import torch
from regression import regression
from torch import nn

from seqssgd.optim import MuonAdamW, SymmetricNoise, noise_groups


@pytest.mark.parametrize("level", [-0.1, float("nan"), float("inf"), "0.5", None])
def test_impossible_levels_are_refused_wherever_they_come_from(level):
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match="noise level"):
        SymmetricNoise(torch.optim.SGD([{"params": [weight], "noise": level}], lr=0.1))
    model, optimizer = regression()
    with pytest.raises(ValueError, match="noise level"):
        optimizer.add_param_group({"params": [weight], "noise": level})
    assert len(optimizer.param_groups) == 2
    optimizer.param_groups[0]["noise"] = level
    with pytest.raises(ValueError, match="noise level"):
        for _ in optimizer.passes():
            pass


def test_groups_that_were_divided_without_their_layers_are_refused():
    weights, rest = noise_groups(regression()[0], 0.5)
    first, second = [{**weights, "params": [p]} for p in weights["params"]]
    with pytest.raises(ValueError, match='group 0 has 1 parameters and 2 "layers"'):
        SymmetricNoise(torch.optim.SGD([first, second, rest], lr=0.1))
    bare = [{"params": group["params"], "noise": group["noise"]} for group in (first, second, rest)]
    assert len(SymmetricNoise(torch.optim.SGD(bare, lr=0.1)).entries()) == 2


def test_sparse_and_complex_weights_under_noise_are_refused():
    for weight in (torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2, dtype=torch.complex64)):
        group = {"params": [weight.requires_grad_()], "noise": 0.1}
        with pytest.raises(ValueError, match="dense real"):
            SymmetricNoise(torch.optim.SGD([group], lr=0.1))
        SymmetricNoise(torch.optim.SGD([{**group, "noise": 0.0}], lr=0.1))


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        model, optimizer = regression()
    model.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="Make the optimizer after model.to_empty"):
        next(optimizer.passes())


def test_a_group_of_parameters_that_can_be_read_only_once_has_all_of_them():
    optimizer, extra = regression()[1], nn.Linear(2, 2)
    optimizer.add_param_group({"params": extra.parameters(), "noise": 0.1})
    assert optimizer.param_groups[-1]["params"] == [extra.weight, extra.bias]
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group(noise_groups(extra, 0.1))
    both = MuonAdamW([{"params": extra.parameters(), "noise": 0.1}])
    assert [group["params"] for group in both.param_groups] == [[extra.weight], [extra.bias]]
