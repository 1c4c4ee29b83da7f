"""Mutated inputs to every reader: refused in its own words or read, never a traceback, a hang, or much memory."""

import itertools
import json
import random
import resource
import shutil
import time
from collections import Counter
from pathlib import Path

from .mutations import mutate
from .processes import child, learn, learning
from .reader import Reader
from .readers import Sources
from .trainings import Trainings

BATCH = 100  # inputs of a trial, of one reader, at most; and
SECONDS = 15.0  # of a trial
SLOW = 20.0  # seconds of one input; more is a hang
MEMORY = 64 * 2**20  # bytes that a reader may take for any input, and
MULTIPLE = 50  # times as many as the input has
RIGHT = ("read", "refused")
ROOM = 8 * 2**30  # bytes of addresses, so that what takes too much does not take the machine


class Inputs:
    """One trial: up to a hundred mutations of one good input, in a process that is watched.

    The reader is the one on which the least time was spent, so that the fast ones read the most.
    """

    name = "inputs"

    def __init__(self, folder: Path, keep: Path | None = None) -> None:
        self.folder, self.keep = folder, keep
        self.readers: list[Reader] = []
        self.spent: list[float] = []

    def trial(self, chance: random.Random) -> dict:
        if not self.readers:
            self.readers = Sources(self.folder, Trainings(self.folder)).all()
            self.spent = [chance.random() for _ in self.readers]
        number, begin = self.spent.index(min(self.spent)), time.monotonic()
        found = self.batch(self.readers[number], chance.random())
        self.spent[number] += time.monotonic() - begin
        return found

    def batch(self, reader: Reader, seed: float, size: int = BATCH) -> dict:
        place, report = self.folder / "place", self.folder / "report"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        report.unlink(missing_ok=True)

        def work() -> int:
            resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
            reader.read(reader.good, place)  # is read, and brings all imports with it
            if (outcome := try_one(reader, reader.good, place)) != "read":
                raise RuntimeError(f"{outcome} is what comes of an input as it should be")
            with open(report, "a", buffering=1, encoding="utf-8") as file:
                end = time.monotonic() + SECONDS
                for number in itertools.takewhile(lambda _: time.monotonic() < end, range(size)):
                    content = mutate(reader.good, random.Random(f"{seed} {number}"), reader.form)
                    (self.folder / "input").write_bytes(content)  # is there if the process dies of it
                    file.write(json.dumps(outcome := try_one(reader, content, place)) + "\n")
                    if outcome not in RIGHT:
                        self.keep_input(reader)
            return 0

        with child(learning(work, self.folder / "modules"), self.folder / "log") as process:
            status, length = None, -1
            while status is None:
                status = process.wait(SLOW)
                now = report.stat().st_size if report.is_file() else 0
                if status is None and now == length:
                    break  # nothing was finished in all that time
                length = now
        learn(self.folder / "modules")
        found = [json.loads(line) for line in report.read_text("utf-8").splitlines()] if report.is_file() else []
        wrong = [outcome for outcome in found if outcome not in RIGHT]
        if status != 0:
            self.keep_input(reader)
            wrong.append("a hang" if status is None else f"the process ends with {status}")
        count = {"trials": 1, "inputs": len(found), **{key: found.count(key) for key in RIGHT},
                 "of": Counter({reader.name: len(found)})}  # fmt: skip
        return count | ({"failed": len(wrong), "note": f"{reader.name}: {wrong[0]}"} if wrong else {})

    def keep_input(self, reader: Reader) -> None:
        if self.keep is not None:
            self.keep.mkdir(exist_ok=True)
            name = "".join(letter if letter.isalnum() else "_" for letter in reader.name)
            shutil.copy(self.folder / "input", self.keep / f"{name}_{time.time_ns()}")


def try_one(reader: Reader, content: bytes, place: Path) -> str:
    """What comes of one input; one of ``RIGHT`` if all is well."""
    before, begin = peak_memory(reset=True), time.monotonic()
    try:
        reader.read(content, place)
        outcome = "read"
    except reader.refusals as error:
        text = str(error)
        outcome = "refused" if text and "\n" not in text else f"a refusal of {len(text.splitlines())} lines: {text!r}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {str(error)[:300]}"
    grown, seconds = peak_memory() - before, time.monotonic() - begin
    if grown > MEMORY + MULTIPLE * len(content):
        outcome = f"{grown:,} bytes of memory for {len(content):,} bytes"
    return f"{seconds:.0f} seconds" if seconds > SLOW else outcome


def peak_memory(reset: bool = False) -> int:
    """The most resident memory of this process, in bytes, since it was reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
