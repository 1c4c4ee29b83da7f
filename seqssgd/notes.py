"""What is said beside results: the logger ``seqssgd``, which shows itself on the console and can be silenced.

``logging.getLogger("seqssgd").setLevel("WARNING")`` leaves out lines of progress, ``"ERROR"`` notes and warnings too.
Progress goes to standard output as it is, all else to standard error after its kind.
"""

import contextlib
import logging
import sys

from .errors import forget_output

NOTE = (logging.INFO + logging.WARNING) // 2
_KINDS = {NOTE: "note", logging.WARNING: "warning", logging.ERROR: "error"}
logger = logging.getLogger("seqssgd")


def say(text: str) -> None:
    """A line of progress. If nobody reads it any more (``… | head``), work goes on unheard."""
    logger.info("%s", text)


def note(text: str) -> None:
    """What may be of interest and is no fault."""
    logger.log(NOTE, "%s", text)


def warn(text: str) -> None:
    """What is not as it should be, and does not stop the work."""
    logger.warning("%s", text)


def complain(text: str) -> None:
    """What makes the result of no use."""
    logger.error("%s", text)


def is_silent() -> bool:
    """Whether lines of progress are left out."""
    return not logger.isEnabledFor(logging.INFO)


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno > logging.INFO:
            with contextlib.suppress(OSError):
                print(f"{_KINDS[record.levelno]}: {text}", file=sys.stderr, flush=True)
            return
        try:
            print(text, flush=True)
        except OSError as error:
            forget_output()
            warn(f"standard output cannot be written ({error.strerror}); training goes on without it")


if not logger.handlers:
    logger.addHandler(_Console())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a program with handlers of its own takes this one away, and sets this to True
