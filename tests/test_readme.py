"""What the README tells a reader to type works."""

import re
import sys
from pathlib import Path

import torch
from torch import nn

from seqssgd.training import parse_recipe

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes/ptb_lstm"))
from train import Config  # noqa: E402

README = (ROOT / "README.md").read_text()
LINK = re.compile(r"\]\(([^)#]+)\)")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_loop_trains():
    (code,) = blocks("python")
    model, loss_fn = nn.Linear(4, 1), nn.MSELoss()
    inputs = torch.randn(16, 4)
    targets = inputs.sum(1, keepdim=True)
    names = {"torch": torch, "model": model, "loss_fn": loss_fn, "loader": [(inputs, targets)] * 50}
    exec("from seqssgd.optim import SymmetricNoise, noise_groups\n", names)
    before = loss_fn(model(inputs), targets).item()
    exec(code, names)
    assert names["optimizer"].draws == 50
    assert loss_fn(model(inputs), targets).item() < before


def test_the_changelog_says_nothing_twice():
    """As a merge that keeps both sides of a list makes it do: it knows a line wherever it is wrapped."""
    text = (ROOT / "CHANGELOG.md").read_text()
    lines = [" ".join(line.split()) for line in re.split(r"^- ", text, flags=re.MULTILINE)[1:]]
    beginnings = [line[:40] for line in lines]
    assert len(lines) > 100 and sorted(set(beginnings)) == sorted(beginnings)


def test_make_targets_come_first_and_exist():
    commands = [line.split("#")[0].split() for line in blocks("sh")[0].splitlines()]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert commands == [["make", "demo"], ["make", "test"]] and {"demo", "test", "venv"} <= set(targets)


def test_programs_configurations_and_links_exist():
    shell = "\n".join(blocks("sh"))
    named = re.findall(r"(?:python|--config) ([\w./]+\.(?:py|yaml))", shell)
    assert len(named) >= 4
    for document in [ROOT / "README.md", *ROOT.glob("*/*/README.md"), *ROOT.glob("*/README.md")]:
        if document.is_relative_to(ROOT / ".venv"):
            continue
        named += [
            str((document.parent / link).relative_to(ROOT))
            for link in LINK.findall(document.read_text())
            if not link.startswith("http")
        ]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_what_the_commands_write_is_no_untracked_file():
    """Neither here nor in the READMEs of the recipes: all of it lies in folders that git leaves alone."""
    ignored = [re.escape(line.strip("/")) for line in (ROOT / ".gitignore").read_text().split() if line.startswith("/")]
    documents = [ROOT / "README.md", *ROOT.glob("recipes/*/README.md"), *ROOT.glob("docs/*.md")]
    written = 0
    for document in documents:
        shell = "\n".join(re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL))
        for name in re.findall(r"--(?:out|report)[ =]([\w./-]+)", shell):
            assert re.match(rf"(?:{'|'.join(ignored)})(/|$)", name), f"{document.relative_to(ROOT)}: {name}"
            written += 1
    assert written > 20


def test_options_in_the_commands_are_known():
    data = ROOT / "recipes"  # any folder that is not empty
    for line in "\n".join(blocks("sh")).replace("\\\n", " ").splitlines():
        words = line.split()
        if words[1:2] == ["recipes/ptb_lstm/train.py"]:
            words[words.index("--config") + 1] = str(ROOT / words[words.index("--config") + 1])
            words[words.index("--data") + 1] = str(data)
            assert parse_recipe(Config, words[2:]).config.seed == 0
