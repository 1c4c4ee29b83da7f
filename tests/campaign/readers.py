"""All that reads what may come from elsewhere: the commands, over runs, data and sources that are made for them."""

import contextlib
import dataclasses
import io
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from programs import load

from seqssgd.errors import UserError, run_cli

from .processes import child
from .trainings import Training, Trainings

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
BEGUN = {"ptb_lstm": 40, "cifar_cnn": 4}  # steps of runs that are gone on with
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


class Sources:
    """Runs and sources, made once, and the readers over them."""

    def __init__(self, folder: Path, trainings: Trainings) -> None:
        self.folder, self.trainings = folder, trainings
        self.programs = {name: self.trained(name, "ssgd") for name in ("ptb_lstm", "wsj_sgcn", "cifar_cnn")}
        self.begun = {name: self.trained(name, "ssgd", steps) for name, steps in BEGUN.items()}
        self.hub, self.cifar = trainings.made("hub", _write_hub), trainings.made("cifar", _write_cifar)

    def trained(self, recipe: str, method: str, steps: int | None = None) -> tuple[Training, Path]:
        """A finished run of a recipe; or one of so many steps, and the training that makes one more."""
        out, log = self.folder / f"{recipe} {steps}", self.folder / "log"
        training = self.trainings.recipe(recipe, method)
        work = training if steps is None else training.until(steps)
        training = training if steps is None else training.until(steps + 1)
        if not out.exists():
            with child(lambda: work.run(out), log) as process:
                if process.wait(300) != 0:
                    raise RuntimeError(log.read_text())
        return training, out

    def all(self) -> list[Reader]:
        return [*self.plain(), *self.runs(), *self.language(), *self.speech(), *self.images(), *self.preparations()]

    # ---- values ----------------------------------------------------------------------------------------------------

    def plain(self) -> Iterator[Reader]:
        from seqssgd.documents import parse_json, parse_yaml
        from seqssgd.training import parse_recipe

        for recipe in self.programs:
            program = load(f"recipes/{recipe}/train.py")
            arguments = self.trainings.recipe(recipe, "ssgd").arguments
            own = Path(arguments[arguments.index("--config") + 1])
            data = ["--data", arguments[arguments.index("--data") + 1], "--out", str(self.folder / "out")]

            def configuration(path: Path, program=program, data=data) -> object:
                return parse_recipe(program.Config, ["--config", str(path), *data])

            yield Reader(f"settings: {recipe}", own.read_bytes(), as_file(configuration), form="yaml")
        yield Reader("YAML", own.read_bytes(), lambda c, _: parse_yaml(c), (ValueError,), "yaml")
        yield Reader("JSON", b'{"a": [1, 2.5, {"b": null}], "c": "text"}', lambda c, _: parse_json(c), (ValueError,))

    def file(self, title: str, source: Path, name: str, main, *words: object) -> Reader:
        """A program over a copy of a folder, ``COPY`` among its words, in which one file is mutated."""

        def use(copy: Path) -> None:
            say(main, [copy if word == "COPY" else word for word in words], copy.parent)

        form = FORMS.get(Path(name).suffix, "bytes")
        return Reader(f"{title}: {name}", (source / name).read_bytes(), in_place_of(source, name, use), form=form)

    # ---- runs ------------------------------------------------------------------------------------------------------

    def runs(self) -> Iterator[Reader]:
        from seqssgd import cli

        for recipe, (training, run) in self.programs.items():
            for name in ("config.yaml", "metrics.jsonl", "result.json", "environment.json"):
                yield self.file(f"compare {recipe}", run, name, cli.main, "compare", "COPY")
            yield self.again(recipe, training, run, "result.json")
            for name in ("environment.json", "config.yaml", "checkpoints/best.pt"):
                yield self.file(f"evaluate {recipe}", run, name, cli.main, "evaluate", "--run", "COPY")
            yield self.file(f"describe {recipe}", run, "config.yaml", cli.main, "describe", "COPY")
        for recipe, (training, run) in self.begun.items():
            step = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
            for name in ("config.yaml", "metrics.jsonl", "environment.json", f"checkpoints/{step.name}"):
                yield self.again(recipe, training, run, name)

    def again(self, recipe: str, training: Training, run: Path, name: str) -> Reader:
        """The command of a training, given once more over a run of which one file is mutated."""
        words = ["COPY" if word == "OUT" else word for word in training.arguments]
        return self.file(f"go on {recipe}", run, name, load(training.program).main, *words)

    # ---- the three kinds of models ---------------------------------------------------------------------------------

    def language(self) -> Iterator[Reader]:
        from seqssgd import cli

        _, run = self.programs["ptb_lstm"]
        text = self.folder / "text.txt"
        text.write_text("ba ko tina\nru\n")
        for name in ("config.yaml", "tokenizer/vocabulary.txt", "tokenizer/tokenizer.json", "checkpoints/best.pt"):
            yield self.file("perplexity", run, name, cli.main, "perplexity", "--run", "COPY", text)
        yield self.file("generate", run, "checkpoints/best.pt", cli.main, "generate", "--run", "COPY", "--length", 9)
        scored = as_file(lambda path: say(cli.main, ["perplexity", "--run", run, path], path.parent))
        yield Reader("perplexity: a text", b"ba ko\ntina ru\n" * 9, scored)
        for name in ("dataset.json", "train.txt", "test.txt"):
            words = ["evaluate", "--run", run, "--data", "COPY"]
            yield self.file("evaluate ptb_lstm, data", self.trainings.text, name, cli.main, *words)

    def speech(self) -> Iterator[Reader]:
        import numpy as np
        import soundfile
        from sphere_files import speech_like, sphere

        from seqssgd import cli
        from seqssgd.data import audio
        from seqssgd.data.sphere import AudioError

        _, run = self.programs["wsj_sgcn"]
        recording = self.folder / "a.wav"
        samples = speech_like(6000, seed=1)[:, 0]
        soundfile.write(recording, samples, 16_000)
        names = [f"tokenizer/{path.name}" for path in sorted((run / "tokenizer").iterdir())]
        for name in (*names, "config.yaml", "checkpoints/best.pt"):
            yield self.file("transcribe", run, name, cli.main, "transcribe", "--run", "COPY", recording)

        def sound(kind: str, subtype: str | None) -> bytes:
            buffer, wave = io.BytesIO(), samples.astype(np.int16)
            wave = wave / 32_768 if subtype == "FLOAT" or kind == "MAT5" else wave
            soundfile.write(buffer, wave, 16_000, format=kind, subtype=subtype)
            return buffer.getvalue()

        kinds = [*(("WAV", subtype) for subtype in ("PCM_16", "FLOAT", "IMA_ADPCM", "ULAW")), ("RF64", None),
                 ("W64", None), ("AIFF", None), ("AU", None), ("CAF", None), ("CAF", "ALAC_16"), ("VOC", "PCM_16"),
                 ("SVX", "PCM_16"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("MAT5", None),
                 ("AVR", None), ("MPC2K", None), ("WVE", "ALAW"), ("PAF", None), ("SDS", None)]  # fmt: skip
        files = {f"{kind} {subtype or ''}".strip(): sound(kind, subtype) for kind, subtype in kinds}
        for coding in ("pcm", "pcm,embedded-shorten-v2.00"):
            files[f"SPHERE {coding}"] = sphere(samples[:, None], coding)
        for kind, content in files.items():
            yield Reader(f"recording: {kind}", content, lambda c, _: audio.decode(c), (AudioError,))
        heard = as_file(lambda path: say(cli.main, ["transcribe", "--mix", "--run", run, path], path.parent))
        for kind in ("WAV PCM_16", "FLAC", "OGG OPUS", "MP3", "SPHERE pcm,embedded-shorten-v2.00"):
            yield Reader(f"transcribe: {kind}", files[kind], heard)
        for name in ("dataset.json", "test.parquet"):
            words = ["evaluate", "--run", run, "--data", "COPY"]
            yield self.file("evaluate wsj_sgcn, data", self.trainings.speech, name, cli.main, *words)
        yield from self.beam(run, recording)

    def beam(self, run: Path, recording: Path) -> Iterator[Reader]:
        try:
            import flashlight.lib.text.decoder  # noqa: F401
            import kenlm  # noqa: F401
        except ImportError:
            return
        from seqssgd import cli
        from seqssgd.speech.ngram import estimate

        words = [["AB", "CAD", "A"], ["EBB", "A"]]
        estimate(words, 2).write_arpa(self.folder / "lm.arpa")
        lm = (self.folder / "lm.arpa").read_bytes()
        (self.folder / "words.txt").write_text("AB\nCAD\nA\nEBB\n")
        common = ["transcribe", "--run", run, "--beam", 5]

        def with_lm(path: Path) -> None:
            say(cli.main, [*common, "--lm", path, "--lexicon", self.folder / "words.txt", recording], path.parent)

        yield Reader("n-gram model", lm, as_file(with_lm, "lm.arpa"))
        lexicon = as_file(lambda path: say(cli.main, [*common, "--lexicon", path, recording], path.parent))
        yield Reader("lexicon", (self.folder / "words.txt").read_bytes(), lexicon)

    def images(self) -> Iterator[Reader]:
        import numpy as np
        from PIL import Image

        from seqssgd import cli
        from seqssgd.data import pictures

        shades = (np.arange(12 * 12 * 3) % 251).astype(np.uint8).reshape(12, 12, 3)
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "SGI", "PCX", "JPEG2000", "AVIF",
                     "DDS"):  # fmt: skip
            try:
                Image.fromarray(shades).save(buffer := io.BytesIO(), kind)
            except (KeyError, OSError):  # not in this build of Pillow
                continue
            yield Reader(f"image: {kind}", buffer.getvalue(), lambda c, _: pictures.decode(c), (pictures.ImageError,))
        _, run = self.programs["cifar_cnn"]
        for path in sorted(self.trainings.images.iterdir()):
            words = ["evaluate", "--run", run, "--data", "COPY"]
            yield self.file("evaluate cifar_cnn, data", self.trainings.images, path.name, cli.main, *words)

    # ---- corpora as their owners ship them -------------------------------------------------------------------------

    def preparations(self) -> Iterator[Reader]:
        import picture_folders
        import test_data_prep_an4 as an4
        import test_data_prep_cifar as cifar
        import test_data_prep_librispeech as librispeech
        import test_data_prep_wsj as wsj

        made = self.folder / "sources"
        made.mkdir(exist_ok=True)
        text = "\n".join(f"some words of a text number {number % 7}" for number in range(60)).encode()
        for level in ("word", "sentencepiece"):
            words = ["--level", level, *(["--vocab-size", 25] if level != "word" else [])]
            yield Reader(f"prepare a text, {level}", text, self.prepared("text", "--train", *words))
        small = cifar.CIFAR
        small.IMAGES = cifar.COUNTS
        small.FORMS = {name: dataclasses.replace(form, md5s=()) for name, form in small.FORMS.items()}
        folder = cifar.unpack(made / "cifar", cifar.members("cifar-10-python"))
        for name in ("data_batch_1", "batches.meta"):
            yield self.file("prepare cifar", folder, name, *self.from_folder("cifar", "--source"))
        name = "train-00000-of-00001.parquet"
        yield self.file("prepare cifar", self.cifar, name, *self.from_folder("cifar", "--source"))
        treebank, sets, words = load("data_prep/ptb.py"), ("train", "valid", "test"), text.split()
        treebank.TOKENS, treebank.WORDS = dict.fromkeys(sets, len(words) + 60), len({*words}) + 1
        tars = {"ptb": {f"a/ptb.{name}.txt": text for name in sets}, "an4": an4.corpus()}
        for name, members in tars.items():
            options = ["--partial", "--valid-speakers", 2, "--most-rejected", 1] if name == "an4" else []
            for form in ("", "gz"):
                read = self.prepared(name, "--source", *options)
                yield Reader(f"prepare an archive, {name} {form}", _tar(members, form), read)
        folder = an4.unpack(made / "an4", an4.corpus("sph"))
        options = ["--partial", "--valid-speakers", 2, "--most-rejected", 1]
        for name in ("an4/etc/an4_train.transcription", f"an4/wav/an4_clstk/fabc/{an4.TRAIN[0]}.sph"):
            yield self.file("prepare an4", folder, name, *self.from_folder("an4", "--source", *options))
        options = ["--partial", "--most-rejected", 1]
        wsj.WSJ.SETS = {name: (wsj.SIZES[name], indices) for name, (_, indices) in wsj.WSJ.SETS.items()}
        wsj.write(made / "wsj", wsj.tree())
        files = sorted(path.relative_to(made / "wsj") for path in (made / "wsj").rglob("*") if path.is_file())
        for ending in (".ndx", ".dot", ".wv1"):
            name = str(next(path for path in files if path.suffix == ending))
            yield self.file("prepare wsj", made / "wsj", name, *self.from_folder("wsj", "--source", *options))
        librispeech.write_set(made / "libri/LibriSpeech/train-clean-100")
        for name in ("19/198/19-198.trans.txt", "19/198/19-198-0000.flac"):
            name = f"LibriSpeech/train-clean-100/{name}"
            reads = self.from_folder("librispeech", "--source", *options)
            yield self.file("prepare librispeech", made / "libri", name, *reads)
        picture_folders.write_tree(made / "photos", train=2, valid=1)
        reads = self.from_folder("imagenet", "--source", "--most-rejected", 1, "--partial")
        yield self.file("prepare images", made / "photos", "train/n00/0.JPEG", *reads)
        name = "train-00000-of-00001.parquet"
        yield self.file("prepare hub", self.hub, name, *self.from_folder("hub_asr", "--hub", "--most-rejected", 1))

    def prepared(self, program: str, option: str, *more: object) -> Read:
        """``data_prep/PROGRAM.py`` over a file."""
        main = load(f"data_prep/{program}.py").main

        def prepare(path: Path) -> None:
            shutil.rmtree(path.parent / "out", ignore_errors=True)
            say(main, [option, path, "--out", path.parent / "out", *more], path.parent)

        return as_file(prepare)

    def from_folder(self, program: str, option: str, *more: object) -> tuple:
        """What :meth:`file` takes to run ``data_prep/PROGRAM.py``."""
        main = load(f"data_prep/{program}.py").main

        def prepare(words: list[str]) -> int | None:
            out = Path(words[words.index(option) + 1]).parent / "out"
            for folder in (out, out.with_name(".out.partial")):
                shutil.rmtree(folder, ignore_errors=True)
            return main([*words, "--out", str(out)])

        return (prepare, option, "COPY", *more)


def _write_hub(folder: Path) -> None:
    import test_data_prep_hub_asr as hub

    hub.write_parquet(folder, {"train": hub.table(id=["x", "y", "z"], speaker=["u", None, "v"])})


def _write_cifar(folder: Path) -> None:
    import test_data_prep_cifar as cifar

    cifar.parquet(folder)


def _tar(members: dict[str, bytes], compression: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
