"""Which weights are perturbed, and which of them share a norm."""

import math
import re

import pytest
import torch
from perturbed_layers import noisy
from torch import nn

from seqssgd.optim import noise_groups

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


@pytest.mark.parametrize(
    "model, chosen, message",
    [
        (nn.Linear(3, 4), {"exclude": "*"}, "exclude= names all that Linear has; leave some out of it$"),
        (nn.Linear(3, 4), {"exclude": "weight"}, "exclude= names all that Linear has; leave some out of it$"),
        (nn.Linear(3, 4), {"only": set()}, r"only=set\(\) names no role; give some of recurrent, conv"),
        (nn.Linear(3, 4, dtype=torch.complex64), {}, "Linear has none .*; to complex numbers noise cannot be added$"),
        (nn.LayerNorm(3), {"exclude": "bias"}, "LayerNorm has none .* Give include= .*: 'weight', 'bias'$"),
    ],
)
def test_where_nothing_is_left_to_perturb_the_error_says_by_what(model, chosen, message):
    with pytest.raises(ValueError, match=f"^no weights to perturb: {message}"):
        noise_groups(model, noise=0.5, **chosen)


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
