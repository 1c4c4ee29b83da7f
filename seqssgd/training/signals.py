"""Signals that ask a training to stop."""

import contextlib
import signal
import time
from typing import Any


class StopSignals(contextlib.AbstractContextManager):
    """Notes SIGTERM and SIGINT instead of dying of them; Ctrl-C more than a second later interrupts at once.

    What ends a job sends a signal more than once: Slurm to every process of it, of which torchrun then passes it on;
    timeout to its child, and to the group that the child is in.
    """

    AGAIN = 1  # seconds after which Ctrl-C is another one

    def __init__(self) -> None:
        self.number, self._at = 0, 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        with contextlib.suppress(ValueError):  # not in the main thread: signals go elsewhere
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if not self.number:
            self.number, self._at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at > self.AGAIN:
            raise KeyboardInterrupt
