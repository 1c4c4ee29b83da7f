"""The rows of a run's metrics, which are written while it trains and read back when it is resumed or compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..documents import parse_json
from ..errors import UserError


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, as :func:`parse_rows` takes them.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return parse_rows(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}, {error}; repeat the run in another directory") from None


def parse_rows(content: bytes, numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of metrics, but for a last line without an end, which was being written when the run was killed.

    Args:
        content: of a metrics.jsonl.
        numbers: what every row of an evaluation must have.

    Raises:
        ValueError: a line is no such row; the message begins with its number.
    """
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            row = parse_json(line)
            if not (isinstance(row, dict) and row.get("kind") in ("train", "valid")):
                raise ValueError("no row of metrics")
            for key in numbers if row["kind"] == "valid" else ():
                if not isinstance(row.get(key), (int, float)):
                    raise ValueError(f"its {key} is no number" if key in row else f"no {key!r} in it")
        except ValueError as error:
            raise ValueError(f"line {number}: damaged ({str(error).splitlines()[0]})") from None
        rows.append(row)
    return rows
