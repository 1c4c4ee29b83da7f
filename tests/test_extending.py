"""What the page on extending tells a reader to write and to type, done by the letter in an empty folder."""

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seqssgd import cli
from seqssgd.errors import UserError
from seqssgd.runs.recipes import read_recipe
from seqssgd.training import OptimConfig
from seqssgd.training.methods import GIVEN, METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
(TRAIN,) = re.findall(r'^TRAIN="(python .*)"', PAGE, re.MULTILINE)


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path):
    """As a reader has it: the repository's folders, a text, and my_methods.py with the page's class."""
    for name in ("recipes", "data_prep"):
        (tmp_path / name).symlink_to(ROOT / name)
    words = [f"word{(number * number) % 37}" for number in range(1600)]
    lines = [" ".join(words[start : start + 8]) for start in range(0, len(words), 8)]
    (tmp_path / "mine.txt").write_text("\n".join(lines) + "\n")
    for title, name in (("A method", "my_methods"), ("A network", "my_networks"), ("A recipe", "my_recipe")):
        (tmp_path / f"{name}.py").write_text(blocks(section(title), "python")[0])
    (tmp_path / "mine.yaml").write_text(blocks(section("A network"), "yaml")[0])
    (tmp_path / "bin").mkdir()
    for name, words in (("python", ""), ("seqssgd", " -m seqssgd")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable}{words} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def shell(folder: Path, commands: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["sh", "-ec", commands], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def do(folder, monkeypatch):
    """Does a line of the page in this process, which has imported everything already."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name in ("my_methods", "my_networks", "my_recipe", "three"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def do(line: str) -> None:
        program, *words = shlex.split(line)
        if program == "seqssgd":
            assert cli.main(words) == 0
        else:
            spec = importlib.util.spec_from_file_location(f"page_{Path(words[0]).stem}", words[0])
            sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            assert not module.main(words[1:])

    return do


@pytest.fixture
def here(do):
    """The same where the page's first command, which prepares the text, has been given."""
    do("python data_prep/text.py --train mine.txt --vocab-size 100 --out data/mine")
    return do


def test_the_method_of_the_page_trains_resumes_and_is_compared_as_it_says(folder, do, capsys):
    commands = blocks(section("A method"), "sh")[0]
    done = shell(folder, commands)
    assert done.returncode == 0, done.stderr
    report = (folder / "report/report.md").read_text()
    assert "LookAhead 0.2" in report and "SGD" in report
    optim = yaml.safe_load((folder / "runs/ahead/config.yaml").read_text())["optim"]
    assert (optim["method"], optim["memory"], optim["noise"]) == ("my_methods:LookAhead", 0.95, 0.2)
    whole = json.loads((folder / "runs/ahead/result.json").read_text())
    assert whole["passes"] == whole["steps"] == json.loads((folder / "runs/sgd/result.json").read_text())["steps"]

    (ahead,) = (line for line in commands.splitlines() if "--out runs/ahead" in line)
    again = ahead.replace("$TRAIN", TRAIN).replace("runs/ahead", "runs/again")
    do(f"{again} --max-minutes 1e-9")
    capsys.readouterr()
    do(again)
    assert "resuming at step" in capsys.readouterr().out
    assert json.loads((folder / "runs/again/result.json").read_text())["final"] == whole["final"]


def lines(title: str) -> list[str]:
    return blocks(section(title), "sh")[0].replace("\\\n", " ").splitlines()


def test_its_settings_are_refused_and_other_bases_step_as_it_says(here):
    for options, said in (
        (
            "--optim.method my_methods:LookAhead --optim.noise 0.2 --optim.memory 2",
            r"optim\.memory: 2\.0 is not a number >= 0 and < 1",
        ),
        ("--optim.method ssgd --optim.noise 0.2 --optim.memory 0.5", r"optim\.memory: no such setting"),
    ):
        with pytest.raises(UserError, match=f"^{said}"):
            here(f"{TRAIN} {options} --out runs/refused")
    for line in lines("A base optimizer"):
        here(line.replace("$TRAIN", TRAIN))
        assert json.loads(Path(line.split()[2], "result.json").read_text())["epochs"] == 2


def test_a_method_of_random_noise_sets_an_argument_itself_and_the_taken_names_are_listed(here):
    Path("three.py").write_text(blocks(section("A method"), "python")[2])
    here(f"{TRAIN} --max-steps 2 --out runs/three --optim.method three:Three --optim.noise 0.2 --optim.copies 2")
    optim = yaml.safe_load(Path("runs/three/config.yaml").read_text())["optim"]
    assert (optim["distribution"], optim["copies"]) == ("gaussian", 2)
    assert json.loads(Path("runs/three/result.json").read_text())["passes"] == 4
    words = " ".join(section("A method").split())
    listed = re.search(r"are taken, and refused: (.*?)\.", words)[1]
    own = {key for method in METHODS.values() for key in method.own}
    everyone = {field.name for field in dataclasses.fields(OptimConfig)} - own - set(GIVEN)
    assert set(re.findall(r"`(\w+)`", listed)) == everyone
    listed = re.search(r"the names of the section's own attributes: (.*?)\.", words)[1]
    fields = {field.name for field in dataclasses.fields(OptimConfig)}
    public = {name for name in dir(OptimConfig) if not name.startswith("_")} - fields
    assert set(re.findall(r"`(\w+)`", listed)) == public


def test_the_network_of_the_page_is_one_like_any_other(here, capsys):
    for line in lines("A network"):
        here(line)
    said = capsys.readouterr().out
    assert "runs/rnn/checkpoints/best.pt, test: perplexity" in said and "mine.txt: perplexity" in said
    here("seqssgd describe runs/rnn")
    assert "rnn" in capsys.readouterr().out
    result = json.loads(Path("runs/rnn/result.json").read_text())
    assert result["epochs"] == 2 and result["final"]["valid_perplexity"] < 30  # of 39 words and ends of lines
    noisy = "--optim.method my_methods:LookAhead --optim.noise 0.1 --optim.memory 0.8"  # both from elsewhere
    here(lines("A network")[0].replace("runs/rnn", "runs/both") + f" {noisy}")
    config = yaml.safe_load(Path("runs/both/config.yaml").read_text())
    assert (config["model"]["dropout"], config["optim"]["memory"]) == (0.1, 0.8)


def test_the_recipe_of_the_page_trains_resumes_and_is_compared(here, capsys):
    Path("data/curve").mkdir()
    for name, start in (("train", 0), ("valid", 1)):
        numbers = [x / 50 - 1 for x in range(start, 100, 2)]
        Path(f"data/curve/{name}.csv").write_text("".join(f"{x},{x * x}\n" for x in numbers))
    for line in lines("A recipe"):
        here(line)
    said = capsys.readouterr().out
    assert "SGD" in said and "weight noise 0.1" in said and "runs/curve_noise" in said
    assert yaml.safe_load(Path("runs/curve/config.yaml").read_text())["recipe"] is None
    with pytest.raises(UserError, match="does not say which recipe reads the run"):
        read_recipe("runs/curve")
    first = lines("A recipe")[0].replace("--out runs/curve", "--out runs/again")
    here(f"{first} --max-minutes 1e-9")
    here(first)
    results = [json.loads(Path(f"runs/{name}/result.json").read_text()) for name in ("curve", "again")]
    assert results[0]["final"] == results[1]["final"] and results[0]["steps"] == 25
    assert results[0]["final"]["valid_loss"] < 0.2
    here(first.replace("runs/again", "runs/halves") + " --optim.method ssgd --optim.noise 0.1 --optim.signs halves")
