"""Data sets as people have them: repeated ids, unknown speakers, columns of other types, items that fail."""

import argparse
import errno
import json
import os
import re
import types
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from programs import load, refused
from sphere_files import speech_like, sphere
from test_data_prep_hub_asr import NAMES, encoded, prepare, samples_of, table, write_parquet

from seqssgd import locks
from seqssgd.data.audio import AudioError, decode
from seqssgd.data.preparing import by_reason, rejections, why
from seqssgd.data.shards import Rejected
from seqssgd.data.speech import load_speech
from seqssgd.data.speech_rows import Utterance
from seqssgd.data.speech_writer import prepare as prepare_speech
from seqssgd.data.speech_writer import read_info, summary, write_speech_dataset
from seqssgd.errors import UserError
from seqssgd.runs.directory import RunDirectory

HUB = load("data_prep/hub_asr.py")
IMAGENET = load("data_prep/imagenet.py")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def utterance(name: str, **fields) -> Utterance:
    data = sphere(speech_like(400, seed=len(name)))
    base = {"id": name, "text": "A WORD", "speaker": "s", "path": f"d/{name}.wv1", "size": len(data)}
    return Utterance(**base | {"read": partial(decode, data)} | fields)


def failing(error: BaseException) -> Utterance:
    def read():
        raise error

    return utterance("bad", read=read)


# ---- ids and speakers ------------------------------------------------------------------------------------------------


def test_an_id_column_that_repeats_is_no_id_and_loses_no_recording(tmp_path, capsys):
    source = write_parquet(tmp_path / "set", {"train": table(id=[7, 7, 8])})  # as FLEURS numbers its sentences
    rows = prepare(source, tmp_path / "out")["train"]
    assert [row["id"] for row in rows] == [f"train-{number:07d}" for number in range(3)]
    said = capsys.readouterr().out
    assert "note: 'id' is no id in train: 3 utterances have 2 different ones; they are numbered instead" in said
    assert "0 rejected" in said


def test_empty_ids_are_numbered_and_unknown_speakers_are_nobody(tmp_path, capsys):
    columns = table(id=["x", "", None], speaker=["u", None, " "])
    rows = prepare(write_parquet(tmp_path / "set", {"train": columns}), tmp_path / "out")["train"]
    assert [row["id"] for row in rows] == ["x", "train-0000001", "train-0000002"]
    assert [row["speaker"] for row in rows] == ["u", None, None]
    assert "note: 2 utterances of train have no 'id'; they are numbered instead" in capsys.readouterr().out
    assert read_info(tmp_path / "out")["sets"]["train"]["speakers"] == 1
    found = load_speech(tmp_path / "out", "train")
    assert found.speakers is None and len(found) == 3  # nobody is drawn for the bootstrap
    numbers = table(speaker=[1.0, float("nan"), 2.0])
    rows = prepare(write_parquet(tmp_path / "numbers", {"train": numbers}), tmp_path / "more")["train"]
    assert [row["speaker"] for row in rows] == ["1.0", None, "2.0"]


def test_an_utterance_without_an_id_is_left_out_of_whatever_corpus(tmp_path):
    write_speech_dataset(tmp_path, {"train": [utterance("a"), utterance(""), utterance("b", speaker=None)]}, "Toy")
    assert read_info(tmp_path)["sets"]["train"] | {"files": 0, "hours": 0} == {
        "utterances": 2, "rejected": 1, "speakers": 1, "words": 4, "sample_rate": 16_000, "files": 0, "hours": 0
    }  # fmt: skip
    assert "has no id" in summary(tmp_path)


@pytest.mark.parametrize("speakers", [["u", None, "v"], ["u", "", "v"], [1.0, float("nan"), 2.0]])
def test_a_set_from_elsewhere_with_an_unknown_speaker_has_none(speakers, tmp_path):
    write_parquet(tmp_path / "set", {"train": table(id=NAMES, speaker=speakers)})
    (tmp_path / "set/train-00000-of-00001.parquet").rename(tmp_path / "set/train.parquet")
    assert load_speech(tmp_path / "set", "train").speakers is None


# ---- how much may be left out ----------------------------------------------------------------------------------------


def test_more_rejections_than_a_hundredth_stop_a_preparation_unless_they_are_allowed(tmp_path, capsys):
    sets = {"train": [utterance(f"a{number:03}") for number in range(60)] + [failing(AudioError("is broken"))]}
    args = argparse.Namespace(out=tmp_path / "out", jobs=1, most_rejected=0.01)
    with pytest.raises(UserError, match=r"1.64 % of train cannot be used, where 1 % .*most_rejected"):
        prepare_speech(args, sets, "Toy")
    assert not (tmp_path / "out").exists()
    args.most_rejected = 0.02
    prepare_speech(args, sets, "Toy")
    assert "1 rejected" in capsys.readouterr().out
    source = write_parquet(tmp_path / "set", {"train": table(text=["a", None, "c"])})
    said = refused(capsys, HUB.main, "--hub", source, "--out", tmp_path / "hub")
    assert "33.3 % of train cannot be used" in said and "has no transcript" in said
    assert "from 0 to 1" in refused(capsys, HUB.main, "--hub", source, "--out", tmp_path / "x", "--most-rejected", 2)
    assert len(prepare(source, tmp_path / "hub", "--most-rejected", 0.5)["train"]) == 2


def test_a_long_list_of_rejections_is_summed_up_by_reason(tmp_path):
    rejected = [Rejected("train", f"u{number}", f"p/{number}", f"holds {number} samples, but its header says 1,000")
                for number in range(30)] + [Rejected("valid", "v", "p/v", "is empty")] * 3  # fmt: skip
    groups = by_reason(rejected)
    assert [(count, first.id) for _, count, first in groups] == [(30, "u0"), (3, "v")]
    text = why(rejected, Path("list.jsonl"))
    assert text.startswith("33 rejected, listed in list.jsonl, the first: train u0 (p/0) holds 0 samples")
    assert text.endswith("by reason: 30 × holds 0 samples, but its header says 1,000, 3 × is empty")
    (tmp_path / "rejected.jsonl").write_text(
        "".join(json.dumps({"set": r.set, "id": r.id, "path": r.path, "reason": r.reason}) + "\n" for r in rejected)
    )
    good = (tmp_path / "rejected.jsonl").read_text()
    whole = {"set": "a", "id": "b", "path": "c", "reason": "d"}
    for row, wrong in ((whole | {"reason": 5}, "reason: 5 is not a text"), ({"set": "a"}, "id is missing"),
                       ([], "all of it: [] is not a group of named values")):  # fmt: skip
        (tmp_path / "rejected.jsonl").write_text(good + json.dumps(row) + "\n")
        with pytest.raises(UserError, match=re.escape(f"is damaged (line 34: {wrong}); remove {tmp_path}")):
            rejections(tmp_path)
    (tmp_path / "rejected.jsonl").write_text(json.dumps(whole | {"x": 1}))  # of a later version
    assert rejections(tmp_path).endswith("\n    a b (c) d")
    (tmp_path / "rejected.jsonl").write_text(good)
    lines = rejections(tmp_path).splitlines()
    assert lines[0].startswith("  33 rejected, listed in") and len(lines) == 3
    assert lines[1].endswith("30 × holds 0 samples, but its header says 1,000; the first: train u0 (p/0)")


# ---- what one item raises, and what the machine does -----------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("a codec fell over"), NotImplementedError(), ZeroDivisionError("x"),
                                   KeyError("sampling_rate"), OverflowError("too large"), RecursionError(),
                                   PermissionError(errno.EACCES, "Permission denied"), AssertionError()])  # fmt: skip
def test_what_one_item_raises_of_whatever_class_is_its_rejection(error, tmp_path):
    write_speech_dataset(tmp_path, {"train": [utterance("a"), failing(error), utterance("b")]}, "Toy")
    row = json.loads((tmp_path / "rejected.jsonl").read_text())
    assert row["id"] == "bad" and type(error).__name__ in row["reason"]
    assert read_info(tmp_path)["sets"]["train"]["utterances"] == 2


def test_a_row_that_cannot_be_written_is_its_own_rejection(tmp_path):
    odd = utterance("odd", speaker="\udcff")
    write_speech_dataset(tmp_path, {"train": [utterance("a"), odd, utterance("b")]}, "Toy")
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["id"] == "odd"
    assert read_info(tmp_path)["sets"]["train"]["utterances"] == 2


def test_a_set_from_elsewhere_names_every_row_that_fails_for_whatever_reason(tmp_path, monkeypatch):
    write_parquet(tmp_path / "set", {"train": table(id=NAMES)})
    (tmp_path / "set/train-00000-of-00001.parquet").rename(tmp_path / "set/train.parquet")
    from seqssgd.data import audio

    real = audio.decode

    def fail(data):
        if data == encoded("b"):
            raise ZeroDivisionError("by zero")
        return real(data)

    monkeypatch.setattr(audio, "decode", fail)
    with pytest.raises(UserError, match=r"1 of 3 utterances .*: b cannot be used \(ZeroDivisionError: by zero\)"):
        load_speech(tmp_path / "set", "train")


@pytest.mark.parametrize("error, said", [
    (MemoryError(), "there is no memory left for bad"), (OSError(errno.ENOSPC, "No space left on device"), "No space"),
    (ModuleNotFoundError("No module named 'av'", name="av"), "the package av is not installed"),
])  # fmt: skip
def test_what_the_machine_raises_ends_the_preparation_in_one_line(error, said, tmp_path, capsys):
    def main(_):
        write_speech_dataset(tmp_path / "out", {"train": [utterance("a"), failing(error)]}, "Toy")

    line = refused(capsys, main)
    assert said in line and (not isinstance(error, OSError) or ": the disk at " in line)
    assert not (tmp_path / "out").exists()


# ---- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_paths_may_be_strings_of_any_arrow_type(kind, tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.wav").write_bytes(encoded(name))
    source = tmp_path / "set"
    source.mkdir()
    paths = pa.array([str(tmp_path / f"{name}.wav") for name in NAMES]).cast(kind)
    texts = pa.array(NAMES).cast(pa.large_string())
    pq.write_table(pa.table({"audio": paths, "text": texts}), source / "train.parquet")
    rows = prepare(source, tmp_path / "out", "--any-path")["train"]
    for name, row in zip(NAMES, rows, strict=True):
        assert np.array_equal(samples_of(row), speech_like(800, seed=ord(name))[:, 0]) and row["text"] == name


def test_bytes_may_be_large_too_for_sounds_and_for_images(tmp_path):
    kind = pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})
    source = tmp_path / "set"
    source.mkdir()
    pq.write_table(pa.table({"audio": pa.array(table()["audio"], kind), "text": NAMES}), source / "train.parquet")
    assert len(prepare(source, tmp_path / "out")["train"]) == 3
    from picture_folders import encoded as encoded_image
    from picture_folders import picture

    images = pa.array([{"bytes": encoded_image(picture(n, n)), "path": None} for n in (0, 1)], kind)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for split in ("train", "validation"):
        pq.write_table(pa.table({"image": images, "label": [0, 1]}), pictures / f"{split}.parquet")
    IMAGENET.main(["--hub", str(pictures), "--out", str(tmp_path / "images")])
    assert pq.read_metadata(tmp_path / "images/train.parquet").num_rows == 2


def test_an_audio_column_of_samples_and_their_rate_is_audio(tmp_path):
    samples = [speech_like(800, seed=ord(name))[:, 0] / 32_768 for name in NAMES]
    cells = [{"array": wave.tolist(), "sampling_rate": 16_000.0, "path": None} for wave in samples]
    source = write_parquet(tmp_path / "set", {"train": table(audio=cells)})
    for name, row in zip(NAMES, prepare(source, tmp_path / "out")["train"], strict=True):
        assert np.array_equal(samples_of(row), speech_like(800, seed=ord(name))[:, 0])
    fast = [{"array": [0.1] * 4800, "sampling_rate": 48_000}, {"array": [], "sampling_rate": 16_000}, None]
    source = write_parquet(tmp_path / "fast", {"train": table(audio=fast)})
    rows = prepare(source, tmp_path / "slow", "--most-rejected", 1)["train"]
    assert [row["duration"] for row in rows] == [pytest.approx(0.1, abs=1e-3)]


def test_two_keys_of_one_name_in_a_data_card_are_refused(tmp_path, capsys):
    source = write_parquet(tmp_path / "set", {"train": table()})
    (source / "README.md").write_text("---\nlicense: mit\nlanguage: en\nlicense: other\n---\nA card.\n")
    said = refused(capsys, HUB.main, "--hub", source, "--out", tmp_path / "out")
    assert f"{source / 'README.md'}: license is given twice, in lines 2 and 4" in said


# ---- links and disks -------------------------------------------------------------------------------------------------


def test_a_recording_that_is_a_link_to_nothing_is_a_rejection(tmp_path):
    chapter = tmp_path / "train-clean-100/1/2"
    chapter.mkdir(parents=True)
    (chapter / "1-2-0000.flac").write_bytes(encoded("a", "FLAC"))
    os.symlink("../.git/annex/objects/absent", chapter / "1-2-0001.flac")
    (chapter / "1-2.trans.txt").write_text("1-2-0000 FIRST\n1-2-0001 SECOND\n")
    found, rejected = load("data_prep/librispeech.py").read_set("train-clean-100", tmp_path / "train-clean-100")
    assert [row.id for row in found] == ["1-2-0000"]
    assert [(item.id, item.reason.split(",")[0]) for item in rejected] == [("1-2-0001", "is a link to nothing")]


# ---- locks -----------------------------------------------------------------------------------------------------------


class _Refusing(types.SimpleNamespace):
    LOCK_EX = LOCK_NB = 0

    @staticmethod
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("fcntl", [None, _Refusing()], ids=["not a Unix", "refused"])
def test_where_there_are_no_locks_work_goes_on_and_it_is_said(fcntl, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "fcntl", fcntl)
    write_speech_dataset(tmp_path / "out", {"train": [utterance("a")]}, "Toy")
    assert "note: " in (said := capsys.readouterr().err) and "a second process" in said
    RunDirectory(tmp_path / "run", {"seed": 0}).close()
    assert f"note: {tmp_path / 'run'} is where files cannot be locked" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_process_holds_is_held_by_either_of_its_errors(number, tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "fcntl", types.SimpleNamespace(lockf=lockf, LOCK_EX=0, LOCK_NB=0))
    with pytest.raises(UserError, match="another process"):
        write_speech_dataset(tmp_path / "out", {"train": [utterance("a")]}, "Toy")
    with pytest.raises(UserError, match="another process"):
        RunDirectory(tmp_path / "run", {"seed": 0})
