"""What reads an input that may come from anywhere, and how a command is one."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seqssgd.errors import UserError, run_cli

Read = Callable[[bytes, Path], object]


@dataclass(frozen=True)
class Reader:
    """What reads an input.

    Attributes:
        name: of the kind of input.
        good: an input as it should be.
        read: takes the bytes, and a folder to put them into.
        refusals: the classes of exceptions in which it refuses.
        form: of the input, as :func:`tests.campaign.mutations.mutate` knows it.
    """

    name: str
    good: bytes
    read: Read
    refusals: tuple[type[Exception], ...] = (UserError,)
    form: str = "bytes"


# How lines begin that may stand on standard error; the last ones are KenLM's.
SAID = ("error: ", "note: ", "warning: ", "Loading the LM", "Reading ", "The ARPA file is missing", "----5---", "****")
FORMS = {".yaml": "yaml", ".json": "json", ".jsonl": "rows", ".pt": "torch"}


def say(main: Callable[[list[str]], int | None], words: list[object], place: Path) -> None:
    """Runs a program in this process.

    Raises:
        UserError: it refuses as it should: one line ``error: …`` and the exit status 2.
        AssertionError: it ends otherwise than so or with the status 0.
    """
    (place / "said").touch()
    with open(place / "said", "w+b") as file:
        old = [os.dup(stream) for stream in (1, 2)]
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(file.fileno(), 2)
        try:
            with open(2, "w", closefd=False) as said, contextlib.redirect_stderr(said):  # whatever a test has put there
                status = run_cli(lambda: main([str(word) for word in words]))
        except SystemExit as error:
            status = error.code
        finally:
            sys.stdout.flush()
            for stream, handle in zip((1, 2), old, strict=True):
                os.dup2(handle, stream)
                os.close(handle)
        file.seek(0)
        said = file.read().decode(errors="replace").strip().split("\n")
    if any(line.startswith("Traceback") for line in said):
        raise AssertionError(f"a traceback: {said[-1]}")
    errors = [line for line in said if line.startswith("error: ")]
    others = [line for line in said if line and not line.startswith(SAID)]
    if others:
        raise AssertionError(f"says {others[0][:200]!r}")
    if status == 2 and errors:
        raise UserError(errors[0])
    if status != 0 or errors:
        raise AssertionError(f"status {status}, says {said[-1][:200]!r}")


def in_place_of(source: Path, name: str, use: Callable[[Path], object]) -> Read:
    """Uses a copy of a folder in which one file has other contents."""

    def read(content: bytes, place: Path) -> object:
        copy = place / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("tensorboard"))
        (copy / name).write_bytes(content)
        return use(copy)

    return read


def as_file(use: Callable[[Path], object], name: str = "file") -> Read:
    def read(content: bytes, place: Path) -> object:
        (place / name).write_bytes(content)
        return use(place / name)

    return read


def file(title: str, source: Path, name: str, main: Callable[[list[str]], int | None], *words: object) -> Reader:
    """A program over a copy of a folder, ``COPY`` among its words, in which one file is mutated; it may write to
    ``OUT``, which is not there."""

    def use(copy: Path) -> None:
        places = {"COPY": copy, "OUT": copy.parent / "out"}
        for path in (places["OUT"], copy.parent / ".out.partial"):
            shutil.rmtree(path, ignore_errors=True)
        say(main, [places.get(str(word), word) for word in words], copy.parent)

    form = FORMS.get(Path(name).suffix, "bytes")
    return Reader(f"{title}: {name}", (source / name).read_bytes(), in_place_of(source, name, use), form=form)
