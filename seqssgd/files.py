"""Writing files so that no reader, no crash and no power cut ever leaves half of one."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import FULL, UserError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``.

    If the block raises, ``path`` is left as it was and the temporary file is removed. A process killed
    inside the block leaves a file named ``.NAME.*.tmp`` behind (see :func:`is_leftover`) and ``path`` untouched.
    What is there once the block has ended is there after a power cut, too.

    Raises:
        OSError: as always, with ``path`` as the name of the file, where the disk is full above all.
    """
    path = Path(path)
    with naming(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private; results are ordinary files
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``, which is absent or an empty folder; on success it takes that name.

    If the block raises, ``path`` is left as it was and the temporary folder is removed.

    Raises:
        UserError: no folder can be made there.
        OSError: the disk is full.
    """
    target = Path(os.path.realpath(path))
    with _making(path):
        make_folder(target.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        with naming(path):
            yield temporary
            for entry in temporary.rglob("*"):
                if entry.is_dir():
                    sync_folder(entry)
                    continue
                with open(entry, "rb") as file:
                    os.fsync(file.fileno())
            temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        with _making(path):
            os.replace(temporary, target)  # replaces an empty folder, never a full one
            sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _making(folder: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(f"{folder}: cannot write there ({error.strerror}); choose another folder") from None


def is_leftover(path: Path) -> bool:
    """Whether a file is one that :func:`atomic_path` left in a process that was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder, and those above it, that are there after a power cut; nothing if it exists."""
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(folder: str | os.PathLike) -> None:
    """Writes the names in a folder to disk: new, renamed and deleted files are so for good."""
    if os.name == "nt":  # no folder can be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Gives the name of a file to the ``OSError`` of a block that writes to it, if it has none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
