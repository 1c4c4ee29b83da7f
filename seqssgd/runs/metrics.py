"""What a run came to: the rows of its metrics, written while it trains, and its result; read back and judged here."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..documents import parse_json
from ..errors import UserError
from ..kinds import misfit
from .plausible import out_of_range

LARGEST = 1e30  # figures beyond it, of a model that diverged, are as those that are not finite: none
Figures = dict[str, float | None]


class Step(TypedDict):
    """What every row of metrics has beside its figures."""

    step: int


class Evaluation(Step):
    """What a row of an evaluation has."""

    epoch: int
    passes: float
    seconds: float


class Best(TypedDict):
    """What the best evaluation has beside its figures."""

    step: int
    epoch: int


class Result(TypedDict):
    """What result.json holds, as far as anything reads it."""

    steps: int
    epochs: int
    stopped_early: bool
    diverged: NotRequired[str | None]
    parameters: NotRequired[int]
    seconds: NotRequired[float]
    best: NotRequired[Figures]
    best_by: NotRequired[dict[str, str]]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, as :func:`parse_rows` takes them.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return parse_rows(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}, {error}; repeat the run in another directory") from None


def parse_rows(content: bytes, figures: bool = False) -> list[dict[str, Any]]:
    """The rows of metrics, but for a last line without an end, which was being written when the run was killed.

    Args:
        content: of a metrics.jsonl.
        figures: whether each row must have what belongs to it, and numbers alone.

    Raises:
        ValueError: a line is no such row; the message begins with its number.
    """
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            row = parse_json(line)
            if not (isinstance(row, dict) and row.get("kind") in ("train", "valid")):
                raise ValueError("no row of metrics")
            rows.append(_judged(row) if figures else row)
        except ValueError as error:
            raise ValueError(f"line {number}: damaged ({str(error).splitlines()[0]})") from None
    return rows


def _judged(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose values, but for its kind, are numbers or None, none of them impossible."""
    found = usable({key: value for key, value in row.items() if key != "kind"})
    wrong = misfit(Evaluation if row["kind"] == "valid" else Step, found) or misfit(Figures, found)
    wrong = wrong or out_of_range(found)
    if wrong:
        raise ValueError(wrong)
    return {"kind": row["kind"], **found}


def usable(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures with None for numbers that nothing can be reckoned with."""
    return {key: None if isinstance(value, float) and not abs(value) <= LARGEST else value
            for key, value in figures.items()}  # fmt: skip


def check_result(result: Any) -> None:
    """Makes sure that a result.json holds what it should.

    Raises:
        ValueError: it does not.
    """
    best = result.get("best") if isinstance(result, dict) else None
    wrong = misfit(Result, result) or (misfit(Best, best, "best") if best else None)
    if wrong:
        raise ValueError(wrong)
