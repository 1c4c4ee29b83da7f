"""Mutated inputs to every reader: refused in its own words or read, never a traceback, a hang, or much memory."""

import io
import json
import random
import resource
import shutil
import struct
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .processes import child
from .trainings import Trainings

BATCH = 100  # inputs of a trial, of one reader
SLOW = 20.0  # seconds of one input; more is a hang
MEMORY = 64 * 2**20  # bytes that a reader may take for any input, and
MULTIPLE = 50  # times as many as the input has
TOKENS = [
    *(b"\x00", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff" * 8, b"-1", b"1e999", b"NaN", b"null", b"[" * 200, b"{" * 200),
    *(b'"', b"\n", b"\\", b": ", b"*a", b"&a ", b"!!python/object:os.system ", b"\xef\xbb\xbf", "\u2028".encode()),
    *(b"=", b"../" * 5, b"%s", b"0" * 50, b" " * 100),
]


def mutate(content: bytes, chance: random.Random) -> bytes:
    """``content`` with one to four faults: bits, bytes, pieces lost, doubled, exchanged or put in, an end cut off."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice([1, 2, 4, 16, 256]))
        kind = chance.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at:end] = chance.randbytes(end - at)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at:end] = chance.choice(TOKENS)
        elif kind == 5:
            del data[at:]
        elif len(data) >= 8:
            data[at : at + 4] = struct.pack("<I", chance.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, len(data)]))
    return bytes(data)


@dataclass(frozen=True)
class Reader:
    """What reads an input.

    Attributes:
        name: of the kind of input.
        good: an input as it should be.
        read: takes the bytes, and a folder to put them into.
        refusals: the classes of exceptions in which it refuses.
    """

    name: str
    good: bytes
    read: Callable[[bytes, Path], object]
    refusals: tuple[type[Exception], ...]


def readers(folder: Path, trainings: Trainings) -> list[Reader]:
    """All readers, over a finished run and over files that are made for them."""
    import numpy as np
    import soundfile
    from PIL import Image
    from programs import load

    from seqssgd.data import audio, pictures
    from seqssgd.data.archives import read_members
    from seqssgd.data.images import load_images
    from seqssgd.data.sphere import AudioError
    from seqssgd.data.text import load_text, read_lines
    from seqssgd.documents import parse_json, parse_yaml
    from seqssgd.errors import UserError
    from seqssgd.language.finished import load_language_model
    from seqssgd.report import read_run
    from seqssgd.runs import checkpoints
    from seqssgd.runs.metrics import parse_rows
    from seqssgd.speech.finished import load_recognizer
    from seqssgd.training import parse_recipe

    run, speech = folder / "run", folder / "speech run"
    train = load("recipes/ptb_lstm/train.py")
    configuration = (Path(train.__file__).parent / "small_cpu.yaml").read_bytes()

    def in_place_of(source: Path, name: str, use: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
        """Uses a copy of a folder in which one file has other contents."""

        def read(content: bytes, place: Path) -> object:
            copy = place / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
            (copy / name).write_bytes(content)
            return use(copy)

        return read

    def as_file(use: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
        def read(content: bytes, place: Path) -> object:
            (place / "file").write_bytes(content)
            return use(place / "file")

        return read

    def recipe(path: Path) -> object:
        data = ["--data", str(trainings.text), "--out", "run"]
        return parse_recipe(train.Config, ["--config", str(path), *data])

    def sound(kind: str, subtype: str | None = None) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, np.sin(np.arange(4000) / 9), 16000, format=kind, subtype=subtype)
        return file.getvalue()

    def picture(kind: str) -> bytes:
        file = io.BytesIO()
        Image.fromarray((np.arange(12 * 12 * 3) % 251).astype(np.uint8).reshape(12, 12, 3)).save(file, kind)
        return file.getvalue()

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        info = tarfile.TarInfo("a/ptb.train.txt")
        info.size = 30
        tar.addfile(info, io.BytesIO(b"a few words of a text to read\n"))

    words = {"ptb.train.txt"}
    found = [
        Reader("YAML", configuration, lambda c, _: parse_yaml(c), (ValueError,)),
        Reader("JSON", b'{"a": [1, 2.5, {"b": null}], "c": "text"}', lambda c, _: parse_json(c), (ValueError,)),
        Reader("configuration of a recipe", configuration, as_file(recipe), (UserError,)),
        Reader("rows of metrics", (run / "metrics.jsonl").read_bytes(), lambda c, _: parse_rows(c), (ValueError,)),
        Reader("checkpoint", (run / "checkpoints/best.pt").read_bytes(), as_file(checkpoints.load), (UserError,)),
        Reader("text", "a line\nänother\n".encode() * 9, as_file(read_lines), (UserError,)),
        Reader("archive", archive.getvalue(), as_file(lambda path: read_members(path, words, 10**6)), (UserError,)),
    ]

    def of_folder(title: str, source: Path, name: str, use: Callable[[Path], object]) -> None:
        content = (source / name).read_bytes()
        found.append(Reader(f"{title}: {name}", content, in_place_of(source, name, use), (UserError,)))

    for name in ("config.yaml", "metrics.jsonl", "result.json", "environment.json"):
        of_folder("run for compare", run, name, read_run)
    for name in ("config.yaml", "tokenizer/vocabulary.txt", "tokenizer/tokenizer.json", "checkpoints/best.pt"):
        of_folder("language model", run, name, load_language_model)
    for path in sorted((speech / "tokenizer").iterdir()):
        of_folder("recogniser", speech, f"tokenizer/{path.name}", load_recognizer)
    of_folder("text", trainings.text, "dataset.json", load_text)
    of_folder("images", trainings.images, "dataset.json", load_images)
    formats = {"WAV": None, "FLAC": None, "OGG": "VORBIS", "AIFF": None, "AU": None, "W64": None}
    for kind, subtype in formats.items():
        found.append(Reader(f"recording: {kind}", sound(kind, subtype), lambda c, _: audio.decode(c), (AudioError,)))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        found.append(Reader(f"image: {kind}", picture(kind), lambda c, _: pictures.decode(c), (pictures.ImageError,)))
    return found


class Inputs:
    """One trial: a hundred mutations of one good input, in a process that is watched."""

    name = "inputs"

    def __init__(self, folder: Path) -> None:
        self.folder, self.trainings = folder, Trainings(folder)
        for name, training in (("run", ("ptb_lstm", "ssgd")), ("speech run", ("wsj_sgcn", "none"))):
            if not (folder / name / "result.json").is_file():
                work = self.trainings.recipe(*training)
                with child(lambda work=work, name=name: work.run(folder / name), folder / "log") as process:
                    if process.wait(300) != 0:
                        raise RuntimeError((folder / "log").read_text())
        self.readers = readers(folder, self.trainings)

    def trial(self, chance: random.Random) -> dict[str, int | str]:
        reader, seed = chance.choice(self.readers), chance.random()
        place, report = self.folder / "place", self.folder / "report"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        report.unlink(missing_ok=True)

        def work() -> int:
            mutations = random.Random(seed)
            with open(report, "w", buffering=1) as file:
                reader_try(reader, reader.good, place)  # what reading takes at all
                for _ in range(BATCH):
                    file.write(json.dumps(reader_try(reader, mutate(reader.good, mutations), place)) + "\n")
            return 0

        with child(work, self.folder / "log") as process:
            status, length = None, -1
            while status is None:
                status = process.wait(SLOW)
                now = report.stat().st_size if report.is_file() else 0
                if status is None and now == length:
                    break  # nothing was finished in all that time
                length = now
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.is_file() else []
        wrong = [line for line in lines if line["outcome"] not in ("read", "refused")]
        count = {"trials": 1, "inputs": len(lines), **{key: sum(line["outcome"] == key for line in lines)
                                                       for key in ("read", "refused")}}  # fmt: skip
        if status != 0:
            wrong.append({"outcome": "hang" if status is None else f"status {status}"})
        return count | ({"failed": len(wrong), "note": f"{reader.name}: {wrong[0]['outcome']}"} if wrong else {})


def reader_try(reader: Reader, content: bytes, place: Path) -> dict[str, str]:
    """What comes of one input."""
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        reader.read(content, place)
        outcome = "read"
    except reader.refusals as error:
        text = str(error)
        outcome = "refused" if text and "\n" not in text else f"refused in {len(text.splitlines())} lines"
    except BaseException as error:
        outcome = f"traceback: {type(error).__name__}: {str(error)[:100]}"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > MEMORY + MULTIPLE * len(content):
        outcome = f"memory: {grown:,} bytes for {len(content):,}"
    if time.monotonic() - begin > SLOW:
        outcome = "hang"
    return {"outcome": outcome}
