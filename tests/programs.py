"""The programs of the repository, no part of the package: imported as modules, called, or run as processes."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import forked
import torch
import yaml

from seqssgd.data.images import write_image_dataset
from seqssgd.errors import run_cli
from seqssgd.optim import describe, noise_groups
from seqssgd.runs import checkpoints

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "units_per_second", "training_seconds", "metrics_length")


def load(path: str) -> ModuleType:
    """The program at ``path`` (from the repository's root) as a module; what stands beside it can be imported."""
    name = "program_" + path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        if (folder := str((ROOT / path).parent)) not in sys.path:
            sys.path.append(folder)
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def places(tree, at=()):
    """The paths of all values in nested dictionaries and lists."""
    yield at
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def replaced(tree, at, value):
    """A copy with the value at ``at`` replaced."""
    if not at:
        return value
    if isinstance(tree, dict):
        return {key: replaced(old, at[1:], value) if key == at[0] else old for key, old in tree.items()}
    return type(tree)(replaced(old, at[1:], value) if index == at[0] else old for index, old in enumerate(tree))


def refused(capsys, main, *arguments: object) -> str:
    """What a program says on standard error when it refuses; checks that this one line is all and the status is 2."""
    capsys.readouterr()
    assert run_cli(lambda: main([str(argument) for argument in arguments])) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == "" and len(lines) == 1 and lines[0].startswith("error: "), said
    return lines[0]


def start(path: str, *arguments: object) -> subprocess.Popen:
    """The program as a process of its own."""
    command = [sys.executable, str(ROOT / path), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_and_resume(path: str, command: list[str], run: Path, pattern: str) -> None:
    """Trains into ``run`` with a process that is killed soon after a checkpoint of that name, and again to its end."""
    log = run.with_suffix(".log")
    process = forked.program(path, *command, log=log, killed_after=pattern)
    process.join(100)
    assert process.exitcode == -9 and not (run / "result.json").exists(), log.read_text()
    process = forked.program(path, *command, log=log)
    process.join(100)
    said = log.read_text()
    assert process.exitcode == 0 and "resuming at step" in said and "Traceback" not in said, said


def outcome(run: Path) -> list:
    """All that a run leaves behind, apart from times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    states = {path.name: checkpoints.load(path) for path in sorted((run / "checkpoints").glob("*.pt"))}
    return without_times([rows, states, json.loads((run / "result.json").read_text())])


def without_times(tree):
    """Nested values without what a clock has measured, tensors as their bytes."""
    if isinstance(tree, dict):
        return {key: without_times(value) for key, value in tree.items() if key not in TIMES}
    if isinstance(tree, (list, tuple)):
        return [without_times(value) for value in tree]
    return (tree.dtype, tree.numpy().tobytes()) if isinstance(tree, torch.Tensor) else tree


def table_of(model: torch.nn.Module, run: Path) -> str:
    """What ``describe`` finds in a model with the level and the roles of a run's configuration."""
    optim = yaml.safe_load((run / "config.yaml").read_text())["optim"]
    return str(describe(noise_groups(model, noise=optim["noise"], only=optim["only"])))


def generated_lines(count: int, words: int = 20, seed: int = 0) -> list[str]:
    """Lines of random words (20 at most), whose frequencies fall as in a language."""
    generator = random.Random(seed)
    names = [first + second for first in ("ba", "ko", "ti", "ru", "me") for second in ("", "na", "lo", "si")][:words]
    weights = [1 / (i + 1) for i in range(len(names))]
    return [" ".join(generator.choices(names, weights, k=generator.randint(1, 12))) for _ in range(count)]


def coloured_images(folder: Path, seed: int = 0) -> Path:
    """A prepared folder with 60 training and 30 test images of 8 × 8, whose three classes differ in colour."""
    sets = {}
    for name, count in (("train", 60), ("test", 30)):
        generator = torch.Generator().manual_seed(count + seed)
        labels = torch.arange(count) % 3
        noise = torch.randint(-60, 60, (count, 3, 8, 8), generator=generator)
        images = 128 + noise + 60 * torch.nn.functional.one_hot(labels, 3).view(-1, 3, 1, 1)
        sets[name] = (images.to(torch.uint8).numpy(), labels.numpy())
    write_image_dataset(folder, sets, f"colours {seed}", ["red", "green", "blue"])
    return folder
