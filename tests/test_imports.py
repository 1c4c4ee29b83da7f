"""What an import costs, and that torch is all that ``seqssgd.optim`` and the models need."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from seqssgd import __version__
from seqssgd.cli import COMMANDS
from seqssgd.errors import UserError, require

ROOT = Path(__file__).parents[1]

# What comes first in a program for which packages shall seem not to be installed.
WITHOUT = """
import json, sys

ABSENT = set(json.loads(sys.argv[1]))


class Without:
    # A finder that does not find them, as if they were not installed.

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

TRAINING = """
import torch

before = set(sys.modules)
import seqssgd

alone = sorted(set(sys.modules) - before)
before = set(sys.modules)
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.optim import SymmetricNoise, noise_groups

with_optim = sorted(set(sys.modules) - before)
model = LSTMLanguageModel(11, 4, 1)
optimizer = SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=0.5)), model=model, bn_stats="first")
for _ in optimizer.passes():
    model(torch.randint(11, (5, 2)))[0].sum().backward()
optimizer.step()
print(json.dumps({"alone": alone, "with_optim": with_optim, "absent": sorted(ABSENT & set(sys.modules))}))
"""


def extras() -> set[str]:
    """The import names of every package that the project can use and does not require, and of what they bring along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [line.split(">")[0] for line in project["dependencies"]] == ["torch"]
    import_names = {"pyyaml": "yaml", "pillow": "PIL", "flashlight-text": "flashlight", "pytorch-ignite": "ignite"}
    lines = [line for group in project["optional-dependencies"].values() for line in group]
    names = {line.split(">")[0].split("[")[0] for line in lines}
    assert {"numpy", "datasets", "jsonargparse"} <= names
    return {import_names.get(name, name.replace("-", "_")) for name in names} | {
        "pandas",
        "pyarrow",
        "scipy",
        "soundfile",
        "torchaudio",
    }


def printed(program: str) -> str:
    """What a program prints where only torch is installed."""
    command = [sys.executable, "-c", WITHOUT + program, json.dumps(sorted(extras()))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_optim_and_models_train_with_torch_alone_and_load_nothing_else():
    loaded = json.loads(printed(TRAINING))
    assert loaded["alone"] == ["seqssgd"]  # costs nothing beyond torch itself
    # nor does the optimizer load more of torch than torch itself does: FSDP and DTensor would double the time
    assert all(name.startswith("seqssgd.") for name in loaded["with_optim"]), loaded["with_optim"]
    assert "seqssgd.optim.symmetric" in loaded["with_optim"] and "seqssgd.models.lstm" in loaded["with_optim"]
    packages = {name.split(".")[1] for name in loaded["with_optim"]}
    assert packages == {"optim", "models"}
    assert loaded["absent"] == []


def test_every_command_says_in_one_line_what_to_install():
    arguments = {
        "perplexity": ["--run", "run", "text.txt"],
        "generate": ["--run", "run"],
        "transcribe": ["--run", "run", "wave.wav"],
        "compare": ["run"],
        "evaluate": ["--run", "run"],
        "runs": ["list", "."],
        "export": ["run", "--out", "out"],
        "describe": ["run"],
        "landscape": ["run", "--out", "out"],
        "noise-finder": ["--config", "x.yaml", "--data", "data", "--out", "out"],
    }
    assert set(arguments) == set(COMMANDS)
    program = """
import contextlib, io
from seqssgd.cli import main

for arguments in json.loads(%r):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(arguments)
    print(json.dumps([status, said.getvalue()]))
"""
    commands = [[name, *options] for name, options in arguments.items()]
    lines = printed(program % json.dumps(commands)).splitlines()
    assert len(lines) == len(commands)
    for line in lines:
        status, said = json.loads(line)
        assert status == 2
        *before, last = said.splitlines()  # torch warns once that there is no numpy
        assert re.fullmatch(r"error: the package \w+ is not installed: pip install 'seqssgd\[recipes\]'", last), said
        assert "Traceback" not in said and all("seqssgd" not in line for line in before), said


def test_a_module_of_ours_that_is_missing_is_a_bug_and_no_package_to_install():
    with pytest.raises(ModuleNotFoundError, match="seqssgd.nothing"):
        require("seqssgd.nothing")
    with pytest.raises(UserError, match=r"the package nothing_at_all is not installed: pip install 'seqssgd\[beam\]'"):
        require("nothing_at_all.inside", "beam")


def test_the_command_alone_shows_its_help_and_it_has_a_version():
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "seqssgd", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100).stdout

    assert run() == run("--help") and all(name in run() for name in COMMANDS)
    assert run("--version") == f"seqssgd {__version__}\n"
