"""What a run tells the person in front of it: a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
from types import TracebackType

from tqdm import tqdm

from .. import processes
from ..errors import forget_output


def say(text: str) -> None:
    """Prints a line, in the main process. If nobody reads it any more (``… | head``), training goes on unheard."""
    if not processes.is_main():
        return
    try:
        print(text, flush=True)
    except OSError as error:
        forget_output()
        with contextlib.suppress(OSError):
            print(f"warning: standard output cannot be written ({error.strerror}); training goes on without it",
                  file=sys.stderr, flush=True)  # fmt: skip


class Console:
    """Shows progress towards ``total`` steps (None: only lines). Processes other than the main one are silent."""

    def __init__(self, total: float | None = None, step: int = 0):
        self._bar: tqdm | None = None
        if total is not None and processes.is_main() and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1)

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update()

    def train(self, row: dict) -> None:
        """A row of training metrics: beside the bar, or as a line."""
        if self._bar is not None:
            self._bar.set_postfix(epoch=row["epoch"], loss=_number(row["loss"]))
        else:
            self.line(describe(row))

    def valid(self, row: dict) -> None:
        """A row of validation metrics: always a line."""
        self.line(describe(row))

    def line(self, text: str) -> None:
        """Prints ``text``, above the bar if there is one."""
        if self._bar is not None:
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
