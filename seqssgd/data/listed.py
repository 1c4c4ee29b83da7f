"""Folders of sound files with a table of them, ``metadata.csv``: what the package datasets calls an AudioFolder.

It is read here, since datasets wants torchcodec for it, also where nothing is to be decoded.
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from seqssgd.data.lines import split_lines
from seqssgd.errors import UserError, require

TABLES, FILE = ("metadata.csv", "metadata.jsonl", "metadata.parquet"), "file_name"


def find_tables(folder: Path) -> dict[str, Path]:
    """The tables of a folder by their splits: those of folders in it by the names of these, its own is ``train``. It
    has none where there are Parquet files that are no such table: they are the data set."""
    if any(file.name not in TABLES for file in folder.rglob("*.parquet")):
        return {}
    names = [name for name in TABLES if (folder / name).is_file()]
    found = {"train": folder / names[0]} if names else {}
    for name in TABLES:
        found.update({file.parent.name: file for file in sorted(folder.glob(f"*/{name}"))})
    return found


def load_listed(tables: Mapping[str, Path]) -> dict:
    """What :func:`find_tables` found, as ``datasets.Dataset`` by split; its column ``audio`` has the files' paths.

    Raises:
        UserError: a table cannot be read, has no rows, or has no column ``file_name``.
    """
    return {split: _load(file) for split, file in tables.items()}


def _load(file: Path):
    try:
        return require("datasets").Dataset.from_list(_rows(file))
    except UserError:
        raise
    except (ValueError, TypeError, OSError, csv.Error) as error:  # pyarrow's are ValueErrors
        raise UserError(f"{file} cannot be read: {error}") from None


def _rows(file: Path) -> list[dict]:
    if file.suffix == ".parquet":
        rows = require("pyarrow.parquet").read_table(file).to_pylist()
    elif file.suffix == ".jsonl":
        rows = [json.loads(line) for line in split_lines(file.read_text(encoding="utf-8-sig")) if line.strip()]
    else:  # every value a string: "NA" is a transcript
        rows = list(csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=""), strict=True))
    if not rows:
        raise UserError(f"{file} has no rows; give one for every sound file")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get(FILE), str) or None in row:
            raise UserError(
                f"{file}: row {number} has no {FILE}, or more values than there are columns; the first line of a "
                f"metadata.csv names its columns, as in {FILE},text"
            )
    named = {(file.parent / row[FILE]).resolve() for row in rows}
    kinds = {path.suffix for path in named}
    others = [path for path in sorted(file.parent.rglob("*")) if path.suffix in kinds and path.resolve() not in named]
    if others:
        print(f"note: {len(others):,} files are in no row of {file}, and left out, such as {others[0]}")
    return [{**row, "audio": str(file.parent / row[FILE])} for row in rows]
