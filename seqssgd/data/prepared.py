"""Folders of prepared data, read: some files, and ``dataset.json`` with what they hold, checksums of all of them, and a
fingerprint of the source and the settings that they were made from. :mod:`seqssgd.data.preparing` writes them.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seqssgd.data.contents import checksum
from seqssgd.documents import parse_json
from seqssgd.errors import UserError

FORMAT = 1  # of prepared folders; a later, incompatible one gets another number
# What dataset.json, or its entry for a set, has in one kind of data only; what that kind is, and what writes it.
KINDS = {
    "level": ("text", "data_prep/ptb.py or data_prep/text.py"),
    "utterances": ("speech corpus", "data_prep/an4.py or another program for speech"),
    "smallest_class": ("set of images", "data_prep/imagenet.py"),
    "classes": ("set of small images", "data_prep/cifar.py"),
}


def read_info(folder: Path, entries: Iterable[str]) -> dict | None:
    """``dataset.json`` of a folder, or ``None`` if there is none.

    Raises:
        UserError: it is damaged, or lacks some of ``entries``, which its kind of data has.
    """
    try:
        info = parse_json((folder / "dataset.json").read_bytes())
        if info["format"] == FORMAT and all(info[entry] for entry in (*entries, "sha256", "fingerprint")):
            return info
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        pass
    path = folder / "dataset.json"
    check_kind(path, entries)
    raise UserError(
        f"{path} is damaged or of another version or kind; choose another folder, or prepare these data in a new one"
    )


def check_kind(path: Path, wanted: Iterable[str]) -> None:
    """Makes sure that a ``dataset.json`` is not one of another kind of data.

    Args:
        path: the file.
        wanted: entries that the kind has, or its name.

    Raises:
        UserError: it is.
    """
    try:
        info = parse_json(path.read_bytes())
        found = next((kind for entry, kind in KINDS.items() if _has(info, entry)), None)
    except (OSError, ValueError):
        return
    asked = next((kind for entry, kind in KINDS.items() if entry in wanted or kind[0] in wanted), None)
    if found is not None and asked is not None and found != asked:
        raise UserError(
            f"{path.parent} holds a {found[0]}, where a {asked[0]} is wanted; choose another folder "
            f"({asked[1]} writes one)"
        )


def _has(info: Any, entry: str) -> bool:
    """Whether a ``dataset.json``, or what it says of a set, has an entry."""
    sets = info.get("sets") if isinstance(info, dict) else None
    first = next(iter(sets.values()), None) if isinstance(sets, dict) else info
    return isinstance(first, dict) and entry in first


def read_sets(folder: str | Path, kind: str) -> dict | None:
    """``dataset.json`` of a folder of sets in Parquet files, or ``None`` if there is none; ``kind`` is of its form.

    Raises:
        UserError: it is damaged, of another kind or version, or a file that it lists is missing or of another size.
    """
    path = Path(folder) / "dataset.json"
    try:
        info = json.loads(path.read_bytes())
        if info["format"] != FORMAT or not isinstance(info["fingerprint"], str):
            raise ValueError
        files = {file: size for count in info["sets"].values() for file, size in count["files"].items()}
        if not all(isinstance(info.get(entry, {}), dict) for entry in ("content", "sha256")):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        check_kind(path, (kind,))
        raise UserError(
            f"{path} is damaged, or not of a {kind}; choose another folder, or prepare these data in a new one"
        ) from None
    check_kind(path, (kind,))
    for file, size in files.items():
        target = Path(folder) / file
        if not target.is_file() or target.stat().st_size != size:
            state = "has changed since it was prepared" if target.is_file() else "is missing"
            raise UserError(f"{target} {state}; remove {folder} and prepare it again")
    return info


def is_prepared(out: Path, fingerprint: str, entries: Iterable[str], kind: str) -> bool:
    """Whether ``out`` already is this data.

    Raises:
        UserError: it is anything else but an empty or absent folder; ``kind`` says in the message what it is not.
    """
    info = read_info(out, entries)
    if not is_same(out, info, fingerprint, kind):
        return False
    assert info is not None
    check_files(out, info, info["sha256"])
    return True


def is_same(out: Path, info: Mapping[str, Any] | None, fingerprint: str, kind: str) -> bool:
    """Whether a folder with that ``dataset.json`` was prepared from what has this fingerprint.

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
        raise UserError(f"{out} exists and is not {kind}; choose another folder")
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
