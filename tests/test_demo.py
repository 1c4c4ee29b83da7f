"""The text of the demonstration."""

import asyncio
import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seqssgd.errors import run_cli

DEMO = Path(__file__).resolve().parents[1] / "recipes/demo"


@pytest.fixture
def program():
    spec = importlib.util.spec_from_file_location("docstrings", DEMO / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docstrings_of_modules_classes_and_functions_become_sentences(program, tmp_path):
    method = '    def f(self):\n        """It\'s run\n        over two lines."""\n'
    (tmp_path / "b.py").write_text('class A:\n    """Say 12 words of it. Short one."""\n' + method)
    (tmp_path / "a.py").write_text(
        '"""The first file of all.\n\n>>> examples are left out of it\n"""\nx = "no docstring at all here"\n'
    )
    (tmp_path / "wrong.py").write_text("def :")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/c.py").write_text('"""This one is left out."""\n')
    sentences = [s for text in program.docstrings(tmp_path) for s in program.sentences(text)]
    assert sentences == ["the first file of all .", "say N words of it .", "it's run over two lines ."]


def test_the_text_is_the_same_every_time_and_no_sentence_stands_twice(program, tmp_path, monkeypatch):
    monkeypatch.setattr(program.sysconfig, "get_path", lambda name: Path(asyncio.__file__).parent)  # a part is faster
    for name in ("a", "b"):
        program.main(["--out", str(tmp_path / name), "--sentences", "300"])
    lines = (tmp_path / "a").read_text().splitlines()
    assert (tmp_path / "b").read_text().splitlines() == lines
    assert len(lines) == len(set(lines)) == 300


def test_a_place_that_cannot_be_written_is_named(program, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(program.sysconfig, "get_path", lambda name: Path(asyncio.__file__).parent)
    (tmp_path / "file").write_text("")
    assert run_cli(lambda: program.main(["--out", str(tmp_path / "file/text.txt")])) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "--out" in line and "file/text.txt" in line


def test_compute_is_equal():
    spec = importlib.util.spec_from_file_location("run", DEMO / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    epochs = yaml.safe_load((DEMO / "small.yaml").read_text())["training"]["epochs"]
    passes = {}
    for name, options in run.METHODS.items():
        settings = dict(zip(options[::2], options[1::2], strict=True))
        per_step = 2 if settings["--optim.method"] == "ssgd" and "--optim.signs" not in settings else 1
        passes[name] = per_step * int(settings.get("--training.epochs", epochs))
    assert len(set(passes.values())) == 1, passes


def test_every_module_that_it_runs_is_a_program(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("run", DEMO / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    commands = []
    monkeypatch.setattr(run, "run", lambda *words: commands.append([str(word) for word in words]))
    monkeypatch.setattr("sys.argv", ["run.py", "--out", str(tmp_path)])
    run.main()
    modules = [words[:3] for words in commands if words[0] == "-m"]
    assert len(modules) == 1
    for words in modules:
        found = subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True)
        assert found.returncode == 0 and "usage: " in found.stdout, words


def test_it_says_how_far_it_is_and_how_long_it_takes(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("run", DEMO / "run.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    clock = itertools.count(step=40)  # seconds that every training takes
    monkeypatch.setattr(demo, "run", lambda *command: None)
    monkeypatch.setattr(demo.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr("sys.argv", ["run.py"])
    demo.main()
    said = capsys.readouterr().out
    for line in ("1 of 3: sgd\n", "2 of 3: ssgd; about 80 seconds to go", "3 of 3: ssgd-halves; about 40 seconds to go",
                 "The trainings took 2 minutes."):  # fmt: skip
        assert line in said
