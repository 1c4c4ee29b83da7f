"""Folders of prepared data, read: some files, and ``dataset.json`` with what they hold, checksums of all of them, and a
fingerprint of the source and the settings that they were made from. :mod:`seqssgd.data.preparing` writes them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seqssgd.data.contents import checksum
from seqssgd.data.dataset_json import KINDS, Sets, kind_of
from seqssgd.documents import parse_json
from seqssgd.errors import UserError
from seqssgd.kinds import misfit

FORMAT = 1  # of prepared folders; a later, incompatible one gets another number


def read_info(folder: Path, kind: str) -> dict | None:
    """``dataset.json`` of a folder of a kind of data, by its name in messages; ``None`` if there is none.

    Raises:
        UserError: it is damaged, or of another kind or version.
    """
    path, known = Path(folder) / "dataset.json", kind_of(kind)
    try:
        info = parse_json(path.read_bytes())
        wrong = misfit(Sets if known is None else known.form, info)
        if wrong is None and info.get("format") != FORMAT:
            wrong = f"format: {info.get('format')!r} is not {FORMAT}, that of this version"
        if wrong is None and "checksum" in info and info != with_checksum(info):  # earlier versions wrote none
            wrong = "it is not as it was written"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); choose another folder") from None
    except ValueError as error:
        wrong = str(error)
    check_kind(path, kind)
    if wrong is not None:
        raise UserError(
            f"{path} is damaged or of another version or kind ({wrong}); choose another folder, or prepare these data "
            "in a new one"
        )
    return info


def with_checksum(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``dataset.json`` is to hold, with a checksum of it: its fingerprint is of the source, which files do not
    tell, and what else it has, such as mean colours, is used as it stands."""
    own = json.loads(json.dumps({key: value for key, value in info.items() if key != "checksum"}))
    return {**own, "checksum": hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()}


def check_kind(path: Path, kind: str) -> None:
    """Makes sure that a ``dataset.json`` is not one of another kind of data than the one of that name.

    Raises:
        UserError: it is.
    """
    try:
        info = parse_json(path.read_bytes())
        found = next((kind for entry, kind in KINDS.items() if _has(info, entry)), None)
    except (OSError, ValueError):
        return
    asked = kind_of(kind)
    if found is not None and asked is not None and found != asked:
        raise UserError(
            f"{path.parent} holds a {found.name}, where a {asked.name} is wanted; choose another folder "
            f"({asked.programs} writes one)"
        )


def _has(info: Any, entry: str) -> bool:
    """Whether a ``dataset.json``, or what it says of a set, has an entry."""
    sets = info.get("sets") if isinstance(info, dict) else None
    first = next(iter(sets.values()), None) if isinstance(sets, dict) else info
    return isinstance(first, dict) and entry in first


def read_sets(folder: str | Path, kind: str) -> dict | None:
    """:func:`read_info` of a folder of sets in Parquet files.

    Raises:
        UserError: as there, or a file that it lists is missing or of another size.
    """
    info = read_info(Path(folder), kind)
    files = {file: size for count in (info or {"sets": {}})["sets"].values() for file, size in count["files"].items()}
    for file, size in files.items():
        target = Path(folder) / file
        if not target.is_file() or target.stat().st_size != size:
            state = "has changed since it was prepared" if target.is_file() else "is missing"
            raise UserError(f"{target} {state}; remove {folder} and prepare it again")
    return info


def is_prepared(out: Path, fingerprint: str, kind: str) -> bool:
    """Whether ``out`` already is this data, of a kind by its name.

    Raises:
        UserError: it is anything else but an empty or absent folder.
    """
    info = read_info(out, kind)
    if not is_same(out, info, fingerprint, kind):
        return False
    assert info is not None
    check_files(out, info, info["sha256"])
    return True


def is_same(out: Path, info: Mapping[str, Any] | None, fingerprint: str, kind: str) -> bool:
    """Whether a folder with that ``dataset.json``, of a kind of data, was prepared from what has this fingerprint.

    Raises:
        UserError: from something else, or it is neither prepared nor empty or absent.
    """
    if info is not None:
        if info["fingerprint"] != fingerprint:
            raise UserError(
                f"{out} was prepared from another source or with other settings; remove it, or choose another folder"
            )
        return True
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not a prepared {kind}; choose another folder")
    return False


def check_files(folder: Path, info: Mapping[str, Any], names: Iterable[str]) -> None:
    """Makes sure that files are those that were prepared.

    Raises:
        UserError: one is missing or has changed.
    """
    for name in names:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; remove {folder} and prepare it again")
        if checksum(path) != info["sha256"].get(name):
            raise UserError(f"{path} has changed since it was prepared; remove {folder} and prepare it again")
