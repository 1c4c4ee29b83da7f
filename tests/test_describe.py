"""What is said about the noise on a model agrees with what the optimizer does to it."""

import math

import pytest
import torch
from torch import nn

from seqssgd.optim import IVON, NSO, SAM, DropConnect, OneSidedNoise, SymmetricNoise, describe, noise_groups
from seqssgd.optim.noise import DISTRIBUTIONS, GRANULARITIES
from seqssgd.optim.roles import LEFT_ALONE


def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"embed": nn.Embedding(50, 20), "rnn": nn.LSTM(20, 30), "norm": nn.LayerNorm(30), "out": nn.Linear(30, 50)}
    )


def moved(optimizer, network):
    """‖n‖ of each layer, from the weights themselves."""
    layers = {
        "embed": [network["embed"].weight],
        "rnn.l0": [network["rnn"].weight_ih_l0, network["rnn"].weight_hh_l0],
        "out": [network["out"].weight],
    }
    clean = {name: [p.detach().clone() for p in own] for name, own in layers.items()}
    norms = {}
    for part in optimizer.passes():
        if part.sign > 0:
            for name, own in layers.items():
                squares = [(p.detach() - c).square().sum() for p, c in zip(own, clean[name], strict=True)]
                norms[name] = math.sqrt(sum(squares))
        sum(p.sum() for own in layers.values() for p in own).backward()
    return norms


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_norms_are_those_of_the_perturbation(distribution, granularity):
    network = model()
    base = torch.optim.SGD(noise_groups(network, noise=0.3), lr=0.1)
    optimizer = SymmetricNoise(base, distribution=distribution, granularity=granularity)
    said = {layer.name: layer.norm for layer in describe(optimizer).layers}
    exact = granularity in ("tensor", "layer", "filter") or distribution == "rademacher"
    assert said == pytest.approx(moved(optimizer, network), rel=1e-5 if exact else 0.1)  # 1000 numbers and more each


def test_dropconnect_moves_by_what_it_drops():
    network = model()
    optimizer = DropConnect(torch.optim.SGD(noise_groups(network, noise=0.4), lr=0.1))
    said = {layer.name: layer.norm for layer in describe(optimizer).layers}
    assert said == pytest.approx(moved(optimizer, network), rel=0.1)


def test_dropconnect_at_a_level_that_drops_all_has_no_norm_yet():
    optimizer = DropConnect(torch.optim.SGD(noise_groups(model(), noise=0.4), lr=0.1))
    optimizer.param_groups[0]["noise"] = 1.0
    assert {layer.norm for layer in describe(optimizer).layers} == {None}


def test_ivon_moves_by_its_posterior_before_and_after_it_has_learned_a_curvature():
    network = model()
    optimizer = IVON(noise_groups(network, noise=0.5), 0.1, ess=50.0, hess_init=0.3, betas=(0.9, 0.9))
    for _ in range(2):
        said = {layer.name: layer.norm for layer in describe(optimizer).layers}
        assert said == pytest.approx(moved(optimizer, network), rel=0.1)
        optimizer.step()
        optimizer.zero_grad()


def test_a_norm_that_depends_on_the_gradient_is_not_told():
    description = describe(SAM(torch.optim.SGD(model().parameters(), lr=0.1)))
    assert {layer.norm for layer in description.layers} == {None}
    assert description.noisy == description.trained == sum(p.numel() for p in model().parameters())


def test_the_table_of_a_small_model():
    network = model()
    for p in network.parameters():
        nn.init.constant_(p, 0.5)
    network["embed"].weight.requires_grad_(False)
    description = describe(noise_groups(network, noise=0.5, exclude="out.weight"))
    assert str(description).splitlines() == [
        "layer   role       shape            level    ‖n‖  trained",
        "embed   embedding  50×20              0.5      0  no",
        "rnn.l0  recurrent  120×20 + 120×30    0.5  19.36  yes",
        "",
        "noise 0.5 on 6,000 of 7,850 trained parameters (76.4 %)",
        "frozen, and not perturbed until they require gradients: 1,000",
        "left alone:",
        "    320  biases, also those of positions and of experts: rnn.bias_ih_l*, rnn.bias_hh_l*, norm.bias, out.bias",
        "     30  gains of norm layers and of activations: norm.weight",
        "  1,500  weights that only= or exclude= leaves out: out.weight",
    ]
    assert repr(description) == "<noise 0.5 on 6,000 of 7,850 trained parameters (76.4 %)>"
    assert sum(layer.size for layer in description.layers) + sum(left.size for left in description.left) == sum(
        p.numel() for p in network.parameters()
    )


def test_levels_are_those_of_the_moment_and_of_every_group():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = NSO(torch.optim.SGD([*noise_groups(first, 0.25), *noise_groups(second, 0.5)], lr=0.1))
    assert [layer.level for layer in describe(optimizer).layers] == [0.25, 0.5]
    assert repr(optimizer) == "NSO(SGD): noise 0.25 to 0.5 on 8 of 12 trained parameters (66.7 %)"
    optimizer.param_groups[0]["noise"] = 0.0
    description = describe(optimizer)
    assert [layer.level for layer in description.layers] == [0.5] and description.left[0].reason == "level 0"
    optimizer.param_groups[2]["noise"] = 0.0
    assert repr(optimizer) == "NSO(SGD): no noise on 12 trained parameters"
    assert describe(optimizer).noisy == 0


def test_groups_made_by_hand_are_described_as_far_as_they_tell():
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = OneSidedNoise(torch.optim.SGD([{"params": [weight], "noise": 0.5}, {"params": [bias]}], lr=0.1))
    description = describe(optimizer)
    assert [(layer.name, layer.role, layer.norm) for layer in description.layers] == [("group 0, parameter 0", "", 1.0)]
    assert [(left.reason, left.names) for left in description.left] == [("level 0", ("group 1, parameter 0",))]
    assert str(describe(optimizer.base)) == str(description)
    network = nn.Linear(2, 2)
    network.weight, network.bias = weight, bias
    known = describe(optimizer, network)
    assert [(layer.name, layer.role) for layer in known.layers] == [("dense", "dense")]
    assert [(left.reason, left.names) for left in known.left] == [(LEFT_ALONE["bias"], ("bias",))]


def test_weights_without_values_have_no_norm():
    with torch.device("meta"):
        network = nn.Linear(3, 3)
    assert "–" in str(describe(noise_groups(network, noise=0.5)))


def test_a_model_in_place_of_an_optimizer_is_refused_with_the_mend():
    with pytest.raises(TypeError, match=r"takes the optimizer, or noise_groups\(model, noise=...\), not the Linear"):
        describe(nn.Linear(2, 2))
