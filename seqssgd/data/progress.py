"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm


class ProgressBar:
    """Counts towards ``total`` (0: not known), from ``done`` on; without a terminal, a line every ``interval`` seconds,
    on standard error if ``err``."""

    def __init__(
        self, total: int, done: int = 0, unit: str = "utterances", interval: float = 10.0, err: bool = False
    ) -> None:
        self.total, self.done, self.unit, self.interval, self.err = total, done, unit, interval, err
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total or None, initial=done, unit=f" {unit}", dynamic_ncols=True)
        self._said = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        if self.done and self._bar is None:
            print(f"{self.done:,} of {self.total:,} {self.unit} were finished before", flush=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1) -> None:
        """``count`` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said >= self.interval:
            self._said = time.monotonic()
            of = f" of {self.total:,}" if self.total else ""
            print(f"{self.done:,}{of} {self.unit}", file=sys.stderr if self.err else None, flush=True)
