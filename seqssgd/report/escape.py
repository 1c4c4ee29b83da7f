"""Names that come with a run, which may be anyone's, as text and nothing else."""

import re
from collections.abc import Iterable
from typing import Any

from ..documents import printable


def markdown(text: str) -> str:
    """Text for Markdown in which no HTML element, no link and no line begins; a comparison (p < 0.05) stays."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", printable(text)).replace("](", "]\\(")


def bullets(lines: Iterable[str]) -> str:
    """Lines of text as a list in Markdown."""
    return "\n".join(f"- {markdown(line)}" for line in lines)


def cell(value: Any) -> Any:
    """A value for CSV that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value
