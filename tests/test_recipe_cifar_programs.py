"""training and evaluation as they are called: killed and resumed, evaluated, given wrong input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from programs import ROOT, coloured_images, kill_and_resume, load, outcome, refused, table_of, without_times

from seqssgd import cli
from seqssgd.commands.runs import evaluate
from seqssgd.data.images import AugmentedBatches, Normalization, load_images
from seqssgd.images.finished import load_classifier
from seqssgd.optim.batchnorm import recalibrate_bn
from seqssgd.report import compare, read_run, summary
from seqssgd.runs import checkpoints

TRAIN = load("recipes/cifar_cnn/train.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return coloured_images(tmp_path_factory.mktemp("prepared") / "data")


def command(data: Path, out: Path, *options: object) -> list[str]:
    """All that makes resuming hard: noise that begins late, momentum, half precision, batch norm, augmentation."""
    settings = ["--config", ROOT / "recipes/cifar_cnn/resnet20_cpu_phases.yaml", "--data", data, "--out", out]
    settings += ["--corpus.valid", 12, "--corpus.pad", 1, "--batch_size", 8, "--training.epochs", 2]
    settings += ["--optim.noise_schedule", "1-9S", "--optim.lr_milestones", "[1]", "--training.threads", 1]
    settings += ["--training.precision", "bf16", "--training.checkpoint_every", 4, "--training.log_every", 5, *options]
    return [str(setting) for setting in settings]


def train(data: Path, out: Path, *options: object) -> dict:
    assert TRAIN.main(command(data, out, *options)) == 0
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A finished run, for tests that change nothing in it."""
    torch.set_num_threads(1)
    train(data, run := tmp_path_factory.mktemp("finished") / "run")
    return run


def test_a_run_is_described(finished, capsys):
    assert cli.main(["describe", str(finished)]) == 0
    assert table_of(load_classifier(finished), finished) in capsys.readouterr().out


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_killed_half_way_and_started_again_a_run_ends_with_the_same_bits(data, finished, tmp_path):
    killed = tmp_path / "killed"
    kill_and_resume("recipes/cifar_cnn/train.py", command(data, killed), killed, "step-*8.pt")
    assert outcome(killed) == outcome(finished)


@pytest.mark.parametrize("options", [
    ["--optim.signs", "halves", "--model.name", "wrn28_2"],
    ["--optim.signs", "steps", "--training.precision", "fp32", "--optim.bn_stats", "first"],
    ["--training.accumulate", 3, "--optim.only", "[conv]", "--optim.lr_schedule", "sgdr", "--optim.lr_period", 1],
    ["--optim.method", "none", "--corpus.valid", 0, "--bn_images", 0],
], ids=["halves", "steps", "accumulate", "all images"])  # fmt: skip
def test_every_form_trains_and_resumes_to_the_same_bits(data, tmp_path, options):
    result = train(data, tmp_path / "whole", *options)
    assert result["nonfinite"] == 0
    if "halves" in options:
        assert result["passes"] == result["steps"]
    stop = result["steps"] // 2 + 1
    assert train(data, tmp_path / "parts", *options, "--max-steps", stop)["steps"] == stop
    train(data, tmp_path / "parts", *options)
    models = [checkpoints.load_newest(tmp_path / run / "checkpoints")[1] for run in ("whole", "parts")]
    for key in ("model", "optimizer", "schedulers", "processes"):
        assert without_times(models[0][key]) == without_times(models[1][key])


def test_training_learns_what_it_is_shown(data, tmp_path):
    options = ["--optim.lr_milestones", "[20]", "--optim.noise_schedule", "0S", "--training.epochs", 8]
    assert train(data, tmp_path / "run", *options)["best"]["valid_accuracy"] > 80


def test_a_time_limit_stops_a_run_that_is_then_finished_by_the_same_command(data, finished, tmp_path, capsys):
    run = tmp_path / "run"
    assert TRAIN.main([*command(data, run), "--max-minutes", "0.0001"]) == 0
    assert "stopped by the time limit at step 1; run the same command again" in capsys.readouterr().out
    assert not (run / "result.json").exists()
    train(data, run)
    ends = [checkpoints.load_newest(path / "checkpoints")[1] for path in (run, finished)]
    assert without_times(ends[0]["model"]) == without_times(ends[1]["model"])


def test_a_finished_run_that_is_called_again_is_left_as_it_is(data, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    capsys.readouterr()
    assert TRAIN.main(command(data, finished)) == 0
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


# ---- evaluation ------------------------------------------------------------------------------------------------------


def accuracies(run: Path, data: Path, split: str, name: str = "best", number: int = 10_000) -> dict[str, str]:
    """What an evaluation should print of accuracy with batch norm of ``number`` images, and with that of training."""
    dataset = load_images(data)
    train, valid = dataset.split("train").hold_out(12)
    images, labels = {"train": train, "valid": valid, "test": dataset.split("test")}[split]
    normalization = Normalization(dataset.info["mean"], dataset.info["std"])
    model, said = load_classifier(run, name), {}
    for kind in ("raw", "clean"):
        if kind == "clean":
            minibatches = list(AugmentedBatches(train, normalization, 8, pad=1).epoch(0))
            recalibrate_bn(model, [images for images, _ in minibatches[: number // 8]])
        with torch.no_grad():
            right = int((model(normalization(images)).argmax(1) == labels).sum())
        said[kind] = f"accuracy {100 * right / len(labels):.2f} % ({right} of {len(labels)}), loss "
    return said


@pytest.mark.parametrize(("split", "name", "asked", "number"), [
    ("train", "last", 10_000, 48), ("valid", "best", 20, 24), ("test", "best", 10_000, 48), ("test", "last", 3, 8)
])  # fmt: skip
def test_evaluation_gives_accuracy_with_and_without_recalibration(
    data, finished, capsys, split, name, asked, number
):  # the minibatches have 8 images
    evaluate(["--run", str(finished), "--data", str(data), "--split", split, "--checkpoint", name,
                   "--bn-images", str(asked)])  # fmt: skip
    clean, raw = capsys.readouterr().out.splitlines()
    path = max((finished / "checkpoints").glob("best.pt" if name == "best" else "step-*.pt"))
    expected = accuracies(finished, data, split, name, number)
    assert clean.startswith(f"{path}, {split}: {expected['clean']}")
    assert clean.endswith(f", batch norm recalibrated on {number} training images")
    assert raw.startswith(f"  raw, with the running statistics of training: {expected['raw']}")


def test_recalibrated_accuracy_on_validation_is_that_of_training(data, finished, capsys):
    evaluate(["--run", str(finished), "--data", str(data), "--split", "valid", "--bn-images", "2000"])
    best = json.loads((finished / "result.json").read_text())["best"]
    assert f"accuracy {best['valid_accuracy']:.2f} % (" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("options", [[], ["--corpus.valid", 0]], ids=["validated", "all images"])
def test_saved_figures_are_in_the_table_of_compared_runs(data, finished, tmp_path, capsys, options):
    run = tmp_path / "run"
    train(data, run, *options) if options else shutil.copytree(finished, run)
    capsys.readouterr()
    evaluate(["--run", str(run), "--data", str(data), "--save"])
    saved = json.loads((run / "evaluation.json").read_text())["test"]
    line = capsys.readouterr().out.splitlines()[0]
    assert saved["checkpoint"] == "best.pt" and saved["bn_images"] == (56 if options else 48)
    assert f"accuracy {saved['accuracy']:.2f} % ({saved['correct']} of 30)" in line
    shown = summary(compare([read_run(run)]))
    assert "| test accuracy |" in shown and f" {saved['accuracy']:.2f} |" in shown


def test_evaluation_refuses_other_images_and_other_runs(data, finished, tmp_path, capsys):
    other = coloured_images(tmp_path / "other", seed=1)
    message = refused(capsys, evaluate, "--run", finished, "--data", other)
    assert f"{other} (colours 1) is not the data that {finished} was trained on (colours 0)" in message
    assert "is not a run directory" in refused(capsys, evaluate, "--run", tmp_path, "--data", data)
    said = refused(capsys, evaluate, "--run", finished, "--data", data, "--bn-images", 0)
    assert "--bn-images 0: it must be at least 1" in said
    run = shutil.copytree(finished, tmp_path / "run")
    state = checkpoints.load(run / "checkpoints/best.pt")
    checkpoints.save(run / "checkpoints/best.pt", {key: value for key, value in state.items() if key != "files"})
    settings = yaml.safe_load((run / "config.yaml").read_text())  # of which that checkpoint does not know any more
    for changes, reason in (
        ({"corpus": {**settings["corpus"], "valid": 0}}, "--split valid: "),
        ({"model": {"name": "resnet56"}}, "best.pt: weights of another model"),
        ({"model": {"name": "resnet21"}}, "'resnet21' is not one of resnet20, "),
        ({"model": {"hidden_size": 20}}, "describes no image classifier"),
        ({"data": "cifar"}, "has no section 'data'; give a run of an image classifier"),
    ):
        (run / "config.yaml").write_text(yaml.safe_dump({**settings, **changes}))
        assert reason in refused(capsys, evaluate, "--run", run, "--data", data, "--split", "valid")


# ---- wrong input -----------------------------------------------------------------------------------------------------


def test_wrong_data_folders_and_settings_are_refused_before_anything_is_written(data, tmp_path, capsys):
    def refuse(folder: Path, *options: object) -> str:
        message = refused(capsys, TRAIN.main, *command(folder, tmp_path / "run", *options))
        assert not (tmp_path / "run").exists()
        return message

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/file").write_text("text")
    assert "empty holds no prepared images (it has no dataset.json); write it" in refuse(tmp_path / "empty")
    copied = shutil.copytree(data, tmp_path / "copied")
    (copied / "train.npz").write_bytes(b"PK")
    assert "train.npz has changed since it was prepared" in refuse(copied)
    assert "model.name: " in refuse(data, "--model.name", "resnet21")
    assert "corpus.valid: 60 of 60 images" in refuse(data, "--corpus.valid", 60)
    assert "batch_size: 49 is more than the 48" in refuse(data, "--batch_size", 49)
    assert "no weights to perturb" in refuse(data, "--optim.only", "[recurrent]")


def test_a_run_of_other_images_is_refused(finished, tmp_path, capsys):
    other = coloured_images(tmp_path / "other", seed=1)
    message = refused(capsys, TRAIN.main, *command(other, finished))
    assert "a run of another configuration (data.name = colours 0, now colours 1, data.fingerprint = " in message
