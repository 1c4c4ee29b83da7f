"""Processes that begin with everything imported: forked from this one, so that hundreds of trials take minutes."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path


class Child:
    """``work`` in a process of its own, whose output goes to a file; its exit status is what ``work`` returns."""

    def __init__(self, work: Callable[[], int], log: Path, environment: dict[str, str] | None = None) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.log, self.status, self.pid = log, None, os.fork()
        if self.pid == 0:
            self._run(work, environment or {})

    def _run(self, work: Callable[[], int], environment: dict[str, str]) -> None:
        status = 70  # of a traceback
        try:
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for stream in (1, 2):
                os.dup2(file, stream)
            os.environ.update(environment)
            status = work()
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


@contextlib.contextmanager
def child(work: Callable[[], int], log: Path, environment: dict[str, str] | None = None) -> Iterator[Child]:
    """A :class:`Child` that is dead when the block has ended."""
    process = Child(work, log, environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
