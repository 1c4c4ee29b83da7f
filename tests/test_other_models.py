"""The rule about which weights are perturbed, on the models of other libraries; skips those that are not installed.

The models and the measure are those of benchmarks/coverage.py, whose table has them all.
"""

import importlib.util
import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

from seqssgd.optim import SymmetricNoise, describe, noise_groups
from seqssgd.speech.torchaudio_import import import_torchaudio

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage():
    import_torchaudio()  # the libraries import it, and cannot where its C++ extension does not load
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        spec = importlib.util.spec_from_file_location("benchmarks_coverage", PROGRAM)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(PROGRAM.parent))


def measured(coverage, name):
    package = coverage.MODELS[name][0]
    pytest.importorskip({"s5-pytorch": "s5"}.get(package, package), reason=f"{package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the libraries; that of noise_groups is recorded all the same
        figures = coverage.measure(name)
    if "missing" in figures:
        pytest.skip(f"{package} lacks something: {figures['missing']}")
    return figures


@pytest.mark.parametrize(
    "name",
    [
        "GPT-2",
        "Decision Transformer",
        "gpt-oss",
        "DeepSeek-V3",
        "XLNet",
        "T5",
        "Swin",
        "LoRA",
        "DoRA",
        "LoHa",
        "AdaLoRA",
    ]
    + ["Conformer", "Branchformer, HyperMixing", "QLSTM", "xLSTM", "AWD-LSTM", "QLoRA"]
    + ["LSTM cell by hand", "the same, TorchScript", "the same, exported"],
)
def test_noise_reaches_the_weights(coverage, name):
    figures = measured(coverage, name)
    assert figures["perturbed"] >= 0.98 * figures["weights"] and not figures["warned"]
    assert figures["trained"] <= figures["parameters"]


@pytest.mark.parametrize("name", ["S5", "S4D by hand", "Mamba of mambapy"])
def test_where_it_reaches_fewer_a_warning_says_so(coverage, name):
    figures = measured(coverage, name)
    assert figures["perturbed"] < 0.98 * figures["weights"] and figures["warned"]


@pytest.mark.parametrize(("name", "include"), [("IA3", "'.*ia3_l.default'"), ("VeRA", "'.*vera_lambda_b.default'")])
def test_adapters_that_train_vectors_alone_are_refused_with_their_names(coverage, name, include):
    assert re.search(
        f"Give include= to perturb some of those that are trained: {include}", measured(coverage, name)["refused"]
    )


def test_a_gpt2_is_perturbed_layer_by_layer(coverage):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=16)
        )
    optimizer = SymmetricNoise(torch.optim.AdamW(noise_groups(model, noise=0.5), lr=1e-3))
    said = {layer.name: layer.norm for layer in describe(optimizer).layers}
    assert len(said) == 2 + 2 * 4
    weights = {name: model.get_submodule(name).weight for name in said}
    clean = {name: weight.detach().clone() for name, weight in weights.items()}
    tokens = torch.arange(16).unsqueeze(0)
    for _ in optimizer.passes():
        moved = {name: (weight.detach() - clean[name]).norm().item() for name, weight in weights.items()}
        assert moved == pytest.approx(said, rel=1e-4)
        model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    assert all(not torch.equal(weight, clean[name]) for name, weight in weights.items())


def test_the_recorded_figures_are_of_the_models_here_and_meet_the_goal(coverage):
    recorded = json.loads((ROOT / "results/benchmarks/coverage.json").read_text())["models"]
    assert list(recorded) == list(coverage.MODELS)
    for name, figures in recorded.items():
        explained = figures.get("missing") or figures.get("refused") or figures["warned"]
        assert explained or figures["perturbed"] >= 0.98 * figures["weights"], name
