"""Imported by programs before all else, so that Ctrl-C while torch is being loaded is one word and no traceback."""

import sys
from types import TracebackType


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)  # the interpreter then ends as the signal would have ended it
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say
