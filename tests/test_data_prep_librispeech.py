"""data_prep/librispeech.py on small folders in the form of LibriSpeech."""

import io
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
from programs import load, refused
from sphere_files import speech_like

from seqssgd import locks
from seqssgd.data import preparing, shards
from seqssgd.errors import UserError

LIBRI = load("data_prep/librispeech.py")
IDS = ["19-198-0000", "19-198-0001", "26-495-0000", "103-1240-0000"]


def flac(name: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, speech_like(800, seed=sum(map(ord, name))), 16_000, format="FLAC")
    return buffer.getvalue()


def write_set(folder: Path, ids: list[str] = IDS) -> Path:
    for name in ids:
        speaker, chapter, _ = name.split("-")
        chapter_folder = folder / speaker / chapter
        chapter_folder.mkdir(parents=True, exist_ok=True)
        (chapter_folder / f"{name}.flac").write_bytes(flac(name))
        with open(chapter_folder / f"{speaker}-{chapter}.trans.txt", "a") as file:
            file.write(f"{name} CHAPTER {'ONE' if name.endswith('0') else 'TWO'} IT'S\n")
    return folder


def rows_of(path: Path) -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(path).to_pylist()}


def rejections(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return {row["id"]: row["reason"] for row in rows}


def run(*arguments: object) -> None:
    LIBRI.main([str(argument) for argument in arguments])


@pytest.fixture
def small(monkeypatch):
    """Lets small folders pass for LibriSpeech."""
    monkeypatch.setattr(LIBRI, "SIZES", {"train-clean-100": 4, "dev-other": 2})


def test_a_recording_that_was_exchanged_for_one_of_its_size_is_noted(small, tmp_path, capsys):
    folder = write_set(tmp_path / "source/train-clean-100")
    command = ("--source", tmp_path / "source", "--out", tmp_path / "out")
    run(*command)
    run(*command)
    said = capsys.readouterr()
    assert "nothing to do" in said.out and said.err == ""
    file = folder / "19/198/19-198-0000.flac"
    file.write_bytes(file.read_bytes())
    run(*command)
    said = capsys.readouterr()
    assert "nothing to do" in said.out
    assert said.err.startswith(f"note: {file} was written after {tmp_path / 'out'} was prepared")


def test_what_an_interrupted_call_made_of_recordings_that_were_exchanged_since_is_made_again(
    small, tmp_path, capsys, monkeypatch
):
    folder = write_set(tmp_path / "source/train-clean-100")
    (tmp_path / "source/prepared").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "source/prepared")
    command = ("--source", tmp_path / "source", "--out", tmp_path / "out")
    made, file = [], folder / "19/198/19-198-0000.flac"
    os.utime(file, (2**32, 2**32))  # in 2106, for which nothing waits

    def interrupted():
        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(preparing, "_finish", interrupt)
            run(*command)

    monkeypatch.setattr(shards, "_write_shard", lambda *a, write=shards._write_shard: made.append(a) or write(*a))
    interrupted()
    shard = tmp_path / "source/.prepared.partial/train-clean-100/00000.parquet"
    shard.write_bytes(shard.read_bytes())  # is written last, and no file of the source
    interrupted()  # goes on
    assert len(made) == 1 and capsys.readouterr().err == ""
    file.write_bytes(file.read_bytes())
    with monkeypatch.context() as patch, pytest.raises(UserError, match="another process is writing"):
        patch.setattr(locks, "try_lock", lambda _: "held")
        run(*command)
    assert len(made) == 1 and capsys.readouterr().err == ""  # what the other one has done is left to it
    run(*command)
    assert len(made) == 2 and (tmp_path / "out/dataset.json").is_file()
    assert capsys.readouterr().err == (
        f"warning: {file} was written after an interrupted call had begun {tmp_path / 'source/prepared'}: 1 of the 1 "
        "files that it had finished are made again\n"
    )
    run(*command)
    assert capsys.readouterr().err == ""  # what was written is none of the source either


@pytest.mark.parametrize("given", [".", "LibriSpeech", "LibriSpeech/train-clean-100"])
def test_files_are_kept_as_they_are_from_wherever_the_set_is_found(small, given, tmp_path, capsys):
    source = tmp_path / "source"
    write_set(source / "LibriSpeech" / "train-clean-100")
    run("--source", source / given, "--out", tmp_path / "out", "--sets", "train-clean-100")
    rows = rows_of(tmp_path / "out" / "train-clean-100.parquet")
    assert set(rows) == set(IDS)
    for name, row in rows.items():
        speaker, chapter, _ = name.split("-")
        assert row["audio"] == {"bytes": flac(name), "path": f"train-clean-100/{speaker}/{chapter}/{name}.flac"}
        assert row["text"] == f"CHAPTER {'ONE' if name.endswith('0') else 'TWO'} IT'S" and row["speaker"] == speaker
        assert row["duration"] == 0.05
    capsys.readouterr()
    run("--source", source / given, "--out", tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out


def test_all_sets_that_are_there_are_prepared_also_those_of_other_corpora(small, tmp_path):
    write_set(tmp_path / "a" / "LibriSpeech" / "dev-other", IDS[:2])
    write_set(tmp_path / "b" / "train-clean-5", IDS[2:])
    run("--source", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").glob("*.parquet")} == {"dev-other.parquet", "train-clean-5.parquet"}


def test_what_is_wrong_in_a_set_is_reported_and_only_partial_goes_on(small, tmp_path, capsys):
    folder = write_set(tmp_path / "train-clean-100", [*IDS, "26-495-0001", "26-495-0002"])
    (folder / "19/198/19-198-0000.flac").unlink()
    (folder / "26/495/26-495-0000.flac").write_bytes(flac("x")[:300])
    (folder / "26/495/stray.flac").write_bytes(flac("x"))
    listing = folder / "26/495/26-495.trans.txt"
    text = listing.read_text().replace("26-495-0001 CHAPTER TWO IT'S", "26-495-0001")
    listing.write_text(text.replace("26-495-0002 CHAPTER", "26-495-0002 Chapter") + "\n")
    arguments = ("--source", tmp_path, "--out", tmp_path / "out")
    said = refused(capsys, LIBRI.main, *arguments)
    assert "train-clean-100 has 2 utterances, expected 4; 5 rejected" in said and "19-198-0000" in said
    run(*arguments, "--partial")
    assert set(rows_of(tmp_path / "out/train-clean-100.parquet")) == {"19-198-0001", "103-1240-0000"}
    reasons = rejections(tmp_path / "out")
    assert set(reasons) == {"19-198-0000", "26-495-0000", "26-495-0001", "26-495-0002", "stray"}
    assert "no audio" in reasons["19-198-0000"] and "decoded" in reasons["26-495-0000"]
    assert "empty transcript" in reasons["26-495-0001"] and "'h', 'p'" in reasons["26-495-0002"]
    assert "no transcript" in reasons["stray"]


def test_sources_without_sets_or_with_a_set_twice_are_refused(tmp_path, capsys):
    def said(*sources: Path, sets: tuple[str, ...] = ()) -> str:
        options = ["--sets", *sets] if sets else []
        return refused(capsys, LIBRI.main, "--source", *sources, "--out", tmp_path / "out", *options)

    (tmp_path / "empty").mkdir()
    assert "named like train-clean-100" in said(tmp_path / "empty")
    assert "not a folder" in said(tmp_path / "train-clean-100.tar.gz")
    a, b = write_set(tmp_path / "a" / "dev-clean"), write_set(tmp_path / "b" / "dev-clean")
    assert "dev-clean is there twice" in said(a, b)
    assert "no folder test-clean" in said(a, sets=("dev-clean", "test-clean"))
