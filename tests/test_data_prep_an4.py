"""data_prep/an4.py: the real corpus, and small ones in every form with everything that can be wrong in them."""

import io
import json
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from programs import ROOT, load, refused
from sphere_files import speech_like, sphere

from seqssgd.cli import main

AN4 = load("data_prep/an4.py")
SHIPPED = ROOT / "models/an4_conformer"
TRAIN = [f"{kind}{i}-{speaker}-b" for speaker in ("fabc", "fdef", "mabc", "mabc2", "mghi", "mjkl")
         for i, kind in enumerate(("an", "cen"))]  # fmt: skip
TEST = [f"an{i}-{speaker}-b" for speaker in ("fxyz", "mxyz") for i in range(2)]
AUDIO = {name: speech_like(800, seed=i)[:, 0] for i, name in enumerate(TRAIN + TEST)}


def corpus(form: str = "raw", order: str = ">i2") -> dict[str, bytes]:
    """The members of a small archive, in which every test transcript has two words."""
    members = {"an4/README": b"in little endian byte order"}
    for folder, names in (("an4_clstk", TRAIN), ("an4test_clstk", TEST)):
        for name in names:
            data = AUDIO[name].astype(order).tobytes() if form == "raw" else sphere(AUDIO[name], order="10")
            members[f"an4/wav/{folder}/{name.split('-')[1]}/{name}.{'raw' if form == 'raw' else 'sph'}"] = data
    members["an4/etc/an4_train.transcription"] = "".join(f"<s> GO {n[0].upper()} </s> ({n})\n" for n in TRAIN).encode()
    members["an4/etc/an4_test.transcription"] = "".join(f"O'CLOCK {n[0].upper()} ({n})\n" for n in TEST).encode()
    return members


def pack(path: Path, members: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def unpack(folder: Path, members: dict[str, bytes]) -> Path:
    for name, data in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def prepare(source: Path, out: Path, *options: object) -> dict[str, list[dict]]:
    AN4.main([str(option) for option in ("--source", source, "--out", out, *options)])
    return {name: pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("train", "valid", "test")}


def samples_of(row: dict) -> np.ndarray:
    return soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")[0]


def rejections(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return {row["id"] or row["path"]: row["reason"] for row in rows}


@pytest.fixture
def small(monkeypatch):
    """Lets the small corpus pass for AN4."""
    monkeypatch.setattr(AN4, "UTTERANCES", {"train": len(TRAIN), "test": len(TEST)})
    monkeypatch.setattr(AN4, "TEST_WORDS", 2 * len(TEST))


# ---- the real corpus -------------------------------------------------------------------------------------------------


def test_the_real_corpus_has_its_counts_and_no_voice_in_two_sets(real_data, tmp_path, capsys):
    sets = prepare(real_data / "an4" / "an4_raw.bigendian.tar.gz", tmp_path / "an4")
    assert len(sets["train"]) + len(sets["valid"]) == 948 and len(sets["test"]) == 130
    assert 80 < len(sets["valid"]) < 130
    assert sum(len(row["text"].split()) for row in sets["test"]) == 773
    assert sum(len(row["text"]) for row in sets["test"]) == 2565
    people = {name: {re.sub(r"\d", "", row["speaker"]) for row in rows} for name, rows in sets.items()}
    assert not people["train"] & people["valid"] and not (people["train"] | people["valid"]) & people["test"]
    assert sorted(name[0] for name in people["valid"]) == ["f"] * 2 + ["m"] * 6  # of 21 and 53 in training
    texts = {row["id"]: row["text"] for rows in sets.values() for row in rows}
    assert texts["an251-fash-b"] == "YES" and texts["an406-fcaw-b"] == "RUBOUT G M E F THREE NINE"
    for row in sets["valid"][::10]:  # in the wrong byte order it would be noise
        samples = samples_of(row).astype(float)
        assert np.square(np.diff(samples)).sum() < np.square(samples).sum()
        assert row["duration"] == len(samples) / 16_000
    capsys.readouterr()
    prepare(real_data / "an4" / "an4_raw.bigendian.tar.gz", tmp_path / "an4")
    assert "nothing to do" in capsys.readouterr().out
    # the model that ships has here the errors of its card, but for the half precision of its weights
    assert main(["evaluate", "--run", str(SHIPPED), "--data", str(tmp_path / "an4")]) == 0
    found = re.search(r"^WER ([\d.]+) % \(\d+ of 773 words", capsys.readouterr().out, re.MULTILINE)
    stated = json.loads((SHIPPED / "evaluation.json").read_text())["test"]["wer"]
    assert found and abs(float(found[1]) - stated) < 0.5


# ---- every form of the source ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
@pytest.mark.parametrize(("form", "order"), [("raw", ">i2"), ("raw", "<i2"), ("sphere", "")])
def test_audio_and_text_are_the_same_from_every_form(small, tmp_path, form, order, packed):
    members = corpus(form, order)
    source = pack(tmp_path / "an4.tar.gz", members) if packed else unpack(tmp_path / "source", members)
    sets = prepare(source, tmp_path / "out", "--valid-speakers", 2)
    rows = {row["id"]: row for name in sets for row in sets[name]}
    assert list(rows) == [row["id"] for row in sets["train"] + sets["valid"]] + TEST and set(rows) == set(AUDIO)
    for name, row in rows.items():
        assert np.array_equal(samples_of(row), AUDIO[name])
        assert row["speaker"] == name.split("-")[1]
        assert row["text"] == f"{'O' + chr(39) + 'CLOCK' if name in TEST else 'GO'} {name[0].upper()}"


def test_validation_takes_whole_speakers_of_both_sexes_and_keeps_namesakes_together(small, tmp_path):
    source = unpack(tmp_path / "source", corpus())
    for count in (2, 3, 4):
        sets = prepare(source, tmp_path / f"out{count}", "--valid-speakers", count)
        valid, train = ({row["speaker"] for row in sets[name]} for name in ("valid", "train"))
        assert not valid & train and len(valid | train) == 6
        assert sum(name[0] == "f" for name in valid) == 1 and len(valid) in (count, count + 1)
        assert ("mabc" in valid) == ("mabc2" in valid)
        assert len(sets["valid"]) == 2 * len(valid)


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_the_archive_cannot_reach_outside_itself(small, tmp_path):
    link = tarfile.TarInfo("an4/wav/an4_clstk/fabc/link.raw")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    above, absolute = tarfile.TarInfo("an4/../../wav/above.raw"), tarfile.TarInfo("/wav/absolute.raw")
    above.size = absolute.size = 10
    huge = tarfile.TarInfo("an4/wav/an4_clstk/fabc/huge.raw")
    huge.size = AN4.LARGEST + 2
    before = set(tmp_path.parent.iterdir())
    prepare(
        pack(tmp_path / "an4.tar.gz", corpus(), (above, absolute, link, huge)), tmp_path / "out", "--valid-speakers", 2
    )
    reasons = rejections(tmp_path / "out")
    assert "leads out of the archive" in reasons[above.name] and "leads out of the archive" in reasons[absolute.name]
    assert "no ordinary file" in reasons[link.name] and "too large" in reasons[huge.name]
    assert set(tmp_path.iterdir()) == {tmp_path / "an4.tar.gz", tmp_path / "out"}
    assert set(tmp_path.parent.iterdir()) == before


def test_a_small_archive_that_stands_for_much_is_refused_at_once(tmp_path, capsys):
    """A file that is passed over, of 300 MB in 300 kB."""
    info = tarfile.TarInfo("an4/readme")
    info.size = 300_000_000
    pack = zlib.compressobj(wbits=31)
    with open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(pack.compress(info.tobuf(tarfile.GNU_FORMAT)))
        for _ in range(300):
            file.write(pack.compress(b"0" * 1_000_000))
        file.write(pack.flush())
    said = refused(capsys, AN4.main, "--source", tmp_path / "bomb.tar.gz", "--out", tmp_path / "out")
    assert "unpacks to more than 1" in said and not (tmp_path / "out").exists()


def test_broken_utterances_are_reported_and_only_partial_goes_on_without_them(small, tmp_path, capsys):
    members = corpus()
    wav = "an4/wav/an4_clstk"
    del members[f"{wav}/fabc/an0-fabc-b.raw"]
    members[f"{wav}/fabc/stray.raw"] = b"12"
    members[f"{wav}/mghi/an0-mghi-b.raw"] = members[f"{wav}/mghi/an0-mghi-b.raw"][:-1]
    members[f"{wav}/mghi/cen1-mghi-b.raw"] = b""
    listing = members["an4/etc/an4_train.transcription"]
    listing = listing.replace(b"GO C </s> (cen1-mjkl-b)", b"</s> (cen1-mjkl-b)")
    listing = listing.replace(b"GO A </s> (an0-mjkl-b)", b"GO 4 </s> (an0-mjkl-b)")
    members["an4/etc/an4_train.transcription"] = listing + b"\n<s> NO ID </s>\n<s> GO A </s> (an0-fdef-b)\n"
    source = unpack(tmp_path / "source", members)
    said = refused(capsys, AN4.main, "--source", source, "--out", tmp_path / "out")
    assert "11 usable utterances, expected 12" in said and "an0-fabc-b" in said and "--partial" in said
    sets = prepare(source, tmp_path / "out", "--partial", "--valid-speakers", 2)
    gone = {"an0-fabc-b", "an0-mghi-b", "cen1-mghi-b", "cen1-mjkl-b", "an0-mjkl-b"}
    assert {row["id"] for row in sets["train"] + sets["valid"]} == set(TRAIN) - gone
    reasons = rejections(tmp_path / "out")
    assert set(reasons) == gone | {"stray", "an0-fdef-b", "etc/an4_train.transcription:14"}
    assert "no recording" in reasons["an0-fabc-b"] and "no transcript" in reasons["stray"]
    assert "cut off" in reasons["an0-mghi-b"] and "no samples" in reasons["cen1-mghi-b"]
    assert "empty" in reasons["cen1-mjkl-b"] and "unknown characters in its transcript: 4" in reasons["an0-mjkl-b"]
    assert "earlier utterance" in reasons["an0-fdef-b"]


def test_other_corpora_and_broken_sources_are_refused_in_one_line(small, tmp_path, capsys):
    def said(source: Path, *options: object) -> str:
        return refused(
            capsys, AN4.main, "--source", source, "--out", tmp_path / "out", *(options or ("--valid-speakers", 2))
        )

    assert "an4_raw.bigendian.tar.gz" in said(tmp_path / "nowhere.tar.gz")
    (tmp_path / "empty").mkdir()
    assert "no etc/an4_train.transcription" in said(tmp_path / "empty")
    (tmp_path / "page.tar.gz").write_bytes(b"<html>not found</html>")
    assert "complete tar archive" in said(tmp_path / "page.tar.gz")
    whole = pack(tmp_path / "an4.tar.gz", corpus())
    (tmp_path / "half.tar.gz").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert "complete tar archive" in said(tmp_path / "half.tar.gz")
    assert "it must be from 1 to 5" in said(whole, "--valid-speakers", 6)
    members = corpus()
    members["an4/etc/an4_test.transcription"] = members["an4/etc/an4_test.transcription"].replace(
        b"O'CLOCK", b"TWO ONE"
    )
    assert "12 words, expected 8" in said(pack(tmp_path / "words.tar.gz", members))
    noise = {name: np.random.default_rng(len(name)).bytes(800) if name.endswith("raw") else data
             for name, data in corpus().items()}  # fmt: skip
    assert "byte order" in said(pack(tmp_path / "noise.tar.gz", noise))
    assert not (tmp_path / "out").exists()
