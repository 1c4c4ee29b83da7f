"""Programs as processes that need not import torch: a start costs a few tenths of a second in place of four.

A server, one for all tests of a worker, has imported what every training does, and forks; it has done nothing else, so
that a program finds what it would find at its start. What a program itself imports is seen by the tests that start it
by its command.
"""

import itertools
import multiprocessing
import os
import runpy
import signal
import sys
from fnmatch import fnmatch
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["toy_task", "numpy.random", "torch._dynamo", "torch.utils.tensorboard"])


def process(function, *arguments: object) -> BaseProcess:
    """A process that calls a module's function, started."""
    made = CONTEXT.Process(target=function, args=arguments)
    with pytest.MonkeyPatch.context() as patch:  # for what the server imports, if this starts it
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
        made.start()
    return made


def program(path: str | Path, *arguments: object, log: Path, killed_after: str | None = None) -> BaseProcess:
    """``python path arguments``, the path from the repository's root, started. It says all in ``log``.

    Args:
        killed_after: how a path ends, a pattern; the process is killed soon after it has written such a file.
    """
    words = [str(argument) for argument in arguments]
    return process(become, str(ROOT / path), words, dict(os.environ), str(log), killed_after)


def become(path: str, arguments: list[str], environment: dict[str, str], log: str, killed_after: str | None) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if killed_after:
        sys.addaudithook(partial(die_after, killed_after))
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")


def die_after(pattern: str, event: str, arguments: tuple) -> None:
    """An audit hook: a thousand calls after a file got such a name, which is while the next step is made, SIGKILL."""
    if event == "os.rename" and fnmatch(os.fspath(arguments[1]), f"*/{pattern}"):
        calls = itertools.count()
        sys.setprofile(lambda *_: next(calls) < 1000 or os.kill(os.getpid(), signal.SIGKILL))
