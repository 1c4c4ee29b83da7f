"""What the page on extending tells a reader to write and to type, done by the letter in an empty folder."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from programs import load

from seqssgd.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/extend.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path):
    """As a reader has it: the repository's folders, a text, and my_methods.py with the page's class."""
    for name in ("recipes", "data_prep"):
        (tmp_path / name).symlink_to(ROOT / name)
    words = [f"word{(number * number) % 37}" for number in range(4000)]
    lines = [" ".join(words[start : start + 8]) for start in range(0, len(words), 8)]
    (tmp_path / "mine.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "my_methods.py").write_text(blocks(section("A method"), "python")[0])
    (tmp_path / "bin").mkdir()
    for name, words in (("python", ""), ("seqssgd", " -m seqssgd")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable}{words} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def shell(folder: Path, commands: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["sh", "-ec", commands], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_method_of_the_page_trains_resumes_and_is_compared_as_it_says(folder):
    commands = blocks(section("A method"), "sh")[0]
    done = shell(folder, commands)
    assert done.returncode == 0, done.stderr
    report = (folder / "report/report.md").read_text()
    assert "LookAhead 0.2" in report and "SGD" in report
    optim = yaml.safe_load((folder / "runs/ahead/config.yaml").read_text())["optim"]
    assert (optim["method"], optim["memory"], optim["noise"]) == ("my_methods:LookAhead", 0.95, 0.2)
    whole = json.loads((folder / "runs/ahead/result.json").read_text())
    assert whole["passes"] == whole["steps"] == json.loads((folder / "runs/sgd/result.json").read_text())["steps"]

    prologue = "".join(line + "\n" for line in commands.splitlines() if line.startswith(("export", "TRAIN")))
    stopped = "$TRAIN --optim.method my_methods:LookAhead --optim.noise 0.2 --optim.memory 0.95 --out runs/again"
    done = shell(folder, f"{prologue}{stopped} --max-minutes 1e-9\n{stopped}")
    assert done.returncode == 0 and "resuming at step" in done.stdout, done.stderr
    assert json.loads((folder / "runs/again/result.json").read_text())["final"] == whole["final"]


def test_its_settings_are_refused_and_other_bases_step_as_it_says(folder, monkeypatch):
    """In this process, which has imported everything already."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    main = load("recipes/ptb_lstm/train.py").main
    shell(folder, "python data_prep/text.py --train mine.txt --vocab-size 100 --out data/mine")
    (program,) = re.findall(r'^TRAIN="python \S+ (.*)"', PAGE, re.MULTILINE)
    ahead = ["--optim.method", "my_methods:LookAhead", "--optim.noise", "0.2"]
    for options, said in (
        ([*ahead, "--optim.memory", "2"], r"optim\.memory: 2\.0 is not a number >= 0 and < 1"),
        (
            ["--optim.method", "ssgd", "--optim.noise", "0.2", "--optim.memory", "0.5"],
            r"optim\.memory: no such setting",
        ),
    ):
        with pytest.raises(UserError, match=f"^{said}"):
            main([*shlex.split(program), *options, "--out", "runs/refused"])
    for line in blocks(section("A base optimizer"), "sh")[0].splitlines():
        options = shlex.split(line.removeprefix("$TRAIN "))
        assert main([*shlex.split(program), *options]) == 0
        assert json.loads(Path(options[1], "result.json").read_text())["epochs"] == 2
