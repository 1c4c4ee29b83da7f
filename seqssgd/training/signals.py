"""Signals that ask a training to stop."""

import contextlib
import signal
from typing import Any


class StopSignals(contextlib.AbstractContextManager):
    """Notes SIGTERM and SIGINT instead of dying of them; a second one of them interrupts at once."""

    def __init__(self) -> None:
        self.number = 0
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
        if self.number:
            raise KeyboardInterrupt
        self.number = number
