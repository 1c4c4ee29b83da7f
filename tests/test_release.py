"""Runs to give away: the same model wherever a run is used, nothing of the machine, one line about what is damaged."""

import argparse
import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from programs import ROOT, generated_lines, load, refused

from seqssgd.cli import main
from seqssgd.data.text import write_text_dataset
from seqssgd.errors import UserError
from seqssgd.language.finished import load_language_model
from seqssgd.language.scoring import perplexity
from seqssgd.options import evaluation_arguments
from seqssgd.runs import layout
from seqssgd.runs.checkpoints import load as load_checkpoint
from seqssgd.runs.recipes import LANGUAGE_MODEL, read_recipe
from seqssgd.runs.release import export, export_record, save

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of a small language model with tied noise, evaluated."""
    folder = tmp_path_factory.mktemp("trained")
    sets = {name: generated_lines(60, 15, seed=i) for i, name in enumerate(("train", "valid", "test"))}
    write_text_dataset(folder / "data", sets, "15 words")
    words = ["--config", ROOT / "recipes/ptb_lstm/small_cpu_ssgd.yaml", "--data", folder / "data"]
    words += ["--out", folder / "run", "--model.hidden_size", 6, "--batch_size", 5, "--sequence_length", 4]
    words += ["--training.epochs", 2, "--training.threads", 1]
    assert load("recipes/ptb_lstm/train.py").main([str(word) for word in words]) == 0
    assert main(["evaluate", "--run", str(folder / "run"), "--split", "test", "--save"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def given(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("given") / "small"
    assert main(["export", str(run), "--out", str(out), "--about", "Words | drawn at random."]) == 0
    return out


def test_the_weights_are_those_of_the_best_checkpoint(run, given):
    best, found = load_checkpoint(run / "checkpoints/best.pt"), load_checkpoint(given / layout.WEIGHTS)
    assert {name: t.dtype for name, t in found["model"].items()} == {name: t.dtype for name, t in best["model"].items()}
    assert all(torch.equal(t, best["model"][name]) for name, t in found["model"].items())
    assert {**found, "model": None} == {**best, "model": None} and found["step"] > 0


@pytest.mark.parametrize("command", ["perplexity", "generate"])
def test_it_takes_the_place_of_the_run(command, run, given, tmp_path, capsys):
    (tmp_path / "text").write_text("\n".join(generated_lines(5, 15, seed=9)) + "\n")
    options = [str(tmp_path / "text")] if command == "perplexity" else ["--length", "20"]
    said = []
    for folder in (run, given):
        assert main([command, "--run", str(folder), *options]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


def test_a_method_that_is_not_there_is_wanted_by_none_who_needs_the_weights_alone(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["optim"] |= {"method": "nowhere:Gone", "base": "nowhere:Gone"}
    del config["optim"]["lr_warmup"]  # as an earlier version might have written it
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "text").write_text("\n".join(generated_lines(5, 15, seed=9)) + "\n")
    for folder in ("run", "out"):
        assert main(["perplexity", "--run", str(tmp_path / folder), str(tmp_path / "text")]) == 0
        assert main(["evaluate", "--run", str(tmp_path / folder), "--data", str(run.parent / "data")]) == 0
    assert "optim.method: nowhere:Gone: No module named" in refused(capsys, main, "describe", tmp_path / "run")


def test_half_precision_takes_half_the_space_and_changes_next_to_nothing(run, given, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "half"), "--half"]) == 0
    whole, half = (load_checkpoint(folder / layout.WEIGHTS)["model"] for folder in (given, tmp_path / "half"))
    assert {t.dtype for t in half.values()} == {torch.float16}
    assert all(torch.equal(t, whole[name].half()) for name, t in half.items())
    model, _ = load_language_model(tmp_path / "half")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "stored in half precision" in (tmp_path / "half/README.md").read_text()
    state = load_checkpoint(run / "checkpoints/best.pt")
    state["model"] = {name: t + 1e5 for name, t in state["model"].items()}
    torch.save(state, run / "checkpoints/large.pt")
    with pytest.raises(UserError, match="beyond what half precision can hold"):
        export(run, tmp_path / "out", "large.pt", half=True)


def test_the_card_says_what_it_is_how_it_is_used_and_how_it_was_made(run, given):
    text = (given / "README.md").read_text()
    best = json.loads((run / "result.json").read_text())
    test = json.loads((run / "evaluation.json").read_text())["test"]["perplexity"]
    assert f"of {best['parameters']:,} parameters, trained with S-SGD 0.7." in text and "Words | drawn" in text
    assert f"| validation | perplexity | {best['best']['valid_perplexity']:.2f} |" in text
    assert f"| test | perplexity | {test:.2f} |" in text
    assert "seqssgd perplexity --run small text.txt" in text and "library_name: seqssgd" in text


def test_nothing_in_it_names_a_folder_of_the_machine(run, given, tmp_path):
    root = str(run.parent)
    assert root in (run / "environment.json").read_text()
    files = [path for path in given.rglob("*") if path.is_file()]
    assert files and not [path for path in files if root.encode() in path.read_bytes()]
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--record"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.yaml", "environment.json", "evaluation.json", "metrics.jsonl", "result.json"
    }  # fmt: skip


def test_folders_within_an_option_are_left_out_too(run, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(run, own)
    environment = json.loads((own / "environment.json").read_text())
    command = ["train.py", f"--data={tmp_path}/secret/ptb", "--optim.lr=0.1", "--out", str(tmp_path / "x")]
    (own / "environment.json").write_text(json.dumps({**environment, "command": command}))
    export_record(own, tmp_path / "out")
    found = json.loads((tmp_path / "out/environment.json").read_text())["command"]
    assert found == ["train.py", "--data=ptb", "--optim.lr=0.1", "--out", "x"]


def test_the_last_checkpoint_does_not_carry_the_figures_of_the_best(run, tmp_path):
    out = tmp_path / "in two\nlines"
    assert main(["export", str(run), "--out", str(out), "--checkpoint", "last"]) == 0
    last = next(iter(layout.step_files(run / "checkpoints").values()))
    found = load_checkpoint(out / layout.WEIGHTS)
    assert all(torch.equal(t, found["model"][name]) for name, t in load_checkpoint(last)["model"].items())
    text = (out / "README.md").read_text()
    assert "\n# in two lines\n" in text and f"Its weights are those of {last.name}." in text
    assert "| test |" not in text and not (out / "evaluation.json").exists()
    assert main(["evaluate", "--run", str(out), "--data", str(run.parent / "data"), "--save"]) == 0
    assert main(["export", str(out), "--out", str(tmp_path / "again")]) == 0  # its own figures go with it
    assert json.loads((tmp_path / "again/evaluation.json").read_text())["test"]["checkpoint"] == layout.WEIGHTS


def test_tied_and_scalar_weights_survive(tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    state = {"model": {"a": weight, "b": weight, "c": weight.t(), "n": torch.tensor(3)}, "step": 7}
    save(tmp_path / "model.safetensors", state)
    found = load_checkpoint(tmp_path / "model.safetensors")
    assert found["step"] == 7 and all(torch.equal(found["model"][name], t) for name, t in state["model"].items())


def test_what_cannot_be_exported_or_read_is_one_line(run, given, tmp_path, capsys):
    assert "not an empty folder" in refused(capsys, main, "export", run, "--out", given)
    assert "not a run directory" in refused(capsys, main, "export", tmp_path, "--out", tmp_path / "out")
    for out, more, reason in (
        ("/proc/x", [], "/proc/x: cannot write there"),
        ("/proc/x", ["--record"], "/proc/x: cannot write there"),
        (run / "config.yaml", [], f"in {run}, a run directory; choose another folder"),
        (run / "new", ["--record"], f"in {run}, a run directory; choose another folder"),
        (run.parent / "data/new", [], f"in {run.parent / 'data'}, prepared data; choose another folder"),
        (tmp_path / "out", ["--about", "\udcff"], "--about: '\\udcff' is not UTF-8 text"),
        (tmp_path / "\udcff", [], "--out: '\\udcff' is not UTF-8 text"),
    ):
        assert reason in refused(capsys, main, "export", run, "--out", out, *more)
    assert not any(tmp_path.iterdir()) and not (run / "new").exists()
    with pytest.raises(UserError, match="none.pt is not a file"):
        export(run, tmp_path / "out", "none.pt")
    assert not (tmp_path / "out").exists()
    broken = load_checkpoint(run / "checkpoints/best.pt")
    broken["model"] = {name: t * float("nan") for name, t in broken["model"].items()}
    torch.save(broken, run / "checkpoints/broken.pt")
    with pytest.raises(UserError, match="its weights are not finite"):
        export(run, tmp_path / "out", "broken.pt")
    young = tmp_path / "young"  # stopped before it was evaluated
    shutil.copytree(run, young)
    (young / "result.json").unlink()
    (young / "evaluation.json").unlink()
    (young / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="young: it was never evaluated, so that there are no figures for its card"):
        export(young, tmp_path / "out")
    whole = (given / layout.WEIGHTS).read_bytes()
    for content in (whole[:-10], whole[:4], b"", b"x" * 100):
        (tmp_path / "m.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="m.safetensors: damaged, or not exported by seqssgd"):
            load_checkpoint(tmp_path / "m.safetensors")


def test_a_checkpoint_of_another_run_is_used_and_never_kept_as_ones_own(run, given, tmp_path, capsys):
    other, loose = shutil.copytree(run, tmp_path / "other"), shutil.copy(run / "checkpoints/best.pt", tmp_path)
    own, link = run / "checkpoints/best.pt", tmp_path / "link"
    link.symlink_to(run)
    foreign, kept = other / "checkpoints/best.pt", (run / layout.EVALUATION).read_bytes()
    for path, whose in (
        (foreign, f"{foreign}: a checkpoint of {other}, not of {run}"),
        (given / layout.WEIGHTS, f"{given / layout.WEIGHTS}: a checkpoint of {given}, not of {run}"),
        (Path(loose), f"{loose}: not a checkpoint of {run}"),
    ):
        words = ["--run", run, "--checkpoint", path]
        assert whose in refused(capsys, main, "evaluate", *words, "--save")
        assert whose in refused(capsys, main, "export", run, "--checkpoint", path, "--out", tmp_path / "out")
        for command in (["evaluate"], ["generate", "--length", "2"]):
            assert main([*command, *map(str, words)]) == 0
            assert capsys.readouterr().err == f"note: {whose}\n"
    assert (run / layout.EVALUATION).read_bytes() == kept and not (tmp_path / "out").exists()
    for path in (own, link / "checkpoints/best.pt", "best"):
        assert main(["evaluate", "--run", str(run), "--checkpoint", str(path), "--save"]) == 0
        assert capsys.readouterr().err == ""
    assert main(["generate", "--run", str(given), "--checkpoint", str(given / layout.WEIGHTS), "--length", "2"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("task", ["language", "speech", "images"])
def test_every_task_refuses_to_keep_figures_of_another_run(task, monkeypatch):
    from importlib import import_module

    def find(run, checkpoint, own=False):
        raise UserError("own" if own else "any")

    module = import_module(f"seqssgd.{task}.evaluation")
    for name in ("find_checkpoint", "data_folder", "load_text", "check_same_data", "read_recipe"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, find if name == "find_checkpoint" else lambda *args, **more: (None, {}))
    parser = argparse.ArgumentParser()
    evaluation_arguments(parser)
    module.arguments(parser)
    for words, wanted in (([], "any"), (["--save"], "own")):
        with pytest.raises(UserError, match=wanted):
            module.evaluate(parser.parse_args(["--run", "run", *words]))


SHIPPED = sorted(path.parent for path in ROOT.glob("models/*/config.yaml"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_models_that_ship_are_small_and_are_what_they_say(folder):
    content = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert sum(map(len, content)) < 10e6 and not any(b"/work/" in part or b"/tmp/" in part for part in content)
    recipe, _ = read_recipe(folder)
    model = recipe.module("finished").load_model(folder, "best")
    assert f"of {sum(p.numel() for p in model.parameters()):,} parameters" in (folder / "README.md").read_text()
    if recipe.kind == LANGUAGE_MODEL:
        model, tokenizer = load_language_model(folder)
        said = "the company said it expects to report a loss for the third quarter".split()
        forth, back = (tokenizer.encode([" ".join(words)], "text") for words in (said, said[::-1]))
        values = [perplexity(model, stream, torch.device("cpu")).perplexity for stream in (forth, back)]
        assert values[0] < 100 < values[1]


def test_an_export_is_whole_or_not_there(run, tmp_path, monkeypatch):
    def fail(path, state):
        assert (path.parent / layout.CONFIG).is_file()
        raise OSError(errno.ENOSPC, "full")

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("seqssgd.runs.release.save", fail)
    for name in ("new", "empty"):
        with pytest.raises(OSError, match=name):
            export(run, tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    monkeypatch.undo()
    assert export(run, tmp_path / "empty") == tmp_path / "empty" and (tmp_path / "empty" / layout.WEIGHTS).is_file()
    assert (tmp_path / "empty").stat().st_mode & 0o777 == run.stat().st_mode & 0o777


def test_files_that_were_exchanged_are_noticed(given, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(given, copy)
    config = (copy / "config.yaml").read_text().replace("sequence_length: 4", "sequence_length: 5")
    (copy / "config.yaml").write_text(config)
    (tmp_path / "text").write_text("ba ko\n")
    said = refused(capsys, main, "perplexity", "--run", copy, tmp_path / "text")
    assert "config.yaml is not the one that" in said


def test_an_unknown_option_is_answered_with_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--run", "runs/x", "--out", "y"])
    said = capsys.readouterr().err
    assert (
        "usage: seqssgd export" in said and "RUN" in said and said.splitlines()[-1].startswith("seqssgd export: error")
    )
