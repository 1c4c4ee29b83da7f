"""data_prep/ptb.py and data_prep/text.py: what they accept, what they refuse, and that a rerun does nothing."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from programs import generated_lines, load, refused

from seqssgd.data.text import load_text
from seqssgd.errors import run_cli

PTB, TEXT = load("data_prep/ptb.py"), load("data_prep/text.py")
SPLITS = {"train": generated_lines(60), "valid": generated_lines(9, seed=1), "test": generated_lines(8, seed=2)}
BYTES = {f"ptb.{split}.txt": "".join(f" {line} \n" for line in lines).encode() for split, lines in SPLITS.items()}


@pytest.fixture
def small_ptb(monkeypatch):
    """Lets the generated text pass for the Penn Treebank."""
    tokens = {split: sum(len(line.split()) + 1 for line in lines) for split, lines in SPLITS.items()}
    monkeypatch.setattr(PTB, "TOKENS", tokens)
    monkeypatch.setattr(PTB, "WORDS", len({word for line in SPLITS["train"] for word in line.split()}) + 1)


def prepare(program, *arguments) -> None:
    program.main([str(argument) for argument in arguments])


def write_files(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in BYTES.items():
        (folder / name).write_bytes(content)
    return folder


def archive(members: list[tuple[str, bytes | None, dict]], compress=gzip.compress) -> bytes:
    """A tar archive; members have a name, a content, and other fields of their header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content or b""))
    return compress(buffer.getvalue())


MEMBERS = [("./simple-examples/README", b"Mikolov's", {})] + [
    (f"./simple-examples/data/{name}", content, {}) for name, content in BYTES.items()
]


def assert_prepared(out: Path) -> None:
    dataset = load_text(out)
    for split, lines in SPLITS.items():
        assert (out / f"{split}.txt").read_text().splitlines() == lines
        assert torch.equal(dataset.split(split), dataset.tokenizer.encode(lines))


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# ---- the Penn Treebank -----------------------------------------------------------------------------------------------


def test_the_true_files_give_the_published_counts(real_data, tmp_path, capsys):
    prepare(PTB, "--source", real_data / "ptb", "--out", tmp_path / "ptb")
    dataset = load_text(tmp_path / "ptb")
    for split, count in {"train": 929_589, "valid": 73_760, "test": 82_430}.items():
        stream = dataset.split(split)
        assert len(stream) == dataset.info["splits"][split]["tokens"] == count
        assert stream.unique().numel() <= dataset.tokenizer.vocab_size == 10_000
        source = (real_data / f"ptb/ptb.{split}.txt").read_text().split("\n")
        assert dataset.tokenizer.decode(stream.tolist()).split("\n") == [" ".join(line.split()) for line in source]
    assert "vocabulary 10,000" in (said := capsys.readouterr().out) and "929,589 tokens" in said


def test_a_folder_with_the_files_somewhere_within_is_enough_and_a_rerun_does_nothing(tmp_path, capsys, small_ptb):
    write_files(tmp_path / "source/simple-examples/data")
    command = ["--source", tmp_path / "source", "--out", tmp_path / "new/out"]
    prepare(PTB, *command)
    assert_prepared(tmp_path / "new/out")
    before = {path: path.stat().st_mtime_ns for path in everything(tmp_path / "new")}
    assert "nothing to do" not in capsys.readouterr().out
    prepare(PTB, *command)
    assert "already prepared from this text; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in everything(tmp_path / "new")} == before


def test_altered_files_are_refused_with_all_that_differs(tmp_path, capsys, small_ptb):
    source = write_files(tmp_path / "source")
    (source / "ptb.train.txt").write_bytes(BYTES["ptb.train.txt"] + b"extra\n")
    (source / "ptb.valid.txt").write_bytes(BYTES["ptb.valid.txt"].replace(b" ba ", b" bah ", 1))
    message = refused(capsys, PTB.main, "--source", source, "--out", tmp_path / "out")
    count = PTB.TOKENS["train"]
    assert f"ptb.train.txt has {count + 2} tokens with <eos>, expected {count}" in message
    assert f"ptb.train.txt has {PTB.WORDS + 1} different words with <eos>, expected {PTB.WORDS}" in message
    assert "ptb.valid.txt has 1 words that training lacks, such as 'bah', expected 0" in message
    assert "ptb.test.txt" not in message and not (tmp_path / "out").exists()


def test_missing_and_unreadable_files_are_named(tmp_path, capsys, small_ptb):
    command = ["--source", tmp_path / "source", "--out", tmp_path / "out"]
    assert "source does not exist; give a folder" in refused(capsys, PTB.main, *command)
    source = write_files(tmp_path / "source")
    for content, reason in (
        (b"", "ptb.test.txt is empty"),
        (b"caf\xe9", "not UTF-8 text: wrong byte 0xe9 at offset 3"),
    ):
        (source / "ptb.test.txt").write_bytes(content)
        assert reason in refused(capsys, PTB.main, *command)
    (source / "ptb.test.txt").unlink()
    assert "source: ptb.test.txt not found" in refused(capsys, PTB.main, *command)
    (source / "other").mkdir()
    (source / "other/ptb.test.txt").write_bytes(BYTES["ptb.test.txt"])
    assert "all three files in one folder not found" in refused(capsys, PTB.main, *command)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_an_archive_is_read_without_being_unpacked(tmp_path, compress, small_ptb):
    (tmp_path / "simple-examples.tgz").write_bytes(archive(MEMBERS, compress))
    prepare(PTB, "--source", tmp_path / "simple-examples.tgz", "--out", tmp_path / "out")
    assert_prepared(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"simple-examples.tgz", "out"}


def test_an_archive_that_points_elsewhere_writes_and_reads_nothing_there(tmp_path, capsys, small_ptb):
    folder = tmp_path / "deep/er"
    folder.mkdir(parents=True)
    secret = tmp_path / "secret.txt"
    secret.write_bytes(BYTES["ptb.train.txt"])
    kinds = [("symbolic", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)]
    for name, kind in kinds:
        link = ("data/ptb.train.txt", None, {"type": kind, "linkname": str(secret)})
        (folder / f"{name}.tgz").write_bytes(archive([link, *MEMBERS[2:]]))
        command = ["--source", folder / f"{name}.tgz", "--out", folder / "out"]
        assert "ptb.train.txt not found" in refused(capsys, PTB.main, *command)
    outside = [(f"../../{name}", b"another text\n", {}) for name in ("evil.txt", "out")]
    outside += [(f"../../ptb/../{name}", content, {}) for name, content in BYTES.items()]
    (folder / "outside.tgz").write_bytes(archive([("/etc/seqssgd-evil", b"x", {}), *outside]))
    before = everything(tmp_path)
    prepare(PTB, "--source", folder / "outside.tgz", "--out", folder / "out")
    assert_prepared(folder / "out")
    assert {path.parent for path in everything(tmp_path) - before} == {folder, folder / "out"}
    assert not Path("/etc/seqssgd-evil").exists()


def test_a_member_far_too_large_for_the_corpus_is_not_read(tmp_path, capsys, monkeypatch, small_ptb):
    monkeypatch.setattr(PTB, "LARGEST", len(BYTES["ptb.train.txt"]) - 1)
    (tmp_path / "bomb.tgz").write_bytes(archive(MEMBERS))
    message = refused(capsys, PTB.main, "--source", tmp_path / "bomb.tgz", "--out", tmp_path / "out")
    assert "ptb.train.txt not found" in message


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_a_truncated_archive_is_refused(tmp_path, capsys, compress, small_ptb):
    source, whole = tmp_path / "simple-examples.tgz", archive(MEMBERS, compress)
    end = whole.index(b"ptb.test.txt") + 512 if compress is bytes else len(whole)  # a plain tar ends in many zeros
    for content in [whole[: end * part // 8] for part in range(8)] + [b"<html>not found</html>"]:
        source.write_bytes(content)
        message = refused(capsys, PTB.main, "--source", source, "--out", tmp_path / "out")
        assert "download it again" in message or "not found" in message, message
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_one_wrong_byte_in_an_archive_never_gives_another_text(tmp_path, capsys, compress, small_ptb):
    source, out, refusals = tmp_path / "simple-examples.tgz", tmp_path / "out", 0
    whole = archive(MEMBERS, compress)
    places = range(0, len(whole), len(whole) // 30)
    for at in places:
        source.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        if run_cli(lambda: prepare(PTB, "--source", source, "--out", out)) == 0:  # in a header's date, say
            assert_prepared(out)
            shutil.rmtree(out)
        else:
            assert len(capsys.readouterr().err.splitlines()) == 1
            refusals += 1
    assert refusals > len(places) / 2


# ---- any text --------------------------------------------------------------------------------------------------------


def write_texts(folder: Path) -> list:
    options = []
    for split, lines in SPLITS.items():
        (folder / f"{split}.txt").write_text("\n".join(lines))
        options += [f"--{split}", folder / f"{split}.txt"]
    return options


def test_three_files_become_three_splits(tmp_path, capsys):
    command = [*write_texts(tmp_path), "--out", tmp_path / "out"]
    prepare(TEXT, *command)
    assert_prepared(tmp_path / "out")
    capsys.readouterr()
    prepare(TEXT, *command)
    assert "nothing to do" in capsys.readouterr().out
    assert "with other settings" in refused(capsys, TEXT.main, *command, "--lowercase")


def test_settings_reach_the_tokenizer(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{line} Äh\n" for line in generated_lines(80)))
    prepare(TEXT, "--train", tmp_path / "text.txt", "--out", tmp_path / "a", "--vocab-size", 9, "--lowercase")
    dataset = load_text(tmp_path / "a")
    assert dataset.tokenizer.vocab_size == 9 and "äh" in dataset.tokenizer.words
    pieces = ["--level", "sentencepiece", "--vocab-size", 24, "--name", "mine"]
    prepare(TEXT, "--train", tmp_path / "text.txt", "--out", tmp_path / "b", *pieces)
    dataset = load_text(tmp_path / "b")
    assert (dataset.info["level"], dataset.info["name"], dataset.tokenizer.vocab_size) == ("sentencepiece", "mine", 24)


def test_missing_splits_are_cut_from_the_end_in_order(tmp_path):
    lines = [f"line {i}" for i in range(50)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))  # blank lines count for nothing
    fractions = ["--valid-fraction", 0.2, "--test-fraction", 0.1]
    prepare(TEXT, "--train", tmp_path / "text.txt", "--out", tmp_path / "out", *fractions)
    parts = [(tmp_path / f"out/{split}.txt").read_text().splitlines() for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [35, 10, 5] and sum(parts, []) == lines
    (tmp_path / "valid.txt").write_text("line 1")
    own = ["--valid", tmp_path / "valid.txt"]
    prepare(TEXT, "--train", tmp_path / "text.txt", *own, "--out", tmp_path / "own", "--test-fraction", 0.001)
    parts = [(tmp_path / f"own/{split}.txt").read_text().splitlines() for split in ("train", "valid", "test")]
    assert parts == [lines[:49], ["line 1"], lines[49:]]  # a part is one line at least


def test_texts_that_cannot_be_prepared_are_refused(tmp_path, capsys):
    def refuse(content: bytes, *options) -> str:
        (tmp_path / "text.txt").write_bytes(content)
        return refused(capsys, TEXT.main, "--train", tmp_path / "text.txt", "--out", tmp_path / "out", *options)

    assert "text.txt is empty" in refuse(b"\n")
    assert "text.txt is not UTF-8 text" in refuse(b"a\xff")
    assert "has too few lines (2) to cut valid and test from" in refuse(b"a\nb\n")
    for fraction in ("0", "1", "nan", "-1"):
        assert f"--test-fraction {float(fraction)}: it must lie" in refuse(b"a\nb\nc\n", f"--test-fraction={fraction}")
    both = ["--valid-fraction", 0.6, "--test-fraction", 0.6]
    assert "--valid-fraction and --test-fraction are 1.2 together" in refuse(b"a\nb\nc\n", *both)
    assert "--hub-config c: it is of data sets of the hub" in refuse(b"a\nb\n", "--hub-config", "c")
    assert "--vocab-size 2: a word vocabulary needs" in refuse(b"a\na\na\n", "--vocab-size", 2)
    assert "add --vocab-size" in refuse(b"a\na\na\n", "--level", "sentencepiece")
    assert "line 2: <eos> stands for the end of a line" in refuse(b"a\na <eos>\na\na\n")
    assert "valid.txt cannot be read (No such file" in refuse(b"a\n", "--valid", tmp_path / "valid.txt")
    (tmp_path / "out").write_text("in the way")
    assert "out exists and is not a prepared text" in refuse(b"a\na\na\n")
    assert (tmp_path / "out").read_text() == "in the way"


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, with its cache in a folder of the test."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return datasets


def test_a_data_set_on_disk_is_read_split_by_split(tmp_path, datasets):
    tables = {"train": {"sentence": [*SPLITS["train"][:-2], "\n".join(SPLITS["train"][-2:]), None, ""]}}
    tables |= {"validation": {"sentence": SPLITS["valid"]}, "test": {"sentence": SPLITS["test"]}}
    saved = datasets.DatasetDict({split: datasets.Dataset.from_dict(table) for split, table in tables.items()})
    saved.save_to_disk(tmp_path / "saved")
    prepare(TEXT, "--hub", tmp_path / "saved", "--text-column", "sentence", "--out", tmp_path / "out")
    assert_prepared(tmp_path / "out")


def test_a_test_that_is_the_training_text_is_said(tmp_path, caplog):
    (tmp_path / "text.txt").write_text("a b\n" * 30)
    prepare(TEXT, "--train", tmp_path / "text.txt", "--test", tmp_path / "text.txt", "--out", tmp_path / "out")
    assert "text.txt is the training text, whose figures say nothing of another" in caplog.text


def test_a_folder_of_json_lines_is_read_as_a_data_set(tmp_path, datasets):
    (tmp_path / "files").mkdir()
    for split, lines in SPLITS.items():
        rows = "".join(json.dumps({"text": line}) + "\n" for line in lines)
        (tmp_path / f"files/{split.replace('valid', 'validation')}.jsonl").write_text(rows)
    prepare(TEXT, "--hub", tmp_path / "files", "--out", tmp_path / "out")
    assert_prepared(tmp_path / "out")


def test_data_sets_that_do_not_fit_are_refused(tmp_path, capsys, datasets):
    def refuse(name: str, tables: dict | None = None) -> str:
        if tables:
            splits = {split: datasets.Dataset.from_dict(table) for split, table in tables.items()}
            datasets.DatasetDict(splits).save_to_disk(tmp_path / name)
        return refused(capsys, TEXT.main, "--hub", tmp_path / name, "--out", tmp_path / "out")

    message = refuse("columns", {"train": {"line": ["a"], "label": [1]}})
    assert "columns has no column 'text'; --text-column can be label, line" in message
    message = refuse("splits", {"test": {"text": ["a"]}, "dev": {"text": ["a"]}})
    assert "splits has no training split; it has dev, test" in message
    assert "absent could not be loaded: " in refuse("absent")
