"""data_prep/wsj.py on small trees in every layout that copies of the corpora have, whole and broken."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from programs import load, refused
from sphere_files import speech_like, sphere

WSJ = load("data_prep/wsj.py")
SHIPPED = {name: size for name, (size, _) in WSJ.SETS.items()}
CODINGS = ["pcm", "pcm,embedded-shorten-v2.00", "pcm,embedded-shorten-v1.09"]
PUBLISHED = {"si84": 7138, "si284": 37_416, "dev93": 503, "eval92": 333, "eval93": 213, "eval92_5k": 330,
             "dev93_5k": 513, "eval93_5k": 215}  # fmt: skip

# set: (disk and path of its index, how a line names the disk, where the audio is, paths of the audio there)
INDICES = {
    "si84": ("11-13.1", "wsj0/doc/indices/train/tr_s_wv1.ndx", [
        ("11_1_1", "11-1.1", "wsj0/si_tr_s/01i/01ic0201.wv1"),
        ("11_1_1", "11-1.1", "wsj0/si_tr_s/01i/01ic0202.wv1"),
        ("11_2_1", "11-2.1", "wsj0/si_tr_s/401/401c0201.wv1"),
        ("11_3_1", "11-3.1", "wsj0/si_tr_s/02a/02ac0201.wv1")]),
    "si284": ("13-34.1", "wsj1/doc/indices/si_tr_s.ndx", [("13_1_1", "13-1.1", "wsj1/si_tr_s/46p/46pc0301.wv1")]),
    "dev93": ("13-34.1", "wsj1/doc/indices/h1_p0.ndx", [("13_16_1", "13-16.1", "wsj1/si_dt_20/4k0/4k0c0301.wv1")]),
    "dev93_5k": ("13-34.1", "wsj1/doc/indices/h2_p0.ndx", [("13_16_1", "13-16.1", "wsj1/si_dt_05/050/050c0501.wv1")]),
    "eval92": ("11-13.1", "wsj0/doc/indices/test/nvp/si_et_20.ndx", [
        ("11_14_1", "11-14.1", "wsj0/si_et_20/440/440c0402"), ("11_14_1", "11-14.1", "wsj0/si_et_20/440/440c0401")]),
    "eval92_5k": ("11-13.1", "wsj0/doc/indices/test/nvp/si_et_05.ndx",
                  [("11_14_1", "11-14.1", "wsj0/si_et_05/440/440c0201")]),
    "eval93": ("13-32.1", "wsj1/doc/indices/wsj1/eval/h1_p0.ndx",
               [("13_32_1", "13-33.1", "wsj1/si_et_20/4oa/4oac0201.wv1")]),
    "eval93_5k": ("13-32.1", "wsj1/doc/indices/wsj1/eval/h2_p0.ndx",
                  [("13_32_1", "13-33.1", "wsj1/si_et_05/4ob/4obc0201.wv1")]),
}  # fmt: skip
WORDS = ("Hello", "[loud_breath]", "ten", "%PERCENT", ".")
TEXT = "HELLO <NOISE> TEN PERCENT"
SIZES = {"si84": 3, "si284": 4, "dev93": 1, "eval92": 2, "eval93": 1, "eval92_5k": 1, "dev93_5k": 1, "eval93_5k": 1}


def samples_of(name: str) -> np.ndarray:
    return speech_like(600, seed=sum(map(ord, name)))


def tree() -> dict[tuple[str, str], bytes]:
    """The files by disk and path: indices with comments, SPHERE files in three codings, and transcripts."""
    files, dots = {}, {}
    for disk, index, entries in INDICES.values():
        lines = [";; Index for WSJ", ";;", *(f"{named}:{path}" for named, _, path in entries)]
        files[disk, index] = "\r\n".join(lines).encode() + b"\n\n"
        for i, (_, where, path) in enumerate(entries):
            name = path.split("/")[-1][:8]
            audio = path if path.endswith(".wv1") else f"{path}.wv1"
            files[where, audio] = sphere(samples_of(name), CODINGS[i % 3], "10" if i % 2 else "01")
            files[where, audio.replace(".wv1", ".wv2")] = b"the other microphone"
            folder = f"{path.split('/')[0]}/transcrp/dots/{name[:3]}" if "tr_s" in path else str(Path(path).parent)
            key = ("11-13.1" if path.startswith("wsj0/si_tr") else where, f"{folder}/{name[:6]}00.dot")
            dots.setdefault(key, []).append(f"{' '.join(WORDS)} {name} ({name})\n")
    return files | {key: "".join(lines).encode() for key, lines in dots.items()}


def write(folder: Path, files: dict[tuple[str, str], bytes], layout: str = "disks") -> list[Path]:
    """Writes the tree in a layout; returns what to give as --source."""
    for (disk, path), data in files.items():
        if layout == "published":
            disk = f"{'csr_1' if disk[:2] == '11' else 'csr_2_comp'}/{disk}"
        elif layout == "underscore" and disk[:2] == "13":
            disk = disk.replace("-", "_")
        elif layout == "merged":
            disk = "."
        elif layout in ("upper", "medium"):
            path = path.upper()
            data = data.upper() if path.endswith(".DOT") else data
            path += ";1" if layout == "medium" else ""
        target = folder / disk / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if layout == "given":
        return sorted(folder.iterdir())
    if layout == "links":
        (folder / "links").mkdir()
        for i, disk in enumerate(sorted(path for path in folder.iterdir() if path.name[:1] == "1")):
            disk.rename(folder / f"cdrom{i}")
            (folder / "links" / disk.name).symlink_to(folder / f"cdrom{i}")
        return sorted((folder / "links").iterdir())
    return [folder / "csr_1", folder / "csr_2_comp"] if layout == "published" else [folder]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Lets the small trees pass for WSJ."""
    monkeypatch.setattr(WSJ, "SETS", {name: (SIZES[name], indices) for name, (_, indices) in WSJ.SETS.items()})


def prepare(sources: list[Path], out: Path, *options: object) -> dict[str, dict[str, dict]]:
    """The rows of every set by their ids."""
    WSJ.main([str(option) for option in ("--source", *sources, "--out", out, *options)])
    return {path.stem: {row["id"]: row for row in pq.read_table(path).to_pylist()} for path in out.glob("*.parquet")}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rejections(out: Path) -> dict[tuple[str, str], str]:
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return {(row["set"], row["id"] or row["path"]): row["reason"] for row in rows}


def test_the_sets_have_the_published_sizes():
    assert SHIPPED == PUBLISHED


# ---- layouts ---------------------------------------------------------------------------------------------------------


def test_sets_hold_the_utterances_of_their_indices_with_the_known_errors_mended(tmp_path, capsys):
    sets = prepare(write(tmp_path / "wsj", tree()), tmp_path / "out")
    assert {name: list(rows) for name, rows in sets.items()} == {
        "si84": ["01ic0201", "01ic0202", "02ac0201"],  # without speaker 401 of disk 11-2.1
        "si284": ["01ic0201", "01ic0202", "02ac0201", "46pc0301"],
        "dev93": ["4k0c0301"],
        "dev93_5k": ["050c0501"],
        "eval92": ["440c0401", "440c0402"],  # the index names no .wv1
        "eval92_5k": ["440c0201"],
        "eval93": ["4oac0201"],  # on 13-33.1, although the index says 13-32.1
        "eval93_5k": ["4obc0201"],
    }
    for rows in sets.values():
        for name, row in rows.items():
            decoded, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16", always_2d=True)
            assert np.array_equal(decoded, samples_of(name)) and rate == 16_000
            assert row["text"] == f"{TEXT} {name.upper()}" and row["speaker"] == name[:3]
            assert row["audio"]["path"].endswith(f"{name}.wv1") and row["duration"] == 600 / 16_000
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["scoring_filter"] == "wsj"
    assert contents(tmp_path / "out")["rejected.jsonl"] == b""
    capsys.readouterr()
    prepare([tmp_path / "wsj"], tmp_path / "out", "--jobs", 2)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["published", "given", "underscore", "merged", "upper", "medium", "links"])
def test_every_layout_gives_the_same_bytes(layout, tmp_path):
    prepare(write(tmp_path / "disks", tree()), tmp_path / "expected")
    sources = write(tmp_path / "source", tree(), layout)
    prepare(sources, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_disks_are_known_by_their_names_with_either_separator(tmp_path):
    corpus = WSJ.Corpus(write(tmp_path / "wsj", tree(), "underscore"))
    assert set(corpus.disks) == {disk.replace("-", "_").replace(".", "_") for disk, _ in tree()} and not corpus.merged


def test_an_index_in_upper_case_names_the_same_files(tmp_path):
    files = tree()
    files["13-34.1", "wsj1/doc/indices/h1_p0.ndx"] = b"13_16_1:WSJ1/SI_DT_20/4K0/4K0C0301.WV1\n"
    rows = prepare(write(tmp_path / "wsj", files), tmp_path / "out", "--sets", "dev93")["dev93"]
    assert list(rows) == ["4k0c0301"] and rows["4k0c0301"]["speaker"] == "4k0"


def test_the_two_halves_of_the_merged_layout_can_be_given_by_themselves(tmp_path):
    write(tmp_path / "wsj", tree(), "merged")
    sets = prepare([tmp_path / "wsj/wsj0", tmp_path / "wsj/wsj1"], tmp_path / "out", "--sets", "si284", "eval92")
    assert {name: len(rows) for name, rows in sets.items()} == {"si284": 4, "eval92": 2}


def test_wsj0_alone_is_enough_for_its_own_sets(tmp_path):
    files = {key: data for key, data in tree().items() if key[0].startswith("11")}
    sets = prepare(write(tmp_path / "wsj", files), tmp_path / "out", "--sets", "si84", "eval92_5k")
    assert {name: len(rows) for name, rows in sets.items()} == {"si84": 3, "eval92_5k": 1}


def test_links_in_circles_do_not_matter(tmp_path):
    sources = write(tmp_path / "wsj", tree())
    os.symlink(tmp_path / "wsj", tmp_path / "wsj/11-13.1/wsj0/loop")
    assert len(prepare(sources, tmp_path / "out", "--sets", "si84")["si84"]) == 3


def test_of_several_transcripts_the_one_nearest_to_the_audio_is_taken(tmp_path):
    files = tree()
    for disk, folder in (("11-1.1", "wsj0/aaa"), ("13-16.1", "wsj1/aaa"), ("13-34.1", "wsj1/trans")):
        files[disk, f"{folder}/4k0c0300.dot"] = b"from elsewhere (4k0c0301)\n"
    rows = prepare(write(tmp_path / "wsj", files), tmp_path / "out", "--sets", "dev93")["dev93"]
    assert rows["4k0c0301"]["text"] == f"{TEXT} 4K0C0301"


# ---- what is missing or broken ---------------------------------------------------------------------------------------


def test_missing_disks_are_named_in_one_message_with_what_was_looked_for(tmp_path, capsys):
    files = {key: data for key, data in tree().items() if key[0] not in ("11-1.1", "13-32.1", "13-16.1")}
    sources = write(tmp_path / "wsj", files)
    said = refused(capsys, WSJ.main, "--source", *sources, "--out", tmp_path / "out")
    assert "no disk 11-1.1 (for si84, si284)" in said
    assert "no disk 13-16.1 (for dev93, dev93_5k)" in said
    assert "no wsj1/doc/indices/wsj1/eval/h1_p0.ndx on disk 13-32.1 (for eval93)" in said
    assert "looked for" in said and str(tmp_path / "wsj") in said
    assert "found 11-2.1, 11-3.1, 11-13.1, 11-14.1, 13-1.1, 13-33.1, 13-34.1" in said
    sets = prepare(sources, tmp_path / "out", "--partial")
    assert {name: list(rows) for name, rows in sets.items()} == {
        "si84": ["02ac0201"], "si284": ["02ac0201", "46pc0301"],
        "eval92": ["440c0401", "440c0402"], "eval92_5k": ["440c0201"],
    }  # fmt: skip
    reasons = rejections(tmp_path / "out")
    assert "no such file on disk 11-1.1" in reasons["si284", "01ic0201"]
    assert "not on disk 13-32.1" in reasons["eval93", "wsj1/doc/indices/wsj1/eval/h1_p0.ndx"]


def test_folders_without_wsj_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for options in ([], ["--partial"]):
        said = refused(capsys, WSJ.main, "--source", tmp_path / "empty", "--out", tmp_path / "out", *options)
        assert str(tmp_path / "empty") in said and "found none" in said
    assert "not a folder" in refused(capsys, WSJ.main, "--source", tmp_path / "no", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_broken_utterances_are_reported_and_only_partial_goes_on_without_them(tmp_path, capsys, monkeypatch):
    files = tree()
    names = [f"46pc03{i:02d}" for i in range(1, 12)]
    path = "wsj1/si_tr_s/46p/{}.wv1"
    lines = [f"13_1_1: {path.format(name)}" for name in names] + ["no entry", f"13_1_1:{path.format(names[0])}"]
    files["13-34.1", "wsj1/doc/indices/si_tr_s.ndx"] = "\n".join(lines).encode()
    texts = {name: f"text {name}" for name in names}
    del texts[names[1]]
    texts |= {names[2]: "~ .", names[3]: "caf\xe9"}
    dots = "".join(f"{text} ({name})\n" for name, text in texts.items()) + "no transcript\n\n"
    files["13-1.1", "wsj1/transcrp/dots/46p/46pc0300.dot"] = dots.encode("latin-1")
    good = sphere(samples_of("x"), CODINGS[1])
    stereo = sphere(speech_like(600, channels=2), CODINGS[2])
    damaged = sphere(samples_of("x"), "pcm", sample_checksum=7)
    audio = [good, good, good, good, good[:-200], stereo, damaged, b"", good[:1000], good]
    for name, data in zip(names, audio, strict=False):
        files["13-1.1", path.format(name)] = data
    sources = write(tmp_path / "wsj", files)
    monkeypatch.setitem(WSJ.SETS, "si284", (14, WSJ.SETS["si284"][1]))
    refused_with = refused(capsys, WSJ.main, "--source", *sources, "--out", tmp_path / "out", "--sets", "si284")
    assert "si284 has 11 utterances, expected 14" in refused_with and "no entry of an index" in refused_with
    monkeypatch.setitem(WSJ.SETS, "si284", (11, WSJ.SETS["si284"][1]))
    refused_with = refused(capsys, WSJ.main, "--source", *sources, "--out", tmp_path / "out", "--sets", "si284")
    assert "si284 has 5 utterances, expected 11" in refused_with and "rejected.jsonl" in refused_with
    assert not (tmp_path / "out").exists()
    rows = prepare(sources, tmp_path / "out", "--sets", "si284", "--partial")["si284"]
    assert list(rows) == ["01ic0201", "01ic0202", "02ac0201", names[0], names[9]]
    reasons = {name: reason for (_, name), reason in rejections(tmp_path / "out").items()}
    wanted = ["earlier utterance", "no transcript", "empty transcript", "unknown characters", "its header says 600",
              "2 channels", "checksum 7", "is empty", "cut off", None, "no audio"]  # fmt: skip
    for name, reason in zip(names, wanted, strict=True):
        assert (reason in reasons[name]) if reason else name not in reasons
    assert "no entry of an index" in reasons["wsj1/doc/indices/si_tr_s.ndx:12"]
