"""Weights that a module stores otherwise than as one parameter of its own: reparametrized, tied, frozen, quantized."""

import warnings

import pytest
import torch
from perturbed_layers import noisy
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from seqssgd.optim import SymmetricNoise, noise_groups

# ---- weights that are stored otherwise -------------------------------------------------------------------------------


def old(function, *args, **options):
    """Older forms of torch.nn.utils still work and warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(1, 4), lambda: nn.Conv1d(3, 4, 2)], ids=["a gain of the weight's own shape", "conv"]
)
def test_weight_norm_perturbs_the_direction_and_not_the_gain(make):
    before, now = old(nn.utils.weight_norm, make()), parametrizations.weight_norm(make())
    assert noisy(nn.Sequential(before)) == {"0.weight_v": "0"}
    assert noisy(nn.Sequential(now)) == {"0.parametrizations.weight.original1": "0"}
    weight = now.weight.detach().clone()
    with torch.no_grad():
        now.parametrizations.weight.original1.mul_(3.0)
    torch.testing.assert_close(now.weight, weight)  # so original1 is the direction: its length does not matter


def test_weight_norm_on_one_kernel_of_an_lstm_keeps_it_in_its_layer():
    assert noisy(old(nn.utils.weight_norm, nn.LSTM(3, 4), "weight_hh_l0")) == {
        "weight_ih_l0": "l0",
        "weight_hh_l0_v": "l0",
    }
    assert noisy(parametrizations.weight_norm(nn.LSTM(3, 4), "weight_ih_l0")) == {
        "parametrizations.weight_ih_l0.original1": "l0",
        "weight_hh_l0": "l0",
    }


def test_weight_norm_on_attention_is_found():
    model = parametrizations.weight_norm(nn.MultiheadAttention(4, 2), "in_proj_weight")
    assert noisy(model) == {
        "parametrizations.in_proj_weight.original1": "in_proj_weight",
        "out_proj.weight": "out_proj",
    }


def test_spectral_norm_orthogonal_and_pruned_weights_are_perturbed_where_they_are_stored():
    assert noisy(old(nn.utils.spectral_norm, nn.Linear(3, 4))) == {"weight_orig": "dense"}
    for wrap in (parametrizations.spectral_norm, parametrizations.orthogonal):
        assert noisy(wrap(nn.Linear(3, 4))) == {"parametrizations.weight.original": "dense"}
    assert noisy(prune.random_unstructured(nn.Conv2d(3, 4, 2), "weight", amount=0.3)) == {"weight_orig": "conv"}


def test_building_groups_changes_nothing_of_the_model():
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(3, 4)), parametrizations.weight_norm(nn.GRU(4, 4), "weight_hh_l0")
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    noise_groups(model, noise=0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())


class Product(nn.Module):
    """A weight stored as two factors, neither of which is the weight."""

    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        return weight[:, :1].clone(), weight[:1, :].clone()


def test_factors_of_a_weight_are_not_taken_for_the_weight():
    layer = nn.Linear(3, 4)
    parametrize.register_parametrization(layer, "weight", Product(), unsafe=True)
    assert noisy(nn.Sequential(layer, nn.Linear(4, 4))) == {"1.weight": "1"}


# ---- tied, frozen, used ----------------------------------------------------------------------------------------------


def test_a_tied_weight_appears_once_with_the_name_it_is_met_by_first():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "output": nn.Linear(3, 5)})
    model["output"].weight = model["embedding"].weight
    assert noisy(model) == {"embedding.weight": "embedding"}
    assert noisy(model, only={"dense"}) == {"embedding.weight": "output"}  # it is a dense weight too
    assert noisy(model, include=["output.weight"]) == {"embedding.weight": "embedding"}
    norm = nn.LayerNorm(3)
    model = nn.Sequential(norm, nn.Linear(3, 3), norm)  # a module that is used twice
    assert noisy(model) == {"1.weight": "1"}


def test_frozen_parameters_have_a_group_too():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    assert noisy(model) == {"0.weight": "0", "1.weight": "1"}


def test_nothing_that_is_both_noisy_and_trained_is_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3))
    model[:2].requires_grad_(False)
    message = "all 2 that Sequential has are frozen. Give include= .* those that are trained: '\\*.weight', '\\*.bias'"
    with pytest.raises(ValueError, match=message):
        noise_groups(model, noise=0.5)
    assert noisy(model, include="2.weight")["2.weight"] == "2.weight"
    with pytest.raises(ValueError, match="no weights to perturb: all 2 that Sequential has are frozen$"):
        noise_groups(model.requires_grad_(False), noise=0.5)


def test_weights_that_are_frozen_after_the_groups_were_made_end_the_passes():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.5), lr=0.1))
    model[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="no weight with a noise level is trained"):
        next(iter(optimizer.passes()))
    optimizer.param_groups[0]["noise"] = 0.0
    assert [part.sign for part in optimizer.passes()] == [0]


def test_quantized_weights_are_left_alone_without_an_error():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    model[0].weight = nn.Parameter(torch.zeros(5, 1, dtype=torch.uint8), requires_grad=False)  # as 4-bit weights are
    assert noisy(model) == {"1.weight": "1"}
    assert noise_groups(model, noise=0.5)[1]["roles"] == ["quantized", "bias"]
    by_hand = [{"params": list(model.parameters()), "noise": 0.5}]
    SymmetricNoise(torch.optim.SGD(by_hand, lr=0.1))  # what is not trained needs no weights that noise can be added to


@pytest.mark.parametrize("size", [10, 300])
def test_a_warning_names_what_is_left_out_if_it_is_much(size):
    model = nn.Sequential(nn.Linear(size, size), Mixer(), nn.LayerNorm(size))
    if 9 + 12 < 0.02 * (size**2 + 9 + 12):
        assert noisy(model) == {"0.weight": "0"}
        return
    message = (
        r"leaves 17.4% of the weights of Sequential alone \(21 of 121, biases and gains not counted\). "
        r"poles, .*: \*.A_log; learned initial states: \*.h0. Give their names to include="
    )
    with pytest.warns(UserWarning, match=message):
        assert noisy(model) == {"0.weight": "0"}
    assert noisy(model, include=["*.A_log", "1.h0"]).keys() == {"0.weight", "1.A_log", "1.h0"}
    assert noisy(model, exclude=["1.A_log", "1.h0"]).keys() == {"0.weight"}


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(3, 3))
        self.h0 = nn.Parameter(torch.zeros(2, 6))


def test_groups_tell_of_each_parameter_its_name_and_what_it_is():
    noisy_group, rest = noise_groups(
        nn.Sequential(nn.LSTM(3, 4), nn.LayerNorm(4), nn.Linear(4, 4)), 0.5, only=["dense"]
    )
    assert noisy_group["names"] == ["2.weight"] and noisy_group["roles"] == ["dense"]
    assert rest["names"] == [f"0.{n}_l0" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")] + [
        "1.weight",
        "1.bias",
        "2.bias",
    ]
    assert rest["roles"] == ["not chosen", "not chosen", "bias", "bias", "norm", "bias", "bias"]


def test_checkpoints_of_groups_without_names_still_load():
    def optimizer():
        return SymmetricNoise(torch.optim.Adam(noise_groups(nn.Linear(3, 3), noise=0.5), lr=0.1))

    state = optimizer().state_dict()
    for group in state["param_groups"]:
        del group["names"], group["roles"]
        group["lr"] = 0.3
    loaded = optimizer()
    loaded.load_state_dict(state)
    assert [(g["names"], g["roles"], g["lr"]) for g in loaded.param_groups] == [
        (["weight"], ["dense"], 0.3),
        (["bias"], ["bias"], 0.3),
    ]


def test_a_model_of_weights_only_has_one_group():
    (group,) = noise_groups(nn.Embedding(5, 3), noise=1)
    assert group["noise"] == 1.0 and isinstance(group["noise"], float) and len(group["params"]) == 1


def test_groups_of_a_model_that_grows_can_be_added_later():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer = SymmetricNoise(torch.optim.Adam(noise_groups(first, noise=0.5), lr=0.1))
    for group in noise_groups(second, noise=0.25):
        optimizer.add_param_group(group)
    assert [group["noise"] for group in optimizer.param_groups] == [0.5, 0.0, 0.25, 0.0]
    clean = second.weight.detach().clone()
    for _ in optimizer.passes():
        ratio = (second.weight.detach() - clean).norm() / clean.norm()
        assert ratio.item() == pytest.approx(0.25, rel=1e-5)
        second(first(torch.ones(1, 3))).sum().backward()
    optimizer.step()
    assert not torch.equal(second.weight, clean)
