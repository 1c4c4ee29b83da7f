"""What a parameter is: stand-ins with the classes, names and shapes of other people's modules.

``test_other_models.py`` asks the same of the modules themselves, where their packages are installed.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from seqssgd.optim import describe, noise_groups
from seqssgd.optim.roles import LEFT_ALONE, ROLES, kinds


def module(name, children=(), base=nn.Module, **shapes):
    """A module whose class has the given name, with parameters of the given shapes (or tensors), and children."""
    made = type(name, (base,), {})()
    for parameter, shape in shapes.items():
        value = shape if isinstance(shape, torch.Tensor) else torch.ones(shape)
        setattr(made, parameter, nn.Parameter(value, requires_grad=value.is_floating_point() or value.is_complex()))
    for attribute, child in dict(children).items():
        made.add_module(attribute, child)
    return made


def roles(model):
    return {place.name: place.kind for places in kinds(model).values() for place in places}


def layers(model):
    return {place.name: place.layer for places in kinds(model).values() for place in places}


STAND_INS = {  # module, then what each of its parameters is
    "GPT-2's linear layer is transposed": (
        module("Conv1D", weight=(8, 24), bias=(24,)),
        {"weight": "dense", "bias": "bias"},
    ),
    "fused experts": (
        module("MixtralExperts", gate_up_proj=(4, 16, 8), down_proj=(4, 8, 8)),
        {"gate_up_proj": "dense", "down_proj": "dense"},
    ),
    "fused experts with a bias each": (
        module("GptOssExperts", gate_up_proj=(4, 8, 16), gate_up_proj_bias=(4, 16), w1=(4, 8, 16), b1=(4, 16)),
        {"gate_up_proj": "dense", "gate_up_proj_bias": "bias", "w1": "dense", "b1": "bias"},
    ),
    "a router": (
        module("DeepseekV3TopkRouter", weight=(8, 32), e_score_correction_bias=(8,)),
        {"weight": "other", "e_score_correction_bias": "bias"},
    ),
    "XLNet's attention": (
        module("XLNetRelativeAttention", q=(8, 2, 4), r=(8, 2, 4), r_r_bias=(2, 4), seg_embed=(2, 2, 4)),
        {"q": "other", "r": "other", "r_r_bias": "bias", "seg_embed": "embedding"},
    ),
    "SpeechBrain's relative attention": (
        module("RelPosMHAXL", in_proj_weight=(24, 8), pos_bias_u=(2, 4), value_bias_weight=(8,)),
        {"in_proj_weight": "other", "pos_bias_u": "bias", "value_bias_weight": "bias"},
    ),
    "SpeechBrain's hyper network": (
        module("ParallelMLPs", fc1_weights=(2, 4, 4), fc1_biases=(2, 4)),
        {"fc1_weights": "other", "fc1_biases": "bias"},
    ),
    "quaternions": (
        module("QLinear", r_weight=(4, 4), i_weight=(4, 4), bias=(16,)),
        {"r_weight": "other", "i_weight": "other", "bias": "bias"},
    ),
    "Swin's attention": (
        module("SwinSelfAttention", relative_position_bias_table=(9, 2), logit_scale=(2, 1, 1)),
        {"relative_position_bias_table": "bias", "logit_scale": "gain"},
    ),
    "the tables of a vision transformer": (
        module("ViTEmbeddings", position_embeddings=(1, 5, 8), cls_token=(1, 1, 8)),
        {"position_embeddings": "embedding", "cls_token": "vector"},
    ),
    "Mamba": (
        module("MambaMixer", A_log=(8, 4), D=(8,), dt_bias=(8,)),
        {"A_log": "state space", "D": "state space", "dt_bias": "bias"},
    ),
    "S4D": (
        module("S4DKernel", C=(8, 4, 2), log_dt=(8,), log_A_real=(8, 4), A_imag=(8, 4), D=(2, 8)),
        dict.fromkeys(("log_dt", "log_A_real", "A_imag", "D"), "state space") | {"C": "other"},
    ),
    "A and D beside nothing of a state space": (module("Bilinear4", A=(4, 4), D=(4, 4)), {"A": "other", "D": "other"}),
    "S5": (
        module("S5SSM", Lambda=torch.ones(4, dtype=torch.cfloat), B=(4, 8, 2), C=torch.ones(8, 4, dtype=torch.cfloat)),
        {"Lambda": "complex", "B": "other", "C": "complex"},
    ),
    "RWKV": (
        module("RwkvSelfAttention", time_decay=(4, 4), time_mix_key=(1, 1, 8)),
        {"time_decay": "state space", "time_mix_key": "state space"},
    ),
    "xLSTM's cell": (
        module("sLSTMCell_vanilla", _recurrent_kernel_=(4, 16, 4), _bias_=(4, 4, 4)),
        {"_recurrent_kernel_": "other", "_bias_": "bias"},
    ),
    "a cell by hand": (
        module("MyLSTM", W=(16, 4), U=(16, 4), W_in=(1, 16), b=(16,), b_h=(1, 16), h0=(2, 1, 4), init_state=(2, 4)),
        {"W": "other", "U": "other", "W_in": "other", "b": "bias", "b_h": "bias"}
        | {"h0": "initial state", "init_state": "initial state"},
    ),
    "norms by hand": (
        module("BiasFreeLayerNorm", {"grn": module("GRN", weight=(1, 1, 1, 8))}, weight=(3, 8), beta=(3, 8)),
        {"weight": "norm", "beta": "norm", "grn.weight": "norm"},
    ),
    "a norm by its name in the model": (
        module("Model", {"ln_1": module("MyScale", weight=(8,)), "plain": module("MyScale", weight=(3, 8))}),
        {"ln_1.weight": "norm", "plain.weight": "other"},
    ),
    "a norm by its name and its bias": (
        module("Model", {"ln_1": module("MyScale", weight=(3, 8), bias=(3, 8))}),
        {"ln_1.weight": "norm", "ln_1.bias": "bias"},
    ),
    "matrices in modules that are called after norms": (
        module("Model", {name: module("Mine", weight=(64, 64)) for name in ("norm_proj", "proj_norm")}),
        {"norm_proj.weight": "by name", "proj_norm.weight": "by name"},
    ),
    "scales": (
        module("Block", layer_scale_1=(3, 8), weight_g=(3, 1, 4), weight_v=(3, 8, 4), lambda_1=(3,), gamma=(1, 8)),
        {"layer_scale_1": "gain", "weight_g": "gain", "weight_v": "other", "lambda_1": "gain", "gamma": "gain"},
    ),
    "a gain and its shift": (
        module("Block", gamma=(5, 7), beta=(5, 7)),
        {"gamma": "gain", "beta": "gain"},
    ),
    "matrices that are called after gains": (
        module("Block", gamma=(5, 7), gamma_kernel=(6, 6), gamma_proj=(9, 6)),
        {"gamma": "by name", "gamma_kernel": "other", "gamma_proj": "other"},
    ),
    "matrices that are called b": (
        module(
            "Block",
            {"lora": module("MyLoRA", a=(2, 8), b=(8, 2)), "dense": module("D", b=(16, 16), w=(16, 16))},
            b_proj=(64, 64),
        ),
        {"b_proj": "other", "lora.a": "other", "lora.b": "other", "dense.b": "other", "dense.w": "other"},
    ),
    "LoRA by hand": (module("LoRA", A=(4, 8), B=(8, 4), scale=()), {"A": "other", "B": "other", "scale": "gain"}),
    "peft's LoHa and IA3": (
        module("Layer", {"hada_w1_a": nn.ParameterDict({"default": torch.ones(8, 4)})}, ia3_l=(8, 1)),
        {"hada_w1_a.default": "other", "ia3_l": "vector"},
    ),
    "lists": (
        module("Model", {"biases": nn.ParameterList([torch.ones(3, 3)]), "U": nn.ParameterList([torch.ones(3, 1)])}),
        {"biases.0": "bias", "U.0": "other"},
    ),
    "T5's table of what is added to logits": (
        module("Attention", {"relative_attention_bias": nn.Embedding(32, 4), "o": nn.Linear(4, 4, bias=False)}),
        {"relative_attention_bias.weight": "bias", "o.weight": "dense"},
    ),
    "8 bits": (
        module("Linear8bitLt", base=nn.Module, weight=torch.zeros(4, 4, dtype=torch.int8)),
        {"weight": "quantized"},
    ),
}


@pytest.mark.parametrize("case", STAND_INS)
def test_stand_ins(case):
    model, expected = STAND_INS[case]
    assert roles(model) == expected
    assert roles(nn.Sequential(model)) == {f"0.{name}": kind for name, kind in expected.items()}
    assert set(expected.values()) <= {*ROLES, *LEFT_ALONE}


def test_every_kind_is_in_a_stand_in():
    assert {kind for _, expected in STAND_INS.values() for kind in expected.values()} >= {
        *(kind for kind in LEFT_ALONE if kind != "not chosen"),
        "dense",
        "other",
    }


def test_gains_by_their_names_alone_are_warned_of():
    model = nn.ModuleDict({"norm_proj": module("Mine", weight=(64, 64)), "out": nn.Linear(64, 64)})
    with pytest.warns(UserWarning, match=r"50.0% of the weights .* by their names alone: norm_proj.weight"):
        noise_groups(model, noise=0.5)


def test_weight_norm_in_a_module_that_torch_does_not_know():
    model = module("Conv1D", weight=(8, 24))
    assert roles(parametrizations.weight_norm(model)) == {
        "parametrizations.weight.original0": "gain",
        "parametrizations.weight.original1": "other",
    }


class WeightDrop(nn.Module):
    """As in AWD-LSTM: the recurrent kernel moves to the wrapper, and a copy with holes is put back in each forward."""

    def __init__(self, inner):
        super().__init__()
        self.module = inner
        self.weight_hh_l0_raw = nn.Parameter(inner.weight_hh_l0.detach().clone())
        del inner.weight_hh_l0


def test_weight_drop_leaves_the_kernels_in_one_layer():
    assert layers(nn.Sequential(WeightDrop(nn.LSTM(3, 4, bias=False)))) == {
        "0.weight_hh_l0_raw": "0.module.l0",
        "0.module.weight_ih_l0": "0.module.l0",
    }


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(10, 8), nn.LSTM(8, 8, batch_first=True)
        self.norm, self.conv, self.out = nn.LayerNorm([3, 8]), nn.Conv1d(3, 3, 1), nn.Linear(8, 10)

    def forward(self, x):
        return self.out(self.conv(self.norm(self.rnn(self.embed(x))[0])))


def without_warnings(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out, and export frets over the LSTM's flat weights
        return function()


def test_a_scripted_module_has_the_roles_that_it_had_before():
    model = Network()
    scripted = without_warnings(lambda: torch.jit.script(model))
    assert roles(scripted) == roles(model)
    assert [group["layers"] for group in noise_groups(scripted, 0.5)] == [
        group["layers"] for group in noise_groups(model, 0.5)
    ]


def test_an_exported_module_is_read_by_its_names():
    model = Network()
    exported = without_warnings(lambda: torch.export.export(model, (torch.zeros(2, 3, dtype=torch.long),)).module())
    expected = roles(model) | {"out.weight": "other", "conv.weight": "other", "embed.weight": "embedding"}
    assert roles(exported) == expected
    noisy = [set(noise_groups(network, 0.5)[0]["names"]) for network in (model, exported)]
    assert noisy[0] == noisy[1]


def test_a_lazy_module_is_described_before_it_has_shapes():
    model = without_warnings(lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3)))
    groups = noise_groups(model, noise=0.5)
    assert groups[0]["names"] == ["0.weight", "1.weight"] and groups[1]["names"] == ["0.bias", "1.bias"]
    assert [layer.norm for layer in describe(groups).layers][0] is None
