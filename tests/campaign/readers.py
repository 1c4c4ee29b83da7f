"""All that reads what may come from elsewhere: the commands, over runs, data and sources that are made for them."""

import io
from collections.abc import Iterator
from pathlib import Path

from programs import load

from .corpora import Corpora
from .processes import child
from .reader import Reader, as_file, file, say
from .trainings import Training, Trainings

BEGUN = {"ptb_lstm": 40, "cifar_cnn": 4}  # steps of runs that are gone on with


class Sources:
    """Runs and sources, made once, and the readers over them."""

    def __init__(self, folder: Path, trainings: Trainings) -> None:
        self.folder, self.trainings = folder, trainings
        self.programs = {name: self.trained(name, "ssgd") for name in ("ptb_lstm", "wsj_sgcn", "cifar_cnn")}
        self.begun = {name: self.trained(name, "ssgd", steps) for name, steps in BEGUN.items()}
        for _, run in self.programs.values():
            self.once("evaluate", "--run", run, "--save", made=run / "evaluation.json")
        self.exported = folder / "exported"
        self.once("export", self.programs["ptb_lstm"][1], "--out", self.exported, made=self.exported)
        self.corpora = Corpora(folder, trainings)

    def once(self, *words: object, made: Path) -> None:
        """A command, in another process, unless what it makes is there."""
        from seqssgd import cli

        log = self.folder / "log"
        if not made.exists():
            with child(lambda: cli.main([str(word) for word in words]), log) as process:
                if process.wait(300) != 0:
                    raise RuntimeError(log.read_text())

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
        return [*self.plain(), *self.runs(), *self.language(), *self.speech(), *self.images(), *self.corpora.all()]

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

    # ---- runs ------------------------------------------------------------------------------------------------------

    def runs(self) -> Iterator[Reader]:
        from seqssgd import cli

        for recipe, (training, run) in self.programs.items():
            for name in ("config.yaml", "metrics.jsonl", "result.json", "environment.json", "evaluation.json"):
                yield file(f"compare {recipe}", run, name, cli.main, "compare", "COPY")
                yield file(f"list {recipe}", run, name, cli.main, "runs", "list", "COPY")
                yield file(f"tell apart {recipe}", run, name, _told_apart, "runs", "diff", "COPY", run)
                yield file(f"export {recipe}", run, name, cli.main, "export", "COPY", "--out", "OUT")
            yield self.again(recipe, training, run, "result.json")
            for name in ("environment.json", "config.yaml", "checkpoints/best.pt"):
                yield file(f"evaluate {recipe}", run, name, cli.main, "evaluate", "--run", "COPY")
            yield file(f"describe {recipe}", run, "config.yaml", cli.main, "describe", "COPY")
        _, run = self.programs["ptb_lstm"]
        for name in ("metrics.jsonl", "result.json", "evaluation.json"):
            yield file("report", run, name, cli.main, "compare", "COPY", "--out", "OUT")
        for recipe, (training, run) in self.begun.items():
            step = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
            for name in ("config.yaml", "metrics.jsonl", "environment.json", f"checkpoints/{step.name}"):
                yield self.again(recipe, training, run, name)

    def again(self, recipe: str, training: Training, run: Path, name: str) -> Reader:
        """The command of a training, given once more over a run of which one file is mutated."""
        words = ["COPY" if word == "OUT" else word for word in training.arguments]
        return file(f"go on {recipe}", run, name, load(training.program).main, *words)

    # ---- the three kinds of models ---------------------------------------------------------------------------------

    def language(self) -> Iterator[Reader]:
        from seqssgd import cli

        _, run = self.programs["ptb_lstm"]
        text = self.folder / "text.txt"
        text.write_text("ba ko tina\nru\n")
        for name in ("config.yaml", "tokenizer/vocabulary.txt", "tokenizer/tokenizer.json", "checkpoints/best.pt"):
            yield file("perplexity", run, name, cli.main, "perplexity", "--run", "COPY", text)
        yield file("perplexity", self.exported, "model.safetensors", cli.main, "perplexity", "--run", "COPY", text)
        yield file("generate", run, "checkpoints/best.pt", cli.main, "generate", "--run", "COPY", "--length", 9)
        scored = as_file(lambda path: say(cli.main, ["perplexity", "--run", run, path], path.parent))
        yield Reader("perplexity: a text", b"ba ko\ntina ru\n" * 9, scored)
        for name in ("dataset.json", "train.txt", "test.txt"):
            words = ["evaluate", "--run", run, "--data", "COPY"]
            yield file("evaluate ptb_lstm, data", self.trainings.text, name, cli.main, *words)

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
            yield file("transcribe", run, name, cli.main, "transcribe", "--run", "COPY", recording)

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
            yield file("evaluate wsj_sgcn, data", self.trainings.speech, name, cli.main, *words)
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
            yield file("evaluate cifar_cnn, data", self.trainings.images, path.name, cli.main, *words)


def _told_apart(words: list[str]) -> int:
    """``seqssgd runs diff``, for which a difference is no failure."""
    from seqssgd import cli

    status = cli.main(words)
    return 0 if status == 1 else status
