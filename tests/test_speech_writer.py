"""Prepared speech: what a row holds, what is rejected and why, and that nothing half-written is ever seen."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from sphere_files import speech_like, sphere

from seqssgd.data import shards
from seqssgd.data.audio import decode, read_file, read_pcm
from seqssgd.data.recording import AudioError, Recording, flac_of
from seqssgd.data.shards import Rejected
from seqssgd.data.speech_rows import Utterance
from seqssgd.data.speech_writer import read_info, summary, write_speech_dataset
from seqssgd.errors import UserError


def utterance(name: str, samples: np.ndarray | None = None, **fields) -> Utterance:
    data = sphere(speech_like(400, seed=sum(name.encode())) if samples is None else samples)
    base = {"id": name, "text": f"A {name}", "speaker": name[:1], "path": f"d/{name}.wv1", "size": len(data)}
    return Utterance(**base | {"read": partial(decode, data)} | fields)


def rows_of(folder: Path, name: str) -> list[dict]:
    files = sorted((folder / name).glob("*.parquet")) or [folder / f"{name}.parquet"]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def rejections(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    return {row["id"]: row["reason"] for row in rows}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def encoded(samples: np.ndarray, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format=kind, subtype=subtype)
    return buffer.getvalue()


SETS = {"train": [utterance(f"a{i:02d}") for i in range(7)], "test": [utterance("t1"), utterance("u1")]}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 3)
    monkeypatch.setattr(shards, "ROW_GROUP", 2)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_rows_are_lossless_in_order_and_readable_with_datasets(tmp_path):
    assert write_speech_dataset(tmp_path / "out", SETS, "Toy")
    assert sorted(p.name for p in (tmp_path / "out" / "train").iterdir()) == [f"0000{i}.parquet" for i in range(3)]
    files = {"train": str(tmp_path / "out/train/*.parquet"), "test": str(tmp_path / "out/test.parquet")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=tmp_path / "cache")
    assert loaded["train"].features["audio"] == datasets.Audio(decode=False)
    for name, utterances in SETS.items():
        table = loaded[name].cast_column("audio", datasets.Audio(decode=False))
        assert table.column_names == ["id", "audio", "text", "speaker", "duration"]
        for row, wanted in zip(table, utterances, strict=True):
            samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16", always_2d=True)
            assert np.array_equal(samples, wanted.read().samples) and rate == 16_000
            assert row["audio"]["bytes"].startswith(b"fLaC") and row["duration"] == 400 / 16_000
            assert (row["id"], row["text"], row["speaker"]) == (wanted.id, wanted.text, wanted.speaker)
            assert row["audio"]["path"] == wanted.path


def test_counts_are_those_of_the_rows(tmp_path):
    write_speech_dataset(tmp_path, {**SETS, "extra": [utterance("x", text="")] + SETS["test"]}, "Toy", jobs=1)
    info = read_info(tmp_path)
    counts = {name: [count[key] for key in ("utterances", "rejected", "speakers", "words", "sample_rate")]
              for name, count in info["sets"].items()}  # fmt: skip
    assert counts == {"train": [7, 0, 1, 14, 16_000], "test": [2, 0, 2, 4, 16_000], "extra": [2, 1, 2, 4, 16_000]}
    assert info["sets"]["train"]["hours"] == pytest.approx(7 * 400 / 16_000 / 3600)
    assert "1 rejected" in summary(tmp_path) and "extra x (d/x.wv1) has an empty transcript" in summary(tmp_path)


def test_the_files_do_not_depend_on_the_number_of_jobs(tmp_path, monkeypatch):
    monkeypatch.undo()  # other processes have row groups of the usual size
    monkeypatch.setattr(shards, "SHARD", 3)
    write_speech_dataset(tmp_path / "one", SETS, "Toy")
    write_speech_dataset(tmp_path / "two", SETS, "Toy", jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two"}  # nothing is left beside them


def test_there_are_no_more_processes_than_cores(tmp_path, monkeypatch, capsys):
    asked = []
    pool = shards.ProcessPoolExecutor
    monkeypatch.setattr(shards, "ProcessPoolExecutor", lambda count, *more: asked.append(count) or pool(1, *more))
    monkeypatch.setattr(shards.os, "cpu_count", lambda: 2)
    write_speech_dataset(tmp_path / "many", SETS, "Toy", jobs=100_000)
    assert asked == [2]
    assert "note: 100,000 jobs are more than the 2 cores of this machine; 2 are taken" in capsys.readouterr().err


def test_recordings_that_are_flac_already_are_kept_byte_for_byte():
    buffer = io.BytesIO()
    soundfile.write(buffer, speech_like(500), 8000, format="FLAC", subtype="PCM_S8")  # which we would never write
    assert flac_of(decode(buffer.getvalue())) == (buffer.getvalue(), 500 / 8000)


@pytest.mark.parametrize("kind", ["MP3", "OGG"])
def test_lossy_recordings_are_read_too(kind):
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) / 2
    samples, rate, _ = decode(encoded(tone, kind))
    assert samples.dtype == np.int16 and rate == 16_000 and abs(len(samples) - 16_000) < 2400  # encoders pad
    spectrum = np.abs(np.fft.rfft(samples[4000:12_000, 0]))
    assert spectrum.argmax() == 220


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8", "ULAW"])
def test_no_bit_of_a_wav_is_lost(subtype):
    samples = speech_like(500)[:, 0].astype(np.float64) / 32_768 + (2**-22 if subtype in ("PCM_24", "FLOAT") else 0)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype=subtype)
    expected, _ = soundfile.read(io.BytesIO(buffer.getvalue()))
    flac, _ = flac_of(decode(buffer.getvalue()))
    assert np.array_equal(soundfile.read(io.BytesIO(flac))[0], expected)


# ---- what is rejected ------------------------------------------------------------------------------------------------


def without_length(flac: bytes) -> bytes:
    """The FLAC as one that went through a pipe: the lower 36 bits of bytes 18 to 25 are its number of samples."""
    return flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:]


NOISE = np.random.default_rng(0).normal(size=4000) / 8
BROKEN = {
    "empty file": (partial(decode, b""), "is empty"),
    "no samples": (partial(decode, sphere(speech_like(0)[:0])), "holds no samples"),
    "no pcm": (partial(read_pcm, b"", 16_000, "<i2"), "holds no samples"),
    "odd pcm": (partial(read_pcm, b"123", 16_000, "<i2"), "cut off"),
    "truncated sphere": (partial(decode, sphere(speech_like(400))[:-100]), "its header says 400"),
    "truncated flac": (partial(decode, encoded(NOISE, "FLAC")[:-500]), "cannot be decoded"),
    "truncated wav": (partial(decode, encoded(NOISE)[:-500]), "500 bytes of its samples are missing"),
    "damaged flac": (partial(decode, encoded(NOISE, "FLAC").replace(encoded(NOISE, "FLAC")[3000:3010], b"0" * 10)),
                     "cannot be decoded"),
    "truncated aiff": (partial(decode, encoded(NOISE, "AIFF")[:-500]), "500 bytes of its samples are missing"),
    "endless flac": (partial(decode, without_length(encoded(NOISE, "FLAC"))), "does not say how long it is"),
    "stereo": (partial(decode, encoded(np.stack([NOISE, NOISE], 1))), "has 2 channels where one is meant"),
    "nan": (partial(decode, encoded(np.where(NOISE > 0.2, np.nan, NOISE), subtype="FLOAT")), "not finite"),
    "too loud": (partial(decode, encoded(NOISE * 100, subtype="FLOAT")), "beyond the full scale"),
    "html": (partial(decode, b"<!DOCTYPE html><html>404</html>"), "cannot be decoded"),
    "nowhere": (partial(read_file, "/nowhere/at.all"), "no such file"),
    "a folder": (partial(read_file, os.sep), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_recording_is_rejected_for_its_reason(name):
    read, reason = BROKEN[name]
    with pytest.raises(AudioError, match=reason):
        flac_of(read())


def test_preparation_goes_on_past_what_is_broken_and_reports_it(tmp_path):
    broken = [utterance(name, read=read) for name, (read, _) in BROKEN.items()]
    texts = {"blank": " \t ", "control": "A\x07B", "undecodable": "CAF\ufffd"}
    broken += [utterance(name, text=text) for name, text in texts.items()]
    again = utterance("a01", speech_like(300), path="d/other.wv1")
    listed = [Rejected("train", "lost", "list:7", "has no recording")]
    write_speech_dataset(tmp_path, {"train": SETS["train"] + broken + [again]}, "Toy", listed)
    assert [row["id"] for row in rows_of(tmp_path, "train")] == [row.id for row in SETS["train"]]
    reasons = rejections(tmp_path)
    assert set(reasons) == {*BROKEN, *texts, "a01", "lost"}
    assert all(reason in reasons[name] for name, (_, reason) in BROKEN.items())
    assert reasons["a01"] == "has the id of an earlier utterance, d/a01.wv1"
    assert "'\\x07'" in reasons["control"] and "'\\ufffd'" in reasons["undecodable"] and "empty" in reasons["blank"]


def test_another_number_than_expected_is_refused_and_says_why(tmp_path):
    sets = {"train": SETS["train"][:2] + [utterance("bad", read=BROKEN["stereo"][0])]}
    with pytest.raises(UserError, match=r"2 utterances, expected 3; 1 rejected, listed in .*jsonl, .*bad .*2 "):
        write_speech_dataset(tmp_path / "out", sets, "Toy", expected={"train": 3})
    assert not (tmp_path / "out").exists()
    write_speech_dataset(tmp_path / "out", sets, "Toy", expected={"train": 2})


def test_sets_without_anything_usable_mixed_rates_and_impossible_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="train has no usable utterance"):
        write_speech_dataset(tmp_path / "a", {"train": [utterance("x", text="")]}, "Toy")
    with pytest.raises(UserError, match="nothing was rejected"):
        write_speech_dataset(tmp_path / "b", {"train": []}, "Toy")
    fast = utterance("fast", read=partial(Recording, speech_like(100), 8000))
    with pytest.raises(UserError, match=r"mixes sample rates: .*8,000 Hz \(fast\)"):
        write_speech_dataset(tmp_path / "c", {"train": [*SETS["train"], fast]}, "Toy")
    with pytest.raises(UserError, match="cannot be the name of a set"):
        write_speech_dataset(tmp_path / "d", {"../train": SETS["train"]}, "Toy")
    with pytest.raises(UserError, match="jobs=0"):
        write_speech_dataset(tmp_path / "e", SETS, "Toy", jobs=0)


# ---- reruns, other folders, interruptions ----------------------------------------------------------------------------


def test_a_rerun_changes_nothing_and_another_source_is_refused(tmp_path):
    assert write_speech_dataset(tmp_path / "out", SETS, "Toy")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    never = {name: [dataclasses.replace(row, read=None) for row in rows] for name, rows in SETS.items()}
    assert not write_speech_dataset(tmp_path / "out", never, "Toy")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    for field, value in [("text", "OTHER"), ("size", 1), ("id", "z"), ("speaker", "z"), ("path", "z")]:
        other = {**SETS, "test": [dataclasses.replace(SETS["test"][0], **{field: value}), SETS["test"][1]]}
        with pytest.raises(UserError, match="another source"):
            write_speech_dataset(tmp_path / "out", other, "Toy")
    with pytest.raises(UserError, match="other settings"):
        write_speech_dataset(tmp_path / "out", SETS, "Toy", info={"scoring_filter": "wsj"})


def test_folders_that_are_something_else_or_damaged_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not a prepared speech corpus"):
        write_speech_dataset(tmp_path / "mine", SETS, "Toy")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "dataset.json").write_text('{"format": 1, "splits": {}, "fingerprint": "0"}')
    with pytest.raises(UserError, match="damaged or of another version or kind"):
        write_speech_dataset(tmp_path / "text", SETS, "Toy")
    (tmp_path / "folder/dataset.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"dataset\.json cannot be read \(Is a directory\); choose another folder"):
        write_speech_dataset(tmp_path / "folder", SETS, "Toy")
    write_speech_dataset(tmp_path / "out", SETS, "Toy")
    shard = tmp_path / "out/train/00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="00001.parquet has changed"):
        write_speech_dataset(tmp_path / "out", SETS, "Toy")
    shard.unlink()
    with pytest.raises(UserError, match="00001.parquet is missing"):
        summary(tmp_path / "out")


def test_what_an_interrupted_call_finished_is_not_done_again(tmp_path):
    write_speech_dataset(tmp_path / "whole", SETS, "Toy")

    def interrupt():
        raise KeyboardInterrupt

    stopped = {**SETS, "train": [*SETS["train"][:4], dataclasses.replace(SETS["train"][4], read=interrupt)]}
    stopped["train"] += SETS["train"][5:]
    with pytest.raises(KeyboardInterrupt):
        write_speech_dataset(tmp_path / "out", stopped, "Toy")
    assert not (tmp_path / "out").exists()
    unread = [dataclasses.replace(row, read=None) for row in SETS["train"][:3]]  # the first shard is there
    write_speech_dataset(tmp_path / "out", {**SETS, "train": unread + SETS["train"][3:]}, "Toy")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_leftovers_of_other_sets_and_repaired_recordings_do_not_survive(tmp_path):
    broken = [utterance(row.id, read=BROKEN["stereo"][0]) for row in SETS["test"][:1]]
    with pytest.raises(UserError, match="expected 2"):
        sets = {**SETS, "other": SETS["train"], "test": broken + SETS["test"][1:]}
        write_speech_dataset(tmp_path / "out", sets, "Toy", expected={"test": 2})
    write_speech_dataset(tmp_path / "out", SETS, "Toy", expected={"test": 2})
    write_speech_dataset(tmp_path / "whole", SETS, "Toy")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


SLOW = """
import sys, time
from functools import partial
sys.path.insert(0, sys.argv[2])
from sphere_files import speech_like
from seqssgd.data import shards
from seqssgd.data.recording import Recording
from seqssgd.data.speech_rows import Utterance
from seqssgd.data.speech_writer import write_speech_dataset
shards.SHARD = 2
class Read:
    def __call__(self):
        time.sleep(0.03)
        return Recording(speech_like(400), 16000)
rows = [Utterance(f"{i}", "A", "s", "p", 1, Read()) for i in range(int(sys.argv[3]))]
write_speech_dataset(sys.argv[1], {"train": rows}, "Toy")
"""


def test_a_killed_process_leaves_nothing_that_looks_prepared_and_a_second_one_waits_its_turn(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW, str(out), str(Path(__file__).parent), "40"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    done = tmp_path / ".out.partial" / ".done"
    while len(list(done.glob("*.json"))) < 3:
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process"):
        write_speech_dataset(out, SETS, "Toy")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not out.exists() and read_info(out) is None
    write_speech_dataset(out, SETS, "Toy")  # another corpus; what the killed process left is no part of it
    write_speech_dataset(tmp_path / "whole", SETS, "Toy")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_worker_that_is_killed_is_reported_as_such(tmp_path):
    dying = utterance("dying", read=partial(signal.raise_signal, signal.SIGKILL))
    with pytest.raises(UserError, match="a process was killed"):
        write_speech_dataset(tmp_path / "out", {"train": [*SETS["train"], dying]}, "Toy", jobs=2)
