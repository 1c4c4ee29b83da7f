"""Sets of prepared speech as they are read: samples, checks before training, and every fault by name."""

import io
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from sphere_files import speech_like, sphere

from seqssgd.data import audio as audio_module
from seqssgd.data import contents, shards
from seqssgd.data.audio import decode
from seqssgd.data.prepared import with_checksum
from seqssgd.data.speech import load_speech, set_names
from seqssgd.data.speech_rows import Utterance
from seqssgd.data.speech_writer import write_speech_dataset
from seqssgd.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def encoded(samples: np.ndarray, rate: int = 16_000, format: str = "FLAC", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def speech(seed: int = 0, count: int = 3_000) -> np.ndarray:
    return speech_like(count, seed)[:, 0]


def row(name: str, data: bytes | None = None, **fields) -> dict:
    data = encoded(speech(sum(name.encode()))) if data is None else data
    return {"id": name, "audio": {"bytes": data, "path": None}, "text": "SOME WORDS"} | fields


def foreign(folder: Path, *rows: dict, name: str = "train") -> Path:
    """Parquet that no program of ours has written, one file per set."""
    folder.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"{name}.parquet")
    return folder


def prepared(folder: Path, count: int = 7, rate: int = 16_000, length: int = 3_000) -> Path:
    utterances = []
    for i in range(count):
        data = sphere(speech_like(length + 10 * i, seed=i), rate=rate)
        utterances.append(Utterance(f"a{i}", f"UTTERANCE {i}", "s", f"{i}.wv1", len(data), partial(decode, data)))
    write_speech_dataset(folder, {"train": utterances, "test": utterances[:2]}, "Toy")
    return folder


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_a_prepared_set_gives_the_samples_that_were_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 3)  # a folder of three files
    data = load_speech(prepared(tmp_path / "toy"), "train")
    assert len(data) == 7 and data.ids == [f"a{i}" for i in range(7)] and data.texts[4] == "UTTERANCE 4"
    assert data.samples == [3_000 + 10 * i for i in range(7)] and data.hours * 3600 * 16_000 == pytest.approx(21_210)
    for i in (6, 0, 3):
        wave = data.waveform(i)
        assert wave.dtype == torch.float32 and wave.shape == (3_000 + 10 * i,)
        assert torch.equal(wave, torch.from_numpy(speech_like(3_000 + 10 * i, seed=i)[:, 0] / 32_768.0).float())
    assert str(data) == f"{tmp_path / 'toy/train'}: 7 utterances, 0.00 hours at 16,000 Hz"


def test_opening_a_prepared_set_decodes_nothing_and_another_one_all_of_it(tmp_path, monkeypatch):
    prepared(tmp_path / "toy")
    foreign(tmp_path / "other", row("a"), row("b"))
    decoded = []
    monkeypatch.setattr(audio_module, "decode", lambda data: decoded.append(data) or decode(data))
    load_speech(tmp_path / "toy", "train")
    assert not decoded
    data = load_speech(tmp_path / "other", "train")
    assert len(decoded) == 2 and data.samples == [3_000, 3_000]


@pytest.mark.parametrize("gigabytes", [0.0, 1.0])
def test_a_set_that_fits_in_memory_is_decoded_once(tmp_path, monkeypatch, gigabytes):
    data = load_speech(prepared(tmp_path / "toy"), "train", cache_gigabytes=gigabytes)
    assert data.caches is bool(gigabytes)
    decoded = []
    monkeypatch.setattr(audio_module, "decode", lambda data: decoded.append(data) or decode(data))
    first = data.waveform(2)
    kept = first.clone()
    first.zero_()  # what is handed out is the caller's own
    assert torch.equal(data.waveform(2), kept)
    assert len(decoded) == (1 if gigabytes else 2)


def test_recordings_of_24_bits_and_floats_have_the_same_scale(tmp_path):
    samples = speech().astype(np.float64) / 32_768
    rows = [
        row("int", encoded(samples, subtype="PCM_24")),
        row("float", encoded(samples, format="WAV", subtype="FLOAT")),
    ]
    data = load_speech(foreign(tmp_path, *rows), "train")
    for i in range(2):
        torch.testing.assert_close(data.waveform(i), torch.from_numpy(samples).float(), rtol=0, atol=2**-22)


@pytest.mark.parametrize("own", [8_000, 22_050])
def test_other_sample_rates_are_resampled_to_the_lengths_that_were_announced(tmp_path, own):
    data = load_speech(prepared(tmp_path / "toy", rate=own, length=5_003), "train")
    assert f"resampled from {own:,} Hz" in str(data)
    assert data.samples == [-(-(5_003 + 10 * i) * 16_000 // own) for i in range(7)]
    assert [len(data.waveform(i)) for i in range(7)] == data.samples
    tone = np.rint(8_000 * np.sin(2 * np.pi * 300 * np.arange(own) / own)).astype(np.int16)
    wave = load_speech(foreign(tmp_path / "tone", row("a", encoded(tone, own))), "train").waveform(0)
    expected = 8_000 / 32_768 * torch.sin(2 * torch.pi * 300 * torch.arange(16_000) / 16_000)
    torch.testing.assert_close(wave[200:-200], expected[200:-200], rtol=0, atol=2e-3)


def test_the_fingerprint_tells_sets_apart(tmp_path):
    a, b = row("a"), row("b")
    variants = [[a, b], [b, a], [a, row("c")], [a, b | {"text": "OTHER"}], [a], [a, row("b", encoded(speech(1, 400)))]]
    sets = [load_speech(foreign(tmp_path / str(i), *rows), "train") for i, rows in enumerate(variants)]
    marks = {data.fingerprint for data in sets}
    assert len(marks) == 6
    assert load_speech(tmp_path / "0", "train").fingerprint in marks


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_every_unusable_utterance_counts_and_the_first_are_named_with_the_reason(tmp_path):
    good = encoded(speech())
    nan = speech().astype(np.float32) / 32_768
    nan[7] = np.nan
    rows = [
        row("good", good),
        row("empty", good, text="  "),
        row("good", good),
        row("stereo", encoded(np.stack([speech(), speech()], 1))),
        row("nan", encoded(nan, format="WAV", subtype="FLOAT")),
    ]
    with pytest.raises(UserError) as error:
        load_speech(foreign(tmp_path / "some", *rows), "train")
    assert str(error.value) == (
        f"{tmp_path / 'some/train'}: 4 of 5 utterances cannot be used: empty has an empty transcript; good is the id "
        "of two utterances; stereo has 2 channels where one is meant; nan has 1 samples that are not finite (NaN or "
        "infinite)"
    )
    rows = [
        row("none", audio={"bytes": None, "path": "somewhere"}),
        row("zero", encoded(speech()[:0], format="WAV")),
        row("cut", good[: len(good) // 2]),
        row("noise", b"<!DOCTYPE html>"),
        row("", good),
        row("null", good, text=None),
    ]
    with pytest.raises(
        UserError, match=r"6 of 6 .*; none has no audio; zero holds no samples; cut .*; and 1 more$"
    ) as error:
        load_speech(foreign(tmp_path / "all", *rows), "train")
    assert "row 5 has no id; null has an empty transcript" in str(error.value)


def test_sets_that_are_not_there_are_named_with_those_that_are(tmp_path):
    prepared(tmp_path / "toy")
    foreign(tmp_path / "toy2", row("a"))
    foreign(tmp_path / "toy2/dev", row("a"), name="0")
    assert set_names(tmp_path / "toy") == ["test", "train"] and set_names(tmp_path / "toy2") == ["dev", "train"]
    assert len(load_speech(tmp_path / "toy2", "dev")) == 1
    for folder, name, reason in (
        ("toy", "dev", r"toy has no set 'dev'; it has test, train$"),
        ("toy2", "eval", r"toy2 has no set 'eval'; it has dev, train$"),
        ("toy", "", "has no set ''; it has test"),
        ("absent", "train", r"absent does not exist; write it with: python data_prep/an4\.py .* --out .*absent"),
        (".", "train", r"is not prepared speech|has no set 'train'; it has"),
    ):
        with pytest.raises(UserError, match=reason):
            load_speech(tmp_path / folder, name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is not prepared speech \(it has no Parquet files\); write it with"):
        load_speech(tmp_path / "empty", "train")


def test_parquet_without_speech_is_refused(tmp_path):
    for name, rows, reason in (
        ("text", [{"id": "a", "text": "WORDS"}], r"no column audio \(it has id, text\), .*hub_asr\.py"),
        ("bare", [{"sentence": "WORDS"}], "no column id and no column audio and no column text"),
        ("path", [{"id": "a", "text": "WORDS", "audio": 7}], "the column audio holds no recordings, but"),
    ):
        with pytest.raises(UserError, match=reason):
            load_speech(foreign(tmp_path / name, *rows), "train")
    schema = pa.schema(
        {"id": pa.string(), "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "text": pa.string()}
    )
    (tmp_path / "none").mkdir()
    pq.write_table(schema.empty_table(), tmp_path / "none/train.parquet")
    with pytest.raises(UserError, match=r"^\S*none/train has no utterances"):
        load_speech(tmp_path / "none", "train")
    foreign(tmp_path / "cut", row("a"))
    whole = (tmp_path / "cut/train.parquet").read_bytes()
    (tmp_path / "cut/train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut/train cannot be read as Parquet .*prepare it again"):
        load_speech(tmp_path / "cut", "train")


def test_a_prepared_file_that_has_changed_is_refused(tmp_path):
    prepared(tmp_path / "toy")
    with open(tmp_path / "toy/train.parquet", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="train.parquet has changed since it was prepared"):
        load_speech(tmp_path / "toy", "train")


def silenced(folder: Path, name: str = "train") -> None:
    """Replaces the recordings of a set by silence of the same length."""
    table = pq.read_table(folder / f"{name}.parquet")
    rows = table.to_pylist()
    for cell in (row["audio"] for row in rows):
        cell["bytes"] = encoded(np.zeros_like(soundfile.read(io.BytesIO(cell["bytes"]), dtype="int16")[0]))
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / f"{name}.parquet")


def test_a_prepared_file_whose_size_was_kept_or_noted_anew_is_refused_too(tmp_path):
    file = prepared(tmp_path / "toy") / "train.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="train.parquet has changed since it was prepared; remove"):
        load_speech(tmp_path / "toy", "train")
    assert len(load_speech(tmp_path / "toy", "test")) == 2
    silenced(prepared(tmp_path / "other"))
    info = json.loads((tmp_path / "other/dataset.json").read_text())
    info["sets"]["train"]["files"]["train.parquet"] = (tmp_path / "other/train.parquet").stat().st_size
    with pytest.raises(UserError, match=r"dataset\.json is damaged .*it is not as it was written.*; choose"):
        (tmp_path / "other/dataset.json").write_text(json.dumps(info))
        load_speech(tmp_path / "other", "train")
    (tmp_path / "other/dataset.json").write_text(json.dumps(with_checksum(info)))
    with pytest.raises(UserError, match="train.parquet has changed since it was prepared; remove"):
        load_speech(tmp_path / "other", "train")


def test_files_are_read_through_only_where_their_times_have_changed(tmp_path, monkeypatch):
    read = []
    checksum = contents.checksum
    monkeypatch.setattr(contents, "checksum", lambda path: read.append(path.name) or checksum(path))
    data = load_speech(prepared(tmp_path / "toy"), "train")
    assert not read
    shutil.copytree(tmp_path / "toy", tmp_path / "kept")  # with their times
    assert load_speech(tmp_path / "kept", "train").content == data.content and not read
    shutil.copytree(tmp_path / "toy", tmp_path / "copied", copy_function=shutil.copyfile)
    assert load_speech(tmp_path / "copied", "train").content == data.content and read == ["train.parquet"]


def test_recordings_tell_sets_apart_whoever_wrote_them(tmp_path):
    made = load_speech(prepared(tmp_path / "toy"), "train")
    shutil.copytree(tmp_path / "toy", tmp_path / "elsewhere")
    (tmp_path / "elsewhere/dataset.json").unlink()
    same = load_speech(tmp_path / "elsewhere", "train")
    assert same.content == made.content and same.is_that_of(made.description())
    silenced(tmp_path / "elsewhere")
    silent = load_speech(tmp_path / "elsewhere", "train")
    assert silent.fingerprint == made.fingerprint and not silent.is_that_of(made.description())


def test_sets_of_earlier_versions_load_with_a_note(tmp_path, capsys):
    made = load_speech(prepared(tmp_path / "toy"), "train")
    info = json.loads((tmp_path / "toy/dataset.json").read_text())
    del info["content"], info["sha256"], info["checksum"]
    (tmp_path / "toy/dataset.json").write_text(json.dumps(info))
    old = load_speech(tmp_path / "toy", "train")
    assert "toy/train was prepared without checksums" in capsys.readouterr().err
    assert old.content is None and "content" not in old.description() and old.is_that_of(made.description())


def test_a_recording_that_is_not_as_long_as_prepared_is_an_error_when_it_is_read(tmp_path, monkeypatch):
    data = load_speech(prepared(tmp_path / "toy"), "train")
    data.samples[3] += 1
    with pytest.raises(UserError, match="train: a3 holds 3,030 samples where 3,031 were prepared; prepare"):
        data.waveform(3)

    def broken(data):
        raise audio_module.AudioError("cannot be decoded")

    monkeypatch.setattr(audio_module, "decode", broken)
    with pytest.raises(UserError, match="train: a4 cannot be decoded; prepare the corpus again"):
        data.waveform(4)


def test_without_the_extra_everything_can_be_imported_and_says_what_to_install(tmp_path):
    program = """
import sys
for name in ("av", "datasets", "numpy", "pyarrow", "sentencepiece", "soundfile", "torchaudio", "tqdm"):
    sys.modules[name] = None
from seqssgd.speech.batching import BucketBatches
from seqssgd.data.speech import load_speech
from seqssgd.errors import UserError
from seqssgd.speech.features import LogMel, SpecAugment, SpeedPerturbation
from seqssgd.speech.tokens import CharacterTokenizer, PieceTokenizer

CharacterTokenizer.train().encode("a"), BucketBatches([1], 1).epoch(0)
for call in (lambda: load_speech(".", "a"), LogMel, SpeedPerturbation, lambda: PieceTokenizer.train(["a"], 9)):
    try: call()
    except UserError as error: print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4 and all(line.startswith("the package ") for line in lines), lines
    assert all(line.endswith(" is not installed: pip install 'seqssgd[recipes]'") for line in lines), lines
