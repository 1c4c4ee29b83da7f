"""Which weights are perturbed, and which of them share a norm."""

import math
import re
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from seqssgd.optim import SymmetricNoise, noise_groups


def noisy(model, **options):
    """Parameter name -> layer name of all that gets the level; checks that every parameter is in exactly one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = noise_groups(model, noise=0.5, **options)
    listed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(names.values())
    assert all(len(group["layers"]) == len(group["params"]) for group in groups)
    assert [group["noise"] for group in groups] == [0.5, 0.0][: len(groups)]
    for group in groups[1:]:
        assert group["layers"] == [names[id(p)] for p in group["params"]]
    return {names[id(p)]: layer for p, layer in zip(groups[0]["params"], groups[0]["layers"], strict=True)}


# ---- modules of torch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "module"),
    [
        ("dense", nn.Linear(3, 4)),
        ("dense", nn.Linear(3, 4, bias=False)),
        ("dense", nn.Bilinear(2, 3, 4)),
        ("conv", nn.Conv1d(3, 4, 2)),
        ("conv", nn.Conv2d(4, 4, 3, groups=4)),
        ("conv", nn.Conv3d(3, 4, 1)),
        ("conv", nn.ConvTranspose1d(3, 4, 2)),
        ("conv", nn.ConvTranspose2d(3, 4, 2)),
        ("conv", nn.ConvTranspose3d(3, 4, 2)),
        ("embedding", nn.Embedding(5, 3, padding_idx=0)),
        ("embedding", nn.EmbeddingBag(5, 3)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_weight_is_perturbed_and_the_bias_is_not(role, module):
    assert noisy(nn.Sequential(module)) == {"0.weight": "0"}
    assert noisy(module, only={role}) == {"weight": role}  # a module of its own is called by its role
    others = {"recurrent", "conv", "dense", "embedding"} - {role}
    with pytest.raises(ValueError, match="no weights to perturb: Sequential"):
        noise_groups(nn.Sequential(module), noise=0.5, only=others)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_the_kernels_of_a_recurrent_layer_and_direction_share_a_name(kind):
    model = nn.ModuleDict({"rnn": kind(3, 4, num_layers=2, bidirectional=True)})
    assert noisy(model) == noisy(model, only=["recurrent"])
    assert noisy(model) == {
        f"rnn.weight_{kernel}_{layer}": f"rnn.{layer}"
        for layer in ("l0", "l0_reverse", "l1", "l1_reverse")
        for kernel in ("ih", "hh")
    }


def test_the_projection_of_an_lstm_belongs_to_its_layer():
    assert noisy(nn.LSTM(3, 4, num_layers=2, proj_size=2)) == {
        f"weight_{kernel}_{layer}": layer for layer in ("l0", "l1") for kernel in ("ih", "hh", "hr")
    }


def test_eleven_layers_have_eleven_names():
    layers = noisy(nn.LSTM(2, 2, num_layers=11))
    assert layers["weight_ih_l10"] == "l10" and layers["weight_hh_l1"] == "l1"
    assert len(set(layers.values())) == 11


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_a_recurrent_cell_is_one_layer(kind):
    assert noisy(nn.Sequential(kind(3, 4))) == {"0.weight_ih": "0", "0.weight_hh": "0"}
    assert noisy(kind(3, 4)) == {"weight_ih": "recurrent", "weight_hh": "recurrent"}


def test_attention_projections_are_weights_packed_or_separate():
    packed = nn.Sequential(nn.MultiheadAttention(4, 2, add_bias_kv=True))
    assert noisy(packed, only={"dense"}) == {"0.in_proj_weight": "0.in_proj_weight", "0.out_proj.weight": "0.out_proj"}
    separate = nn.Sequential(nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True))
    assert noisy(separate) == {
        **{f"0.{name}_proj_weight": f"0.{name}_proj_weight" for name in "qkv"},
        "0.out_proj.weight": "0.out_proj",
    }


def test_a_whole_transformer_is_perturbed_but_for_biases_and_norms():
    model = nn.Transformer(4, 2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=6, batch_first=True)
    expected = {name for name, p in model.named_parameters() if "bias" not in name and "norm" not in name}
    assert set(noisy(model)) == expected and len(expected) == 2 + 4 + 4  # attention in and out, feed-forward


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3),
        nn.SyncBatchNorm(3),
        nn.InstanceNorm1d(3, affine=True),
        nn.LayerNorm([3, 4]),
        nn.GroupNorm(1, 3),
        nn.RMSNorm(3),
        nn.PReLU(3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_gains_of_norm_layers_and_activations_are_left_alone_whatever_their_shape(norm):
    assert set(noisy(nn.Sequential(norm, nn.Linear(3, 4)))) == {"1.weight"}
    with pytest.raises(ValueError, match="no weights to perturb"):
        noise_groups(norm, noise=0.5)


# ---- chosen by name --------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """A module that torch does not know, with a matrix, a vector, and a child that torch knows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.speed = nn.Parameter(torch.ones(3))
        self.inner = nn.Linear(3, 3)


class FactoredLinear(nn.Linear):
    """A subclass is what its parent is; what it adds is unknown."""

    def __init__(self):
        super().__init__(3, 3)
        self.weight_v2 = nn.Parameter(torch.ones(3, 3))


MATRICES = {"0.weight": "0", "0.inner.weight": "0.inner", "1.weight": "1", "1.weight_v2": "1.weight_v2"}


def test_matrices_of_unknown_modules_are_perturbed_and_more_by_name():
    model = nn.Sequential(Scale(), FactoredLinear(), nn.Linear(30, 30))
    everything = {**MATRICES, "2.weight": "2"}
    assert noisy(model) == everything
    assert noisy(model, only=["other"]) == {"0.weight": "0", "1.weight_v2": "1.weight_v2"}
    assert noisy(model, include=["0.speed", "1.bias"]) == {**everything, "0.speed": "0.speed", "1.bias": "1.bias"}
    assert noisy(model, include="*.speed") == {**everything, "0.speed": "0.speed"}  # a plain string is one pattern
    assert noisy(model, only=["conv"], include=["0.weight"]) == {"0.weight": "0.weight"}
    assert noisy(model, only=(), include=["*.weight*"]).keys() == everything.keys()
    assert noisy(model, include=["1.weight"])["1.weight"] == "1"  # already there: its layer keeps its name


def test_what_is_excluded_is_left_alone_whatever_else_is_asked():
    model = nn.Sequential(Scale(), FactoredLinear(), nn.Linear(30, 30))
    assert noisy(model, exclude="0.*") == {"1.weight": "1", "1.weight_v2": "1.weight_v2", "2.weight": "2"}
    assert noisy(model, exclude=["0.*", "2.weight"], include=["*"]) == {
        "1.weight": "1",
        "1.weight_v2": "1.weight_v2",
        "1.bias": "1.bias",
        "2.bias": "2.bias",
    }
    tied = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "output": nn.Linear(3, 5), "middle": nn.Linear(3, 3)})
    tied["output"].weight = tied["embedding"].weight
    assert noisy(tied, exclude="output.weight") == {"middle.weight": "middle"}  # by any of its names


def test_compiled_models_answer_to_the_names_that_they_had_before():
    model = nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Linear(3, 3), backend="eager"))
    assert noisy(model, exclude="1.weight") == noisy(model, exclude="1._orig_mod.weight") == {"0.weight": "0"}


class Cell(nn.Module):
    """A recurrent cell as people write it: linear layers and a norm."""

    def __init__(self):
        super().__init__()
        self.i2h, self.h2h, self.norm = nn.Linear(3, 8), nn.Linear(2, 8), nn.LayerNorm(8)
        self.peephole = nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize("key", [Cell, "0.cell*"], ids=["class", "pattern"])
def test_a_cell_of_ones_own_counts_as_one_layer_when_it_is_called_recurrent(key):
    model = nn.Sequential(nn.ModuleDict({"cell_a": Cell(), "cell_b": Cell()}), nn.Linear(3, 3))
    expected = {f"0.{c}.{w}": f"0.{c}" for c in ("cell_a", "cell_b") for w in ("i2h.weight", "h2h.weight", "peephole")}
    assert noisy(model, roles={key: "recurrent"}, only={"recurrent"}) == expected
    assert noisy(model, roles={key: "recurrent"}) == {**expected, "1.weight": "1"}
    assert noisy(Cell(), roles={Cell: "recurrent"}) == dict.fromkeys(
        ("i2h.weight", "h2h.weight", "peephole"), "recurrent"
    )


def test_a_role_can_be_given_to_a_parameter_and_selects_none():
    model = nn.Sequential(Scale(), nn.LayerNorm(3), nn.Linear(30, 30))
    assert noisy(model, roles={"0.weight": "conv"}, only={"conv"}) == {"0.weight": "0"}
    assert noisy(model, roles={"*": "conv"}, only={"conv"}).keys() == {"0.weight", "0.inner.weight", "2.weight"}
    both = noisy(model, roles={"0.inner": "embedding", Scale: "recurrent"}, only={"embedding"})
    assert both == {"0.inner.weight": "0.inner"}  # the first that fits holds


@pytest.mark.parametrize("roles", [{Cell: "recurrent"}, {"2.*": "dense"}, {Scale: "lstm"}])
def test_a_role_that_is_none_or_fits_nothing_is_refused(roles):
    with pytest.raises(ValueError, match=r"roles=\{.*(no such module or parameter|must be one of recurrent, conv)"):
        noise_groups(nn.Sequential(Scale(), nn.Linear(3, 3)), noise=0.5, roles=roles)


@pytest.mark.parametrize("name", ["0.weights", "7.weight", "2.bias", "2.running_mean", "", "3*"])
@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_name_that_is_no_parameter_is_refused(argument, name):
    model = nn.Sequential(Scale(), nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    message = re.escape(f"{argument}='{name}': the model has no parameter of that name")
    with pytest.raises(ValueError, match=message):
        noise_groups(model, noise=0.5, **{argument: [name]})


@pytest.mark.parametrize("level", [70, 2.5, math.inf, -0.1, math.nan])
def test_a_level_that_no_training_bears_is_refused(level):
    hint = {70: "for 70 percent give 0.7", 2.5: "for 2.5 percent give 0.025"}.get(level, "a finite number >= 0")
    with pytest.raises(ValueError, match=hint):
        noise_groups(nn.Linear(3, 3), noise=level)


@pytest.mark.parametrize("only", ["dense", {"dense", "norm"}, ["Linear"]])
def test_an_unknown_role_is_refused(only):
    with pytest.raises(ValueError, match="give a collection of roles out of recurrent, conv, dense, embedding, other"):
        noise_groups(nn.Linear(3, 3), noise=0.5, only=only)


def test_only_selects_roles():
    model = nn.ModuleDict(
        {
            "e": nn.Embedding(5, 3),
            "c": nn.Conv1d(3, 3, 1),
            "r": nn.GRU(3, 3),
            "o": nn.Linear(3, 5),
            "n": nn.LayerNorm(3),
        }
    )
    assert set(noisy(model, only={"conv", "embedding"})) == {"e.weight", "c.weight"}
    assert set(noisy(model, only={"recurrent"})) == {"r.weight_ih_l0", "r.weight_hh_l0"}
    assert len(noisy(model)) == 5


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


# ---- what is given in place of what is wanted ------------------------------------------------------------------------


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


def test_one_optimizer_is_wrapped_not_its_class_and_not_two():
    model = nn.Linear(2, 2)
    matrices, rest = noise_groups(model, 0.5)
    with pytest.raises(TypeError, match=r"not its class: SymmetricNoise\(SGD\(groups"):
        SymmetricNoise(torch.optim.SGD, [matrices, rest])
    pair = torch.optim.Muon([matrices], lr=0.1), torch.optim.AdamW([rest], lr=0.1)
    with pytest.raises(TypeError, match=r"SymmetricNoise\(Together\(Muon\(...\), AdamW\(...\)\)"):
        SymmetricNoise(*pair)
    with pytest.raises(TypeError, match="one optimizer and settings by name"):
        SymmetricNoise(pair[0], "halves")


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
