"""recipes/ptb_lstm/train.py and its evaluation as they are called: killed and resumed, evaluated, given wrong input."""

import json
import math
import shutil
from pathlib import Path

import forked
import pytest
import torch
from programs import ROOT, generated_lines, kill_and_resume, load, outcome, refused, without_times

from seqssgd import cli
from seqssgd.commands.runs import evaluate
from seqssgd.data.text import load_text, write_text_dataset
from seqssgd.errors import run_cli
from seqssgd.language.finished import load_language_model
from seqssgd.runs import checkpoints

TRAIN = load("recipes/ptb_lstm/train.py")


def prepare(folder: Path, words: int = 15) -> Path:
    sizes = {"train": 160, "valid": 30, "test": 25}
    splits = {name: generated_lines(size, words, seed=size) for name, size in sizes.items()}
    write_text_dataset(folder, splits, f"{words} words")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared") / "data")


def command(data: Path, out: Path, *options: object) -> list[str]:
    """A tiny model with all that makes resuming hard: dropout, noise, decay, carried states."""
    settings = ["--config", ROOT / "recipes/ptb_lstm/small_cpu_ssgd.yaml", "--data", data, "--out", out]
    settings += ["--model.hidden_size", 6, "--model.dropout", 0.3, "--batch_size", 5, "--sequence_length", 4]
    settings += ["--optim.lr_constant_epochs", 0, "--training.threads", 1, "--training.epochs", 2]
    settings += ["--training.checkpoint_every", 25, "--training.log_every", 7, *options]
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


def perplexity_by_hand(run: Path, name: str, stream: torch.Tensor) -> float:
    model, _ = load_language_model(run, name)
    with torch.no_grad():
        logits, _ = model(stream[:-1, None])
    return math.exp(-logits[:, 0].double().log_softmax(1)[torch.arange(len(stream) - 1), stream[1:]].mean().item())


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_killed_half_way_and_started_again_a_run_ends_with_the_same_bits(data, finished, tmp_path):
    killed = tmp_path / "killed"
    kill_and_resume("recipes/ptb_lstm/train.py", command(data, killed), killed, "step-*[1-9]??.pt")
    assert outcome(killed) == outcome(finished)


@pytest.mark.parametrize("options", [
    ["--optim.signs", "halves"],
    ["--optim.signs", "steps"],
    ["--optim.noise_schedule", "40-30S", "--optim.noise_unit", "step", "--optim.signs", "halves"],
    ["--optim.base", "adam", "--optim.lr", 0.01, "--training.accumulate", 2],
], ids=["halves", "steps", "late halves", "adam"])  # fmt: skip
def test_every_form_of_noise_trains_and_resumes_to_the_same_bits(data, tmp_path, options):
    result = train(data, tmp_path / "whole", *options)
    assert result["final"]["valid_perplexity"] < 15 and result["nonfinite"] == 0  # better than a uniform guess
    if "halves" in options:
        assert result["passes"] == result["steps"]
    for stop in (33, 61):
        TRAIN.main([*command(data, tmp_path / "parts", *options), "--max-steps", str(stop)])
    train(data, tmp_path / "parts", *options)
    models = [checkpoints.load_newest(tmp_path / run / "checkpoints")[1] for run in ("whole", "parts")]
    for key in ("model", "optimizer", "schedulers", "processes"):
        assert without_times(models[0][key]) == without_times(models[1][key])


def test_a_finished_run_that_is_called_again_is_left_as_it_is(data, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    capsys.readouterr()
    assert TRAIN.main(command(data, finished)) == 0
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_truncated_checkpoint_is_reported_and_the_one_before_taken(data, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    newest = max((tmp_path / "run/checkpoints").glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    train(data, tmp_path / "run")
    said = capsys.readouterr()
    assert f"{newest.name}: damaged checkpoint" in said.err and "Traceback" not in said.err
    assert "resuming at step" in said.out
    assert outcome(tmp_path / "run") == outcome(finished)


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("name", ["best", "last"])
def test_evaluation_reads_the_whole_split(data, finished, capsys, split, name):
    evaluate(["--run", str(finished), "--data", str(data), "--split", split, "--checkpoint", name])
    stream = load_text(data).split(split)
    path = max((finished / "checkpoints").glob("best.pt" if name == "best" else "step-*.pt"))
    expected = perplexity_by_hand(finished, name, stream)
    said = capsys.readouterr().out
    printed = float(said.split("perplexity ")[1].split(",")[0])
    assert printed == pytest.approx(expected, abs=0.001)
    counts = f"{len(stream):,} tokens with <eos> (0 unknown), {len(stream) - 1:,} predictions"
    assert said.startswith(f"{path}, {split}: perplexity ") and said.endswith(f"{counts}\n")


@pytest.mark.parametrize("name", ["best", "last"])
def test_evaluation_agrees_with_training_where_both_read_the_same(data, tmp_path, capsys, name):
    """With one column and windows that fit, validation in training is the reading of the whole split. The last
    checkpoint is that of a method whose averaged weights are evaluated."""
    tokens = load_text(data).info["splits"]["valid"]["tokens"] - 1
    length = next(n for n in range(3, tokens) if tokens % n == 0)
    run, options = tmp_path / "run", ["--batch_size", 1, "--sequence_length", length, "--max-steps", 20]
    if name == "last":
        options += ["--optim.method", "ema", "--optim.noise", 0, "--optim.average_decay", 0.9]
    result = train(data, run, *options)
    runs = [run]
    if name == "last":
        assert cli.main(["export", str(run), "--out", str(tmp_path / "given"), "--checkpoint", name]) == 0
        runs.append(tmp_path / "given")
    for folder in runs:
        capsys.readouterr()
        chosen = name if folder == run else "best"
        evaluate(["--run", str(folder), "--data", str(data), "--split", "valid", "--checkpoint", chosen])
        printed = float(capsys.readouterr().out.split("perplexity ")[1].split(",")[0])
        assert printed == pytest.approx(result["best" if name == "best" else "final"]["valid_perplexity"], abs=0.001)


def test_evaluation_refuses_other_data_and_other_runs(data, finished, tmp_path, capsys):
    other = prepare(tmp_path / "other", words=14)
    message = refused(capsys, evaluate, "--run", finished, "--data", other)
    assert f"{other} (14 words) is not the data that {finished} was trained on (15 words)" in message
    settings = tmp_path / "settings"
    lines = {split: (data / f"{split}.txt").read_text().splitlines() for split in ("train", "valid", "test")}
    write_text_dataset(settings, lines, "15 words", vocab_size=10)
    message = refused(capsys, evaluate, "--run", finished, "--data", settings)
    assert "or was prepared with other settings; give the folder of that" in message
    copied = shutil.copytree(data, tmp_path / "moved")  # the place does not matter, the content does
    evaluate(["--run", str(finished), "--data", str(copied)])
    capsys.readouterr()
    (copied / "test.txt").write_bytes(b"caf\xe9\n")
    assert "test.txt has changed" in refused(capsys, evaluate, "--run", finished, "--data", copied)
    assert "is not a run directory" in refused(capsys, evaluate, "--run", tmp_path, "--data", data)
    message = refused(capsys, evaluate, "--run", finished, "--data", data, "--checkpoint", data / "test.txt")
    assert "test.txt: damaged checkpoint, or none" in message
    with pytest.raises(SystemExit, match="2"):
        evaluate(["--run", str(finished), "--data", str(data), "--split", "dev"])
    assert "argument --split: invalid choice: 'dev'" in capsys.readouterr().err.splitlines()[-1]


# ---- wrong input -----------------------------------------------------------------------------------------------------


def test_wrong_data_folders_are_refused_before_anything_is_written(data, tmp_path, capsys):
    def refuse(folder: Path) -> str:
        message = refused(capsys, TRAIN.main, *command(folder, tmp_path / "run"))
        assert not (tmp_path / "run").exists()
        return message

    assert "absent: not a folder; prepare the data" in refuse(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "empty: an empty folder; prepare the data" in refuse(tmp_path / "empty")
    (tmp_path / "empty/file").write_text("text")
    assert "empty is not a prepared text" in refuse(tmp_path / "empty")
    copied = shutil.copytree(data, tmp_path / "copied")
    for name, content in (("train.txt", b"caf\xe9\n"), ("vocabulary.txt", b"<eos>\n"), ("valid.txt", None)):
        whole = (copied / name).read_bytes()
        (copied / name).unlink()
        if content:
            (copied / name).write_bytes(content)
        assert f"{name} {'has changed since it was prepared' if content else 'is missing'}" in refuse(copied)
        (copied / name).write_bytes(whole)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_that_the_machine_lacks_for_an_lstm_is_refused_before_a_run_begins(
    data, tmp_path, capsys, monkeypatch, precision
):
    forward = torch.nn.LSTM.forward

    def lacking(self, *args):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor for the LSTM forward propagation primitive")
        return forward(self, *args)

    monkeypatch.setattr(torch.nn.LSTM, "forward", lacking)
    options = command(data, tmp_path / "run", "--training.precision", precision, "--training.device", "cpu")
    wanted = f"training.precision: this machine's CPU cannot train this network (LSTM) in {precision}; use fp32"
    assert wanted in refused(capsys, TRAIN.main, *options)
    assert not (tmp_path / "run").exists()
    assert wanted in refused(capsys, cli.main, "noise-finder", *options[:6], "--", *options[6:])


def test_texts_too_short_for_the_minibatch_are_refused(data, tmp_path, capsys):
    for option, value, reason in (
        ("--batch_size", 5000, "train: a text of"),
        ("--sequence_length", 5000, "is too short for batch size 5 and windows of 5000"),
        ("--batch_size", 1, "batch_size: 1 cannot be halved"),
        ("--model.dropout", 1.5, "model.dropout must be in [0, 1)"),
        ("--batch_size", 0, "batch_size: 0 is not a whole number >= 1"),
        ("--sequence_length", 0, "sequence_length: 0 is not a whole number >= 1"),
    ):
        options = [option, value, "--optim.signs", "halves"] if value != 0 else [option, value]
        assert reason in refused(capsys, TRAIN.main, *command(data, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_run_directories_that_cannot_be_used_are_refused(data, finished, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    message = refused(capsys, TRAIN.main, *command(data, finished, "--optim.noise", 0.6))
    assert f"{finished}: a run of another configuration (optim.noise = 0.7, now 0.6)" in message
    other = prepare(tmp_path / "other", words=14)
    message = refused(capsys, TRAIN.main, *command(other, finished))
    assert "a run of another configuration (data.name = 15 words, now 14 words, data.fingerprint = " in message
    assert message.rstrip().endswith("repeat the settings of the first start and its --data")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        assert f"{out}: cannot write there" in refused(capsys, TRAIN.main, *command(data, out))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(data, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "result.json").unlink()
    for path in (run / "checkpoints").glob("*.pt"):
        path.write_bytes(b"PK")
    assert run_cli(lambda: TRAIN.main(command(data, run))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"error: {run}/checkpoints: all 2 checkpoints are damaged") and len(lines) == 3
    assert "best.pt: damaged checkpoint" in refused(capsys, evaluate, "--run", run, "--data", data)


def test_the_programs_themselves_end_with_one_line_and_a_status(tmp_path):
    absent, log = tmp_path / "absent", tmp_path / "log"
    for path, arguments in (
        ("recipes/ptb_lstm/train.py", command(absent, tmp_path / "run")),
        ("data_prep/ptb.py", ["--source", absent, "--out", tmp_path / "out"]),
    ):
        process = forked.program(path, *arguments, log=log)
        process.join(120)
        said = log.read_text()
        assert process.exitcode == 2 and len(said.splitlines()) == 1, said
        assert said.startswith("error: ") and str(absent) in said
