"""Processes that are killed: forked from this one, with everything imported, or started anew.

This process is the one that all trials are forked from. It imports what they need (:func:`learn`) and stays without
threads, so that a fork is whole and takes milliseconds where a start takes seconds.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

TRACEBACK = 70  # the exit status of a child that ended with one


def threads() -> int:
    """The threads of this process."""
    return len(os.listdir("/proc/self/task"))


class Child:
    """``work`` in a forked process, whose output goes to a file; its exit status is what ``work`` returns."""

    def __init__(self, work: Callable[[], int], log: Path, environment: dict[str, str] | None = None) -> None:
        if (count := threads()) > 1:
            raise RuntimeError(f"{count} threads, where a process that is forked must have one")
        sys.stdout.flush()
        sys.stderr.flush()
        self.log, self.status, self.pid = log, None, os.fork()
        if self.pid == 0:
            self._run(work, environment or {})

    def _run(self, work: Callable[[], int], environment: dict[str, str]) -> None:
        status = TRACEBACK
        try:
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for stream in (1, 2):
                os.dup2(file, stream)
            os.environ.update(environment)
            status = work()
        except KeyboardInterrupt:  # before the program has begun
            status = 130
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float) -> int | None:
        """The exit status, negative after a signal; None if the process still runs after so many seconds."""
        end = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                return None
            else:
                time.sleep(0.002)
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.status is None:
            os.kill(self.pid, number)


class Started:
    """A command in a process of its own, from the start of Python on; otherwise as :class:`Child`."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        everything = {**os.environ, "PYTHONPATH": path, **(environment or {})}
        with open(log, "ab") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, env=everything)
        self.log, self.pid = log, self._process.pid

    def wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self, number: int = signal.SIGKILL) -> None:
        self._process.send_signal(number)


@contextlib.contextmanager
def alive(process: Child | Started) -> Iterator[Child | Started]:
    """A process that is dead when the block has ended."""
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def child(work: Callable[[], int], log: Path) -> contextlib.AbstractContextManager[Child]:
    """A :class:`Child` that is dead when the block has ended."""
    return alive(Child(work, log))


def learning(work: Callable[[], int], modules: Path) -> Callable[[], int]:
    """``work``, after which a file names all modules that it has imported."""

    def run() -> int:
        status = work()
        modules.write_text("\n".join(sys.modules))
        return status

    return run


def learn(modules: Path) -> None:
    """Imports the modules that a file names, so that further children have them from the beginning."""
    for name in modules.read_text().split("\n") if modules.is_file() else ():
        if name not in sys.modules and not name.startswith("program_"):
            with contextlib.suppress(Exception):  # some exist in the middle of others' imports only
                importlib.import_module(name)
