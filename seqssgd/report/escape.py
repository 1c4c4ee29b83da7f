"""Names that come with a run, which may be anyone's, as text and nothing else."""

import re
from typing import Any


def plain(value: Any) -> Any:
    """Nested values whose texts have no control characters: no line breaks, nothing that a terminal obeys."""
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return "".join(c if c.isprintable() else " " for c in value) if isinstance(value, str) else value


def markdown(text: str) -> str:
    """Text for Markdown in which no HTML element and no link begins; a comparison (p < 0.05) stays as it is."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("](", "]\\(")


def cell(value: Any) -> Any:
    """A value for CSV that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value
