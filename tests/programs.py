"""The programs of the repository, no part of the package: imported as modules, called, or run as processes."""

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from seqssgd.errors import run_cli

ROOT = Path(__file__).parents[1]


def load(path: str) -> ModuleType:
    """The program at ``path`` (from the repository's root) as a module."""
    name = "program_" + path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


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


def generated_lines(count: int, words: int = 20, seed: int = 0) -> list[str]:
    """Lines of random words (20 at most), whose frequencies fall as in a language."""
    generator = random.Random(seed)
    names = [first + second for first in ("ba", "ko", "ti", "ru", "me") for second in ("", "na", "lo", "si")][:words]
    weights = [1 / (i + 1) for i in range(len(names))]
    return [" ".join(generator.choices(names, weights, k=generator.randint(1, 12))) for _ in range(count)]
