"""The errors of every utterance, which an evaluation of speech keeps beside its rates.

Whether one recogniser is better than another is told more surely from the same utterances of both.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from ..files import atomic_path
from . import layout

# errors and units of the reference: of ("speaker", name), or of ("utterance", id) where the speakers are not known
Counts = dict[tuple[str, str], tuple[int, int]]


def write_errors(
    run: str | Path, split: str, speakers: Mapping[str, str] | None, rates: Mapping[str, Mapping[str, tuple[int, int]]]
) -> None:
    """Writes ``errors_SPLIT.csv``, with a line for every utterance.

    Args:
        run: the run directory.
        split: what was recognised, as in evaluation.json.
        speakers: of every utterance; None if they are not known.
        rates: for ``wer`` and ``cer``, errors and units of the reference of every utterance.

    Raises:
        UserError: the run directory cannot be written to.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    numbered = [f"{rate}_{what}" for rate in rates for what in ("errors", "reference")]
    writer.writerow(["utterance", "speaker", *numbered])
    for utterance in next(iter(rates.values())):
        numbers = [number for counts in rates.values() for number in counts[utterance]]
        writer.writerow([utterance, speakers[utterance] if speakers else "", *numbers])
    path = Path(run) / layout.errors_name(split)
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(file.getvalue(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def read_errors(run: str | Path, split: str, rate: str, known: Mapping[str, int]) -> Counts | None:
    """Errors and units of the reference of every speaker; of every utterance where the speakers are not known.

    Args:
        run: the run directory.
        split: what was recognised.
        rate: ``wer`` or ``cer``.
        known: what evaluation.json says of all of them together: substitutions, deletions, insertions, reference.

    Returns:
        None if the run keeps none.

    Raises:
        UserError: the file is damaged, or belongs to another evaluation.
    """
    path = Path(run) / layout.errors_name(split)
    if not path.is_file():
        return None
    again = f"evaluate {split} again: seqssgd evaluate --run {run} --save"
    found: Counts = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                kind = "speaker" if row["speaker"] else "utterance"
                group = kind, row[kind]
                errors, reference = found.get(group, (0, 0))
                found[group] = errors + int(row[f"{rate}_errors"]), reference + int(row[f"{rate}_reference"])
        whole = known["substitutions"] + known["deletions"] + known["insertions"], known["reference"]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); {again}") from None
    sums = tuple(map(sum, zip(*found.values(), strict=True)))
    if sums != whole:
        raise UserError(f"{path}: does not add up to what {layout.EVALUATION} says; {again}")
    return found
