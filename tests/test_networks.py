"""Networks by name, ours and anyone's: trained by the recipes, read back and evaluated without being told."""

import dataclasses
import json
import sys
import textwrap
from pathlib import Path

import pytest
import tones
import torch
import yaml
from programs import ROOT, coloured_images, generated_lines, load, refused

from seqssgd import cli
from seqssgd.data.text import load_text, write_text_dataset
from seqssgd.errors import UserError
from seqssgd.language.config import Config
from seqssgd.language.finished import load_language_model, open_task
from seqssgd.language.networks import NETWORKS
from seqssgd.networks import Networks
from seqssgd.runs import checkpoints
from seqssgd.runs.recipes import RECIPES, Recipe, find_recipe, read_recipe, recipe_of
from seqssgd.speech.finished import load_recognizer
from seqssgd.speech.recordings import recording_logits
from seqssgd.training import parse_recipe

TEXT = {"lstm": {"hidden_size": 6}, "gru": {"hidden_size": 6}, "transformer": {"width": 8, "num_layers": 2, "heads": 2}}

NETWORK = """
    import torch
    from torch import nn


    class Bag(nn.Module):
        '''The mean of what was read so far, to what comes next.

        Args:
            vocab_size: of the text.
            width: of an embedding.
            scale: of the initial weights.
        '''

        def __init__(self, vocab_size: int, width: int = 5, scale: float = 0.3) -> None:
            super().__init__()
            if width < 1:
                raise ValueError(f"width={width}: it must be at least 1")
            self.embedding, self.output = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)
            nn.init.uniform_(self.embedding.weight, -scale, scale)

        def forward(self, tokens, state=None):
            total, count = self.zero_state(tokens.shape[1]) if state is None else state
            sums = total + self.embedding(tokens).cumsum(0)
            counts = count + torch.arange(1, len(tokens) + 1)[:, None, None]
            return self.output(sums / counts), (sums[-1:], counts[-1:].expand(1, tokens.shape[1], 1).contiguous())

        def zero_state(self, batch_size):
            return torch.zeros(1, batch_size, self.output.in_features), torch.zeros(1, batch_size, 1)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "data"
    splits = {name: generated_lines(count) for name, count in (("train", 60), ("valid", 20), ("test", 20))}
    write_text_dataset(folder, splits, "made up")
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> str:
    """The name of a network in a file outside of the package."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "bag_of_words.py").write_text(textwrap.dedent(NETWORK))
    monkeypatch.syspath_prepend(str(folder))
    yield "bag_of_words:Bag"
    sys.modules.pop("bag_of_words", None)


def train(recipe: str, config: str, data: Path, run: Path, *options: object) -> None:
    words = ["--config", ROOT / "recipes" / recipe / config, "--data", data, "--out", run, "--training.threads", 1]
    assert load(f"recipes/{recipe}/train.py").main([str(word) for word in [*words, *options]]) == 0


def train_text(data: Path, run: Path, name: str, settings: dict, *options: object) -> None:
    own = [word for key, value in settings.items() for word in (f"--model.{key}", value)]
    sizes = ["--batch_size", 4, "--sequence_length", 5, "--training.epochs", 1, "--optim.lr", 0.1, "--model.dropout", 0]
    sizes = sizes if name in TEXT else sizes[:-2]
    file = data.parent / "config.yaml"  # of no network: small_cpu.yaml has settings of the LSTM
    file.write_text(yaml.safe_dump({"optim": {"method": "ssgd", "noise": 0.3}, "training": {"clip": 5.0}}))
    train("ptb_lstm", str(file), data, run, "--model.name", name, *own, *sizes, *options)


def said(capsys, *words: object) -> str:
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", TEXT)
def test_a_network_of_text_is_trained_read_back_evaluated_and_writes(name, text, tmp_path, capsys):
    run = tmp_path / "run"
    train_text(text, run, name, TEXT[name])
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["recipe"] == "ptb_lstm" and config["model"]["name"] == name
    assert config["model"].items() >= TEXT[name].items()
    model, _ = load_language_model(run)
    assert type(model) is NETWORKS.find(name)
    state = checkpoints.load(run / "checkpoints/best.pt")["model"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    line = said(capsys, "evaluate", "--run", run, "--save")
    figures = json.loads((run / "evaluation.json").read_text())["test"]
    assert f"best.pt, test: perplexity {figures['perplexity']:.3f}" in line
    lines = load_text(text).folder / "test.txt"
    assert f"perplexity {figures['perplexity']:.3f}" in said(capsys, "perplexity", "--run", run, lines)
    assert said(capsys, "generate", "--run", run, "--length", 5) == said(
        capsys, "generate", "--run", run, "--length", 5
    )
    assert "embedding" in said(capsys, "describe", run)
    best = json.loads((run / "result.json").read_text())["best"]
    assert open_task(run, text).evaluate()["valid_perplexity"] == pytest.approx(best["valid_perplexity"], rel=1e-6)


@pytest.mark.parametrize("name", TEXT)
def test_a_network_of_text_resumes_to_the_same_bits(name, text, tmp_path):
    train_text(text, tmp_path / "whole", name, TEXT[name], "--training.checkpoint_every", 3)
    train_text(text, tmp_path / "run", name, TEXT[name], "--training.checkpoint_every", 3, "--max-minutes", 1e-6)
    assert not (tmp_path / "run/result.json").exists()
    train_text(text, tmp_path / "run", name, TEXT[name], "--training.checkpoint_every", 3)
    a, b = (checkpoints.load_newest(tmp_path / run / "checkpoints")[1] for run in ("whole", "run"))
    assert all(torch.equal(value, b["model"][key]) for key, value in a["model"].items())


def test_the_noise_that_another_network_bears_is_searched_for(text, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    model = {"name": "gru", **TEXT["gru"]}
    sizes = {"batch_size": 4, "sequence_length": 5, "training": {"epochs": 2, "threads": 1}}
    file.write_text(yaml.safe_dump({"model": model, **sizes, "optim": {"method": "ssgd", "noise": 0.5, "lr": 0.1}}))
    out, program = tmp_path / "found", ROOT / "recipes/ptb_lstm/train.py"
    words = ["--config", file, "--data", text, "--out", out, "--program", program, "--warmup", 10, "--steps", 20]
    assert "noise" in said(capsys, "noise-finder", *words)
    for name in ("plain", "noisy"):
        assert yaml.safe_load((out / name / "config.yaml").read_text())["model"]["name"] == "gru"


def test_a_network_in_a_file_of_ones_own_is_trained_evaluated_and_compared(elsewhere, text, tmp_path, capsys):
    runs = [tmp_path / f"bag{seed}" for seed in (0, 1)]
    for seed, run in enumerate(runs):
        train_text(text, run, elsewhere, {"width": 7}, "--seed", seed)
    model = yaml.safe_load((runs[0] / "config.yaml").read_text())["model"]
    assert model == {"name": "bag_of_words:Bag", "width": 7, "scale": 0.3}
    assert "perplexity" in said(capsys, "evaluate", "--run", runs[0], "--split", "valid")
    assert "| S-SGD 0.3 | 2 |" in said(capsys, "compare", *runs)
    said(capsys, "generate", "--run", runs[0], "--length", 3)
    sys.modules.pop("bag_of_words")
    sys.path[:] = [folder for folder in sys.path if not folder.endswith("elsewhere")]
    assert "S-SGD" in said(capsys, "compare", *runs)  # comparing imports nothing that a run names
    assert "bag_of_words" not in sys.modules


def test_wrong_networks_and_settings_are_refused_with_their_key(elsewhere, text, tmp_path, capsys):
    def refusal(*options: object) -> str:
        words = ["--data", text, "--out", tmp_path / "run", *options]
        return refused(capsys, load("recipes/ptb_lstm/train.py").main, *words)

    assert "model.name: 'lstn' is not one of lstm, gru, transformer, and no module:Class" in refusal(
        "--model.name", "lstn"
    )
    assert "model.name: nowhere:Net: " in refusal("--model.name", "nowhere:Net")
    assert "bag_of_words:Bug: " in refusal("--model.name", "bag_of_words:Bug")
    assert "model.heads: no such setting" in refusal("--model.name", "gru", "--model.heads", 2)
    assert "model.width: expected int" in refusal("--model.name", elsewhere, "--model.width", "wide")
    assert "model.width=0: it must be at least 1" in refusal("--model.name", elsewhere, "--model.width", 0)
    assert "does not take vocab_size" in refusal("--model.name", "torch.nn:ReLU")
    assert not (tmp_path / "run").exists()


def test_the_name_may_stand_in_the_file_before_or_after_and_an_option_wins(text, tmp_path):
    files = [tmp_path / f"{name}.yaml" for name in ("a", "b")]
    files[0].write_text("model: {name: gru, hidden_size: 3}")
    files[1].write_text("seed: 4")
    common = ["--data", str(text), "--out", "unused"]

    def model(*words: object):
        return parse_recipe(Config, [*common, *map(str, words)]).config.model

    assert model("--config", files[0], "--config", files[1]) == NETWORKS.settings("gru", hidden_size=3)
    assert model("--config", files[0], "--model.name=lstm") == NETWORKS.settings("lstm", hidden_size=3)
    assert model("--model", "{name: transformer, width: 16}").width == 16
    assert model() == NETWORKS.settings("lstm")
    with pytest.raises(UserError, match="num_layers: expected int"):
        model("--config", files[0], "--model.num_layers", "many")


def test_settings_come_from_the_signature_and_its_documentation(elsewhere):
    networks = Networks({"bag": (elsewhere, {"scale": 1.0})}, given=("vocab_size",))
    section = networks.section("bag")
    assert [field.name for field in dataclasses.fields(section)] == ["name", "width"]
    assert "width: of an embedding." in section.__doc__ and "scale" not in section.__doc__
    assert networks.settings("bag", width=2).build(vocab_size=3).output.in_features == 2
    assert networks.section("bag") is section and networks.default == "bag"
    assert networks.restored({"width": 4}) == networks.settings("bag", width=4)
    with pytest.raises(TypeError, match="bag has no setting depth"):
        networks.restored({"name": "bag", "depth": 4})


# ---- speech and images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [None, 3])
def test_a_conformer_is_trained_evaluated_and_hears_a_recording_in_chunks(reach, tmp_path, capsys):
    data = tones.prepare(tmp_path / "data", "AB")
    network = {"name": "conformer", "width": 8, "layers": 1, "heads": 2, "kernel": 3, "subsampling": 2, "reach": reach}
    file = tmp_path / "config.yaml"
    model = {"features": {"bins": 8, "rate": 8000}, "network": network}
    settings = {
        "corpus": {"batch_seconds": 4.0},
        "model": model,
        "optim": {"method": "ssgd", "noise": 0.2, "base": "adam"},
    }
    file.write_text(yaml.safe_dump({**settings, "training": {"epochs": 1}}))
    run = tmp_path / "run"
    train("wsj_sgcn", str(file), data, run)
    assert "WER" in said(capsys, "evaluate", "--run", run, "--split", "valid")
    model, _ = load_recognizer(run)
    assert type(model.network).__name__ == "Conformer"
    wave = torch.randn(30_000, generator=torch.Generator().manual_seed(0))
    whole, parts = (recording_logits(model, wave, seconds) for seconds in (100.0, 1.0))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    assert (model.receptive_field() is None) == (reach is None)


@pytest.mark.parametrize(
    "recipe, options", [("wsj_sgcn", ["--model.network.width", 6, "--model.network.layers", 1]), ("cifar_cnn", [])]
)
def test_runs_of_the_other_recipes_are_evaluated_by_the_same_command(recipe, options, tmp_path, capsys):
    run = tmp_path / "run"
    if recipe == "wsj_sgcn":
        data, file = tones.prepare(tmp_path / "data", "AB"), "an4.yaml"
        options = [*options, "--model.features.rate", 8000, "--corpus.batch_seconds", 4]
    else:
        data, file = coloured_images(tmp_path / "data"), "resnet20_cpu.yaml"
        options = ["--batch_size", 20, "--corpus.valid", 10, "--corpus.pad", 1, "--bn_images", 20]
    train(recipe, file, data, run, "--training.epochs", 1, *options)
    capsys.readouterr()
    line = said(capsys, "evaluate", "--run", run, "--save")
    assert ("WER" if recipe == "wsj_sgcn" else "accuracy") in line
    assert list(json.loads((run / "evaluation.json").read_text())) == ["test"]
    task = RECIPES[recipe].module("finished").open_task(run, data)
    assert task.steps_per_epoch > 0 and yaml.safe_load((run / "config.yaml").read_text())["recipe"] == recipe


# ---- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, name",
    [
        ({"model": {"hidden_size": 200, "num_layers": 2}, "sequence_length": 35, "data": {"x": 1}}, "ptb_lstm"),
        ({"model": {"features": {}, "network": {"width": 190}}, "tokens": {}, "augment": {}}, "wsj_sgcn"),
        ({"model": {"name": "resnet20"}, "corpus": {"pad": 4}, "bn_images": 1}, "cifar_cnn"),
        ({"model": {"name": "resnet50"}, "corpus": {"smallest_area": 0.1}, "bn_images": 1}, "imagenet_resnet"),
        ({"model": {"name": "transformer"}, "recipe": "ptb_lstm"}, "ptb_lstm"),
        ({"model": {"hidden_size": 64}, "batch_size": 4, "seed": 0, "optim": {}, "training": {}}, None),
        ({"model": {"hidden_size": 64}, "sequence_length": 35, "horizon": 3}, None),
        ({"model": {"hidden_size": 64, "kernel": 3}, "sequence_length": 35}, None),
        ({"model": {"name": "gru", "hidden_size": 64}, "sequence_length": 35, "recipe": None}, None),
        ({"model": {"name": "resnet20"}}, None),
        ({"model": {"name": "resnet21"}, "bn_images": 1}, None),
        ({"model": {"width": 3}}, None),
        ({"model": 3}, None),
    ],
)
def test_a_run_that_does_not_say_its_recipe_is_told_by_its_sections(config, name):
    found = recipe_of(config)
    assert (None if found is None else found.name) == name


def test_recipes_from_elsewhere_are_found_when_they_are_wanted(tmp_path, monkeypatch):
    (tmp_path / "my_recipe.py").write_text(
        "from seqssgd.runs.recipes import Recipe\n"
        "MINE = Recipe('my_recipe:MINE', 'a model of mine', 'seqssgd.language')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {"recipe": "my_recipe:MINE", "model": {"name": "gru"}}
    assert recipe_of(config, imports=False) is None and "my_recipe" not in sys.modules
    assert isinstance(recipe_of(config), Recipe)
    sys.modules.pop("my_recipe")
    for name in ("nothing", "my_recipe:None", "json:loads"):
        with pytest.raises(UserError, match="recipe"):
            find_recipe(name)
    (tmp_path / "config.yaml").write_text("{model: {hidden_size: 3}, sequence_length: 35}")
    recipe, found = read_recipe(tmp_path)
    assert recipe.name == "ptb_lstm" and found["model"] == {"hidden_size": 3, "name": "lstm", "num_layers": 2,
                                                           "dropout": 0.0, "init_scale": 0.1}  # fmt: skip
