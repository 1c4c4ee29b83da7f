"""What a run tells the person in front of it: a progress bar on a terminal, plain lines elsewhere."""

import math
import sys
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from .. import notes, processes


def say(text: str) -> None:
    """A line of progress, in the main process."""
    if processes.is_main():
        notes.say(text)


WIDTH = 80  # columns
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


class Console:
    """Shows progress towards ``total`` steps (None: only lines). Processes other than the main one are silent.

    Args:
        total: steps of the whole training.
        step: those made before.
        epochs: of the whole training.
        metrics: of a training loss; see :meth:`Task.train_metrics`.
    """

    MEMORY = 50  # steps that the running loss is about the mean of

    def __init__(
        self,
        total: float | None = None,
        step: int = 0,
        epochs: int = 1,
        metrics: Callable[[float], dict[str, float]] = lambda loss: {},
    ):
        self._bar: tqdm | None = None
        self._epochs, self._metrics, self._loss = epochs, metrics, math.nan
        if total is not None and processes.is_main() and sys.stderr.isatty() and not notes.is_silent():
            self._bar = tqdm(total=total, initial=step, ncols=WIDTH, smoothing=0.1, bar_format=BAR)

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, loss: float, epoch: int, passes: float) -> None:
        """One more step is done."""
        if self._bar is None:
            return
        if math.isfinite(loss):
            share = 1 / self.MEMORY if math.isfinite(self._loss) else 1
            self._loss = (1 - share) * (self._loss if share < 1 else 0.0) + share * loss
        found = self._metrics(self._loss) or {"loss": self._loss}
        figures = " ".join(f"{name.removeprefix('train_')} {_number(value)}" for name, value in found.items())
        text = f"epoch {epoch}/{self._epochs} passes {passes:g} {figures}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def train(self, row: dict) -> None:
        """A row of training metrics: a line, unless there is a bar, which has them in short."""
        if self._bar is None:
            self.line(describe(row))

    def valid(self, row: dict) -> None:
        """A row of validation metrics: always a line."""
        self.line(describe(row))

    def line(self, text: str) -> None:
        """Prints ``text``, above the bar if there is one."""
        if self._bar is not None and not notes.is_silent():
            self._bar.write(text)
        else:
            say(text)


def describe(row: dict) -> str:
    """A row of metrics as one line of text.

    >>> describe({"kind": "valid", "step": 20, "epoch": 2, "valid_loss": 0.51234567, "seconds": 3.0})
    'valid  step 20  epoch 2  valid_loss 0.5123  seconds 3'
    """
    return "  ".join([row["kind"], *(f"{key} {_number(value)}" for key, value in row.items() if key != "kind")])


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
