"""data_prep/hub_asr.py on small local data sets in every form that Hugging Face datasets have."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from programs import load, refused
from sphere_files import speech_like

from seqssgd.data.recording import AudioError, Recording, resample, take_channel

HUB = load("data_prep/hub_asr.py")
NAMES = ["a", "b", "c"]


def encoded(name: str, kind: str = "WAV", rate: int = 16_000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, speech_like(800, seed=ord(name[0]), channels=channels), rate, format=kind)
    return buffer.getvalue()


def table(**columns: list) -> dict[str, list]:
    audio = [{"bytes": encoded(name), "path": f"{name}.wav"} for name in NAMES]
    return {"audio": audio, "text": [f"text {name}" for name in NAMES]} | columns


def write_parquet(folder: Path, splits: dict[str, dict[str, list]]) -> Path:
    folder.mkdir(parents=True)
    for split, columns in splits.items():
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


def prepare(source: Path, out: Path, *options: object) -> dict[str, list[dict]]:
    HUB.main([str(option) for option in ("--hub", source, "--out", out, *options)])
    return {path.stem: pq.read_table(path).to_pylist() for path in out.glob("*.parquet")}


def samples_of(row: dict) -> np.ndarray:
    return soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")[0]


def rejections(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return {row["id"]: row["reason"] for row in rows}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_a_folder_of_parquet_files_with_the_usual_names(tmp_path, capsys):
    extra = {"id": ["x", "y", "z"], "speaker_id": [7, 7, 8]}
    source = write_parquet(tmp_path / "set", {"train": table(**extra), "validation": table(), "test": table()})
    (source / "metadata.csv").write_text("file_name,text\na.wav,of other sounds\n")  # is not what they are read by
    sets = prepare(source, tmp_path / "out")
    assert set(sets) == {"train", "valid", "test"}
    assert [row["id"] for row in sets["train"]] == ["x", "y", "z"]
    assert [row["speaker"] for row in sets["train"]] == ["7", "7", "8"]
    assert [row["id"] for row in sets["valid"]] == ["valid-0000000", "valid-0000001", "valid-0000002"]
    for rows in sets.values():
        for name, row in zip(NAMES, rows, strict=True):
            assert np.array_equal(samples_of(row), speech_like(800, seed=ord(name))[:, 0])
            assert row["text"] == f"text {name}" and row["audio"]["path"] == f"{name}.wav"
            assert row["duration"] == 0.05
    capsys.readouterr()
    prepare(source, tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out


def test_columns_splits_and_case_can_be_chosen(tmp_path):
    columns = table(sentence=["Grüße", "b", "c"], who=["u", "v", "w"], key=[3, 2, 1])
    columns["clip"] = columns.pop("audio")
    source = tmp_path / "set"
    datasets.DatasetDict({name: datasets.Dataset.from_dict(columns) for name in ("other", "train")}).save_to_disk(
        source
    )
    options = ["--splits", "train=other", "--audio-column", "clip", "--text-column", "sentence", "--upper"]
    sets = prepare(source, tmp_path / "out", *options, "--speaker-column", "who", "--id-column", "key")
    assert [(row["id"], row["text"], row["speaker"]) for row in sets["train"]] == [
        ("3", "GRÜSSE", "u"), ("2", "B", "v"), ("1", "C", "w")]  # fmt: skip
    assert set(sets) == {"train"}


@pytest.mark.parametrize("form", ["dict on disk", "set on disk", "paths", "csv", "jsonl", "parquet"])
def test_every_form_of_a_local_data_set_gives_the_same_rows(form, tmp_path):
    source = tmp_path / "set"
    files = [tmp_path / f"{name}.wav" for name in NAMES]
    for name, path in zip(NAMES, files, strict=True):
        path.write_bytes(encoded(name))
    data = datasets.Dataset.from_dict(table()).cast_column("audio", datasets.Audio(decode=False))
    if form == "dict on disk":
        datasets.DatasetDict({"train": data}).save_to_disk(source)
    elif form == "set on disk":
        data.save_to_disk(source)
    elif form in ("csv", "jsonl", "parquet"):
        source, texts = tmp_path, [f"text {name}" for name in NAMES]
        if form == "csv":
            listed = "".join(f"{name}.wav,{text}\r\n" for name, text in zip(NAMES, texts, strict=True))
            (tmp_path / "metadata.csv").write_text("\ufefffile_name,text\r\n" + listed)
        elif form == "jsonl":
            rows = [{"file_name": f"{name}.wav", "text": text} for name, text in zip(NAMES, texts, strict=True)]
            (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        else:
            rows = {"file_name": [f"{name}.wav" for name in NAMES], "text": texts}
            pq.write_table(pa.table(rows), tmp_path / "metadata.parquet")
    else:
        write_parquet(source, {"train": table(audio=[str(path) for path in files])})
    rows = prepare(source, tmp_path / "out", *(["--any-path"] if form == "paths" else []))["train"]
    for name, row in zip(NAMES, rows, strict=True):
        assert np.array_equal(samples_of(row), speech_like(800, seed=ord(name))[:, 0]) and row["text"] == f"text {name}"


def test_a_folder_of_sound_files_has_a_table_for_each_split(tmp_path, capsys):
    for split in ("train", "validation"):
        (tmp_path / "set" / split).mkdir(parents=True)
        for name in NAMES:
            (tmp_path / "set" / split / f"{name}.wav").write_bytes(encoded(name))
    table = 'file_name,sentence,who\na.wav,NA,007\nb.wav,"one,\ntwo",8\nnone.wav,c,\n'
    (tmp_path / "set/train/metadata.csv").write_text(table)
    (tmp_path / "set/validation/metadata.csv").write_text("file_name,sentence,who\nb.wav,,u\na.wav,1,u\n")
    options = ("--text-column", "sentence", "--speaker-column", "who", "--most-rejected", 1)
    sets = prepare(tmp_path / "set", tmp_path / "out", *options)
    assert "note: 1 files are in no row of" in (said := capsys.readouterr().out) and "train/c.wav" in said
    assert [(row["text"], row["speaker"]) for row in sets["train"]] == [("NA", "007"), ("one, two", "8")]
    assert [row["text"] for row in sets["valid"]] == ["1"]
    assert np.array_equal(samples_of(sets["train"][1]), speech_like(800, seed=ord("b"))[:, 0])
    assert {name: reason.split(";")[0] for name, reason in rejections(tmp_path / "out").items()} == {
        "train-0000002": "there is no such file", "valid-0000000": "has an empty transcript"}  # fmt: skip


@pytest.mark.parametrize(
    "table, words",
    [("file;text\na.wav;b\n", "row 1 has no file_name"), ("file_name,text\na.wav,b,c\n", "more values than"),
     ("file_name,text\n", "has no rows"), ("file_name,text\na.wav,\xe9\n", "cannot be read"), ("", "has no rows")],
    ids=["semicolons", "commas", "head", "latin", "empty"],
)  # fmt: skip
def test_a_table_of_sound_files_that_cannot_be_one_is_named(table, words, tmp_path, capsys):
    (tmp_path / "a.wav").write_bytes(encoded("a"))
    (tmp_path / "metadata.csv").write_bytes(table.encode("latin-1"))
    said = refused(capsys, HUB.main, "--hub", tmp_path, "--out", tmp_path / "out")
    assert words in said and "metadata.csv" in said
    assert ("cannot be read" in said) == (words == "cannot be read")  # one reason, not one within another


def test_workers_read_the_data_set_too(tmp_path, monkeypatch):
    from seqssgd.data import shards

    source = write_parquet(tmp_path / "set", {"train": table(), "test": table()})
    one = prepare(source, tmp_path / "one")
    monkeypatch.setattr(shards, "SHARD", 3)
    assert prepare(source, tmp_path / "two", "--jobs", 2) == one


def test_other_rates_are_resampled_and_a_channel_is_taken(tmp_path):
    time = np.arange(4410) / 44_100
    stereo = np.stack([np.sin(2 * np.pi * 440 * time), np.zeros(4410)], axis=1) / 2
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo, 44_100, format="FLAC", subtype="PCM_16")
    source = write_parquet(tmp_path / "set", {"train": {"audio": [{"bytes": buffer.getvalue()}], "text": ["tone"]}})
    row = prepare(source, tmp_path / "out", "--channel", 1, "--sample-rate", 8000)["train"][0]
    samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
    assert rate == 8000 and len(samples) == 800 and row["duration"] == 0.1
    expected = np.sin(2 * np.pi * 440 * np.arange(800) / 8000) / 2
    assert np.abs(samples - expected)[100:-100].max() < 1e-3


def test_resampling_keeps_24_bits_and_does_nothing_where_nothing_is_to_do():
    wide = (speech_like(800).astype(np.int32) << 16) + (1 << 8)
    assert resample(Recording(wide, 8000), 8000).samples is wide
    narrow = resample(Recording(wide, 8000), 16_000).samples
    assert narrow.dtype == np.int32 and not (narrow & 0xFF).any() and narrow.shape == (1600, 1)
    assert (narrow & 0xFF00).any()
    with pytest.raises(AudioError, match="no channel 3"):
        take_channel(Recording(speech_like(8, channels=2), 8000), 3)


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_broken_rows_are_reported_and_the_others_prepared(tmp_path):
    audio = [{"bytes": encoded("a"), "path": "a"}, {"bytes": encoded("a")[:-9], "path": "b"}, None,
             {"bytes": encoded("a", channels=2), "path": "d"}, {"bytes": None, "path": "/nowhere.wav"},
             {"bytes": b"<html>", "path": "f"}, {"bytes": encoded("a"), "path": "g"}, {"bytes": b"", "path": "h"},
             {"bytes": encoded("a"), "path": "i"}]  # fmt: skip
    columns = {"audio": audio, "text": ["x", "x", "x", "x", "x", "x", None, "x", " "], "id": list("abcdefghi")}
    source = write_parquet(tmp_path / "set", {"train": columns})
    rows = prepare(source, tmp_path / "out", "--most-rejected", 1)["train"]
    assert [row["id"] for row in rows] == ["a"]
    reasons = rejections(tmp_path / "out")
    assert set(reasons) == set("bcdefghi")
    wanted = {"i": "empty transcript", "b": "9 bytes", "c": "has no audio", "d": "2 channels", "e": "no such file",
              "f": "cannot be decoded", "g": "has no transcript", "h": "is empty"}  # fmt: skip
    assert all(wanted[name] in reason for name, reason in reasons.items()), reasons


def test_data_sets_without_audio_columns_or_splits_are_refused_in_one_line(tmp_path, capsys):
    def said(source: object, *options: str) -> str:
        return refused(capsys, HUB.main, "--hub", source, "--out", tmp_path / "out", *options)

    text = write_parquet(tmp_path / "text", {"train": {"text": ["a"], "number": [1]}})
    assert "has no column 'audio'" in said(text) and "number, text" in said(text)
    assert "'number' holds no audio" in said(text, "--audio-column", "number")
    source = write_parquet(tmp_path / "set", {"train": table()})
    assert "--text-column can be audio, text" in said(source, "--text-column", "sentence")
    assert "--sample-rate 0: it must be at least 1" in said(source, "--sample-rate", "0")
    assert "has no split dev" in said(source, "--splits", "valid=dev")
    nowhere = said(tmp_path / "nowhere")
    assert "could not be loaded" in nowhere and "no folder of this name" in nowhere
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds/a.wav").write_bytes(encoded("a"))
    assert "metadata.csv with the columns file_name and text" in said(tmp_path / "sounds")
    assert "is a file" in said(tmp_path / "sounds/a.wav")
    assert not (tmp_path / "out").exists()
