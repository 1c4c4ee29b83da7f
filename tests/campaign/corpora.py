"""Corpora as their owners ship them, in small, and the programs that prepare them."""

import dataclasses
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from programs import load

from .reader import Read, Reader, as_file, file, say
from .trainings import Trainings


class Corpora:
    """The sources, made once, and the readers over them."""

    def __init__(self, folder: Path, trainings: Trainings) -> None:
        self.folder = folder
        self.hub, self.cifar = trainings.made("hub", _write_hub), trainings.made("cifar", _write_cifar)
        self.prepared_hub = trainings.made("prepared hub", self._prepare_hub)

    def _prepare_hub(self, out: Path) -> None:
        words = ["--hub", self.hub, "--most-rejected", 1, "--out", out]
        load("data_prep/hub_asr.py").main([str(word) for word in words])

    def all(self) -> Iterator[Reader]:
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
            yield file("prepare cifar", folder, name, *self.from_folder("cifar", "--source"))
        name = "train-00000-of-00001.parquet"
        yield file("prepare cifar", self.cifar, name, *self.from_folder("cifar", "--source"))
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
            yield file("prepare an4", folder, name, *self.from_folder("an4", "--source", *options))
        options = ["--partial", "--most-rejected", 1]
        wsj.WSJ.SETS = {name: (wsj.SIZES[name], indices) for name, (_, indices) in wsj.WSJ.SETS.items()}
        wsj.write(made / "wsj", wsj.tree())
        files = sorted(path.relative_to(made / "wsj") for path in (made / "wsj").rglob("*") if path.is_file())
        for ending in (".ndx", ".dot", ".wv1"):
            name = str(next(path for path in files if path.suffix == ending))
            yield file("prepare wsj", made / "wsj", name, *self.from_folder("wsj", "--source", *options))
        librispeech.write_set(made / "libri/LibriSpeech/train-clean-100")
        for name in ("19/198/19-198.trans.txt", "19/198/19-198-0000.flac"):
            name = f"LibriSpeech/train-clean-100/{name}"
            reads = self.from_folder("librispeech", "--source", *options)
            yield file("prepare librispeech", made / "libri", name, *reads)
        picture_folders.write_tree(made / "photos", train=2, valid=1)
        reads = self.from_folder("imagenet", "--source", "--most-rejected", 1, "--partial")
        yield file("prepare images", made / "photos", "train/n00/0.JPEG", *reads)
        name = "train-00000-of-00001.parquet"
        yield file("prepare hub", self.hub, name, *self.from_folder("hub_asr", "--hub", "--most-rejected", 1))
        words = ["--hub", self.hub, "--most-rejected", 1]
        for name in ("dataset.json", "rejected.jsonl"):
            yield file(
                "prepare again", self.prepared_hub, name, load("data_prep/hub_asr.py").main, *words, "--out", "COPY"
            )

    def prepared(self, program: str, option: str, *more: object) -> Read:
        """``data_prep/PROGRAM.py`` over a file."""
        main = load(f"data_prep/{program}.py").main

        def prepare(path: Path) -> None:
            shutil.rmtree(path.parent / "out", ignore_errors=True)
            say(main, [option, path, "--out", path.parent / "out", *more], path.parent)

        return as_file(prepare)

    def from_folder(self, program: str, option: str, *more: object) -> tuple:
        """What :func:`file` takes to run ``data_prep/PROGRAM.py``."""
        return (load(f"data_prep/{program}.py").main, option, "COPY", *more, "--out", "OUT")


def _write_hub(folder: Path) -> None:
    import test_data_prep_hub_asr as hub

    columns = {"id": ["x", "y", "z"], "speaker": ["u", None, "v"], "text": ["a b", "", "c"]}
    hub.write_parquet(folder, {"train": hub.table(**columns)})


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
