"""recipes/imagenet_resnet/: its configurations, and its programs killed and resumed, evaluated, given wrong input."""

import dataclasses
import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from picture_folders import prepared_tree, small_network, write_tree
from programs import ROOT, coloured_images, kill_and_resume, load, outcome, refused, without_times

from seqssgd.commands.runs import evaluate
from seqssgd.data.encoded_images import MEAN, STD, load_encoded
from seqssgd.data.images import Normalization
from seqssgd.images.config import EncodedCorpusConfig
from seqssgd.images.networks import ENCODED_NETWORKS, build_classifier
from seqssgd.runs import checkpoints
from seqssgd.training import OptimConfig, build_optimizer, build_schedulers, parse_recipe

TRAIN = load("recipes/imagenet_resnet/train.py")
FOLDER = ROOT / "recipes/imagenet_resnet"
SMALL = "picture_folders:small_network"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))  # for programs as processes of their own
        yield prepared_tree(folder)


def command(data: Path, out: Path, *options: object) -> list[str]:
    settings = ["--config", FOLDER / "resnet18.yaml", "--data", data, "--out", out, "--corpus.size", 32]
    settings += ["--batch_size", 8, "--training.accumulate", 2, "--training.epochs", 2, "--optim.lr_milestones", "[1]"]
    settings += ["--optim.lr", 0.05, "--training.precision", "fp32", "--training.threads", 1, "--bn_images", 20]
    return [str(setting) for setting in [*settings, "--corpus.workers", 2, "--optim.lr_warmup", 2, *options]]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(ENCODED_NETWORKS.known, "resnet18", SMALL)


def train(data: Path, out: Path, *options: object) -> dict:
    assert TRAIN.main(command(data, out, *options)) == 0
    return json.loads((out / "result.json").read_text())


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_killed_and_started_again_a_run_ends_with_the_same_bits(data, tmp_path):
    train(data, tmp_path / "whole", "--model.name", SMALL)
    killed = tmp_path / "killed"
    options = command(data, killed, "--model.name", SMALL)
    kill_and_resume("recipes/imagenet_resnet/train.py", options, killed, "step-*3.pt")
    assert outcome(killed) == outcome(tmp_path / "whole")


def test_stopped_within_an_epoch_a_run_goes_on_with_the_pieces_that_are_left(data, tmp_path, small):
    train(data, tmp_path / "whole")
    assert train(data, tmp_path / "parts", "--max-steps", 4)["steps"] == 4
    train(data, tmp_path / "parts")
    states = [checkpoints.load_newest(tmp_path / run / "checkpoints")[1] for run in ("whole", "parts")]
    for key in ("model", "optimizer", "schedulers", "processes"):
        assert without_times(states[0][key]) == without_times(states[1][key])


def test_training_learns_what_it_is_shown_and_evaluation_says_so(data, tmp_path, small, capsys):
    options = ["--training.epochs", 25, "--optim.lr", 0.2, "--training.accumulate", 1, "--optim.lr_milestones", "[20]"]
    result = train(data, run := tmp_path / "run", *options)
    assert result["nonfinite"] == 0 and result["final"]["valid_accuracy"] > 60  # chance: 12.5
    assert "48 training and 16 validation images; resnet18" in capsys.readouterr().out
    evaluate(["--run", str(run), "--data", str(data), "--bn-images", "20", "--save"])
    said = capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())["valid"]
    assert found["accuracy"] == result["final"]["valid_accuracy"] and found["images"] == 16
    assert f"valid: accuracy {found['accuracy']:.2f} % ({found['correct']} of 16)" in said and "raw, with" in said
    # by hand: the saved model, as it is, on the central pieces
    model = small_network(8)
    model.load_state_dict(torch.load(run / "checkpoints/best.pt", weights_only=True)["model"])
    images, labels = zip(*load_encoded(data).split("valid", 32).batches(16), strict=True)
    with torch.no_grad():
        logits = model.eval()(Normalization(MEAN, STD)(torch.cat(images)))
    assert found["raw"]["correct"] == (logits.argmax(1) == torch.cat(labels)).sum().item()


def test_the_last_model_is_kept_although_an_earlier_one_was_better_on_the_images_that_are_reported(
    data, tmp_path, small
):
    result = train(data, tmp_path / "run", "--training.epochs", 3)
    assert result["best"]["step"] == result["steps"] == 9


def test_wrong_input_is_refused_in_one_line(data, tmp_path, capsys, small):
    def said(*options: object, folder: Path = data) -> str:
        return refused(capsys, TRAIN.main, *command(folder, tmp_path / "run", *options))

    assert "training.patience: there is nothing to judge by" in said("--training.patience", 2)
    assert "corpus.workers: 0 is not" in said("--corpus.workers", 0)
    assert "corpus.smallest_area: 0.0 is not" in said("--corpus.smallest_area", 0)
    assert "training.accumulate: 7 is not at most " in said("--training.accumulate", 7)
    assert "optim.lr_warmup: warmup(0)" in said("--optim.lr_warmup", 0)
    assert "colours holds a set of small images, where a set of images is wanted; choose another folder " in said(
        folder=coloured_images(tmp_path / "colours")
    )
    assert not (tmp_path / "run").exists()


def test_images_of_the_same_names_and_sizes_but_another_content_are_refused(data, tmp_path, small, capsys):
    train(data, run := tmp_path / "run", "--max-steps", 1)
    tree = write_tree(tmp_path / "tree")
    path = next((tree / "train").rglob("*.JPEG"))
    content = bytearray(path.read_bytes())
    content[13] ^= 1  # the unit of the pixels' density
    path.write_bytes(content)
    load("data_prep/imagenet.py").main(["--source", str(tree), "--out", str(tmp_path / "out")])
    assert load_encoded(tmp_path / "out").info["fingerprint"] == load_encoded(data).info["fingerprint"]
    said = refused(capsys, TRAIN.main, *command(tmp_path / "out", run))
    assert "a run of another configuration (data.content.train = " in said
    assert "is not the data that" in refused(capsys, evaluate, "--run", run, "--data", tmp_path / "out")


def test_evaluation_on_other_images_is_refused(data, tmp_path, capsys, small):
    train(data, run := tmp_path / "run", "--max-steps", 1)
    other = write_tree(tmp_path / "tree", train=3)
    load("data_prep/imagenet.py").main(["--source", str(other), "--out", str(tmp_path / "other"), "--name", "others"])
    said = refused(capsys, evaluate, "--run", run, "--data", tmp_path / "other")
    assert "others) is not the data that" in said and "was trained on (tree); give the folder of that" in said
    shutil.rmtree(run / "checkpoints")
    assert "train first" in refused(capsys, evaluate, "--run", run, "--data", data)
    assert "--workers 0" in refused(capsys, evaluate, "--run", run, "--data", data, "--workers", 0)


# ---- the shipped configurations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_shipped_configuration_has_the_settings_of_the_paper(name):
    arguments = ["--config", str(FOLDER / f"{name}.yaml"), "--data", str(FOLDER), "--out", "unused"]
    config = parse_recipe(TRAIN.Config, arguments).config
    expected = OptimConfig(method="ssgd", noise=0.25, lr=0.4, momentum=0.9, weight_decay=1e-4, lr_schedule="steps",
                           lr_milestones=[30, 60, 80], lr_warmup=5)  # fmt: skip
    assert config.optim == expected and config.model.name == name
    assert config.batch_size * config.training.accumulate == 1024 and config.training.epochs == 90
    assert dataclasses.asdict(config.corpus) == dataclasses.asdict(EncodedCorpusConfig())
    optimizer = build_optimizer(torch.nn.Conv2d(1, 1, 1), config.optim)
    ((scheduler, unit),) = build_schedulers(optimizer, config.optim, 90)
    rates = []
    for _ in range(90):
        rates.append(round(optimizer.param_groups[0]["lr"], 6))
        for part in optimizer.passes():
            part.take(torch.zeros(2))
        optimizer.step(lambda: None)
        scheduler.step()
    assert unit == "epoch" and rates[:6] == [0.08, 0.16, 0.24, 0.32, 0.4, 0.4]
    assert [rates[epoch] for epoch in (29, 30, 60, 80)] == [0.4, 0.04, 0.004, 0.0004]
    with torch.device("meta"):
        count = sum(p.numel() for p in build_classifier(ENCODED_NETWORKS.settings(name), 1000).parameters())
    assert f"{count:,}" in (FOLDER / "README.md").read_text()
