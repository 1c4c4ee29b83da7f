"""data_prep/cifar.py: small data sets in every form it reads, and everything that can be wrong in them."""

import dataclasses
import hashlib
import io
import json
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from programs import load, refused

from seqssgd.data.images import load_images

CIFAR = load("data_prep/cifar.py")
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COUNTS = {"train": 50, "test": 20}


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels, every class as often as another."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % 10)
    return generator.integers(0, 256, (count, 3, 32, 32), np.uint8), labels.astype(np.int64)


SETS = {name: drawn(count, seed) for seed, (name, count) in enumerate(COUNTS.items())}


def python2_pickle(value: object) -> bytes:
    """Protocol 2 as Python 2 wrote it: text as byte strings, arrays by the names of the numpy of that time."""

    def put(value: object) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(put(key) + put(entry) for key, entry in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(put, value)) + b"e"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(put, value)) + b"t"
        if isinstance(value, (bytes, str)):
            data = value if isinstance(value, bytes) else value.encode("latin-1")
            return b"T" + struct.pack("<i", len(data)) + data
        if isinstance(value, np.ndarray):
            array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + put((0,)) + put("b") + b"tR"
            kind = b"cnumpy\ndtype\n" + put(("u1", 0, 1)) + b"R" + put((3, "|", None, None, None, -1, -1, 0)) + b"b"
            return array + b"(" + put(1) + put(value.shape) + kind + put(False) + put(value.tobytes()) + b"tb"
        if isinstance(value, int) and not isinstance(value, bool):
            return b"J" + struct.pack("<i", value)
        return {None: b"N", False: b"\x89"}[value]

    return b"\x80\x02" + put(value) + b"."


def members(form: str) -> dict[str, bytes]:
    """The files of an archive of that name, made of ``SETS``."""
    hundred, binary = "100" in form, "binary" in form
    if hundred:
        parts = SETS
    else:
        pieces = [[array[10 * i : 10 * i + 10] for array in SETS["train"]] for i in range(5)]
        parts = dict(zip(CIFAR.BATCHES, pieces, strict=True)) | {"test_batch": SETS["test"]}
    files = {"readme.html": b"<html>"}
    for name, (images, labels) in parts.items():
        rows = images.reshape(len(images), -1)
        if binary:
            coarse = [labels[:, None] // 2] if hundred else []
            files[f"{name}.bin"] = np.hstack([*coarse, labels[:, None], rows]).astype(np.uint8).tobytes()
        else:
            key = {"coarse_labels": [0] * len(labels), "fine_labels": labels.tolist()}
            key = key if hundred else {"labels": labels.tolist()}
            files[name] = python2_pickle({"batch_label": "a batch", **key, "data": rows, "filenames": ["a.png"]})
    if binary:
        files["fine_label_names.txt" if hundred else "batches.meta.txt"] = ("\n".join(NAMES) + "\n\n").encode()
    elif hundred:
        files["meta"] = python2_pickle({"fine_label_names": NAMES, "coarse_label_names": []})
    else:
        files["batches.meta"] = python2_pickle({"num_vis": 3072, "label_names": NAMES})
    return files


def pack(path: Path, files: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info in extra:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def unpack(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def parquet(folder: Path, column: str = "img", label: str = "label", kind: str = "PNG", names=NAMES, **changes) -> Path:
    """A copy as on the hub; ``changes`` are cells of training images by ``row_NUMBER``."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in SETS.items():
        cells = [{"bytes": encoded(image, kind), "path": None} for image in images]
        for key, value in changes.items() if split == "train" else ():
            cells[int(key.removeprefix("row_"))]["bytes"] = value
        table = pa.table({column: cells, label: labels, "coarse_label": labels})
        if names:
            features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def prepare(source: Path, out: Path):
    CIFAR.main(["--source", str(source), "--out", str(out)])
    return load_images(out)


def assert_equal_to_sets(data, names=NAMES) -> None:
    assert data.classes == names
    for split, (images, labels) in SETS.items():
        read = data.split(split)
        assert np.array_equal(read.images.numpy(), images) and np.array_equal(read.labels.numpy(), labels)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(CIFAR, "IMAGES", COUNTS)


@pytest.fixture
def known(monkeypatch):
    """Lets an archive, or the folder where one was unpacked, pass for Krizhevsky's of that name."""

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    def know(path: Path, name: str) -> Path:
        form = CIFAR.FORMS[name]
        if not path.is_dir():
            form = dataclasses.replace(form, md5=md5(path))
        elif form.md5s:
            form = dataclasses.replace(form, md5s=tuple(md5(path / file) for file in form.files))
        forms = {**CIFAR.FORMS, name: form}
        monkeypatch.setattr(CIFAR, "FORMS", forms)
        return path

    return know


# ---- every form ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
@pytest.mark.parametrize("form", CIFAR.FORMS)
def test_images_labels_and_classes_are_those_of_the_archive(known, tmp_path, form, packed):
    files = members(form)
    source = known(pack(tmp_path / form, files) if packed else unpack(tmp_path / "source/deeper", files), form)
    data = prepare(source if packed else tmp_path / "source", tmp_path / "out")
    assert data.info["name"] == form.upper().rpartition("-")[0]
    assert_equal_to_sets(data)


@pytest.mark.parametrize(("column", "label"), [("img", "label"), ("image", "label"), ("img", "fine_label")])
def test_parquet_copies_are_decoded_to_the_same_images(tmp_path, column, label):
    data = prepare(parquet(tmp_path / "copy/plain_text", column, label), tmp_path / "out")
    assert_equal_to_sets(data)
    assert data.info["name"] == "CIFAR-10"
    data = prepare(parquet(tmp_path / "nameless", column, label, names=None), tmp_path / "out2")
    assert_equal_to_sets(data, [str(number) for number in range(10)])


def test_a_copy_that_went_through_jpeg_says_so(tmp_path, capsys):
    data = prepare(parquet(tmp_path / "copy", kind="JPEG"), tmp_path / "out")
    assert data.info["name"] == "CIFAR-10 through JPEG"
    assert "not with published accuracies" in capsys.readouterr().out
    jpeg = Image.open(io.BytesIO(encoded(SETS["test"][0][3], "JPEG")))
    assert np.array_equal(data.split("test").images[3].permute(1, 2, 0).numpy(), np.asarray(jpeg))


def test_a_rerun_from_any_form_of_the_same_images_does_nothing(known, tmp_path, capsys):
    python = "cifar-10-python.tar.gz"
    prepare(known(unpack(tmp_path / "source", members(python)), python), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    prepare(unpack(tmp_path / "binary", members("cifar-10-binary.tar.gz")), tmp_path / "out")
    said = capsys.readouterr().out
    assert "nothing to do" in said and "no checksums of these files are published; give the archive" in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_the_real_copy_has_its_counts(real_data, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR, "IMAGES", {"train": 50_000, "test": 10_000})
    data = prepare(real_data / "cifar10", tmp_path / "out")
    assert data.classes == NAMES
    for split, count in CIFAR.IMAGES.items():
        assert data.split(split).labels.bincount().tolist() == [count // 10] * 10
    assert data.info["mean"] == pytest.approx([0.4914, 0.4822, 0.4465], abs=3e-4)  # published ones, of the archive


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_archives_with_another_md5_are_refused(tmp_path, capsys):
    path = pack(tmp_path / "cifar-10-python.tar.gz", members("cifar-10-python.tar.gz"))
    said = refused(capsys, CIFAR.main, "--source", path, "--out", tmp_path / "out")
    assert "not c58f30108f718f92721af3b95e74349a; download it again" in said
    other = path.rename(tmp_path / "other.tgz")
    assert "which none of cifar-10-python.tar.gz, " in refused(
        capsys, CIFAR.main, "--source", other, "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["cifar-10-python.tar.gz", "cifar-100-python.tar.gz"])
def test_an_unpacked_file_with_another_md5_is_refused(known, tmp_path, capsys, form):
    files = members(form)
    source = known(unpack(tmp_path / "source", files), form)
    name = CIFAR.FORMS[form].train[-1]
    content = bytearray(files[name])
    content[content.index(SETS["train"][0][-1].tobytes())] ^= 1  # the first pixel of an image
    (source / name).write_bytes(content)
    said = refused(capsys, CIFAR.main, "--source", source, "--out", tmp_path / "out")
    assert f"source: {name} has md5 " in said and "unpack Krizhevsky's archive again" in said
    assert not (tmp_path / "out").exists()


def test_members_that_are_no_ordinary_files_are_not_read(known, tmp_path, capsys):
    link = tarfile.TarInfo("cifar/data_batch_1")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    files = members("cifar-10-python.tar.gz")
    source = known(pack(tmp_path / "a.tar.gz", files, (link,)), "cifar-10-python.tar.gz")
    assert_equal_to_sets(prepare(source, tmp_path / "out"))
    del files["data_batch_1"]
    source = known(pack(tmp_path / "b.tar.gz", files, (link,)), "cifar-10-python.tar.gz")
    assert "data_batch_1 of CIFAR-10 not found" in refused(
        capsys, CIFAR.main, "--source", source, "--out", tmp_path / "out2"
    )


class Harmful:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_asks_for_anything_else_is_not_run(tmp_path, capsys):
    files = members("cifar-10-python.tar.gz")
    files["data_batch_3"] = pickle.dumps({"data": Harmful(tmp_path / "harm"), "labels": []}, protocol=2)
    source = unpack(tmp_path / "source", files)
    said = refused(capsys, CIFAR.main, "--source", source, "--out", tmp_path / "out")
    assert "data_batch_3 is cut off or not of CIFAR (asks for " in said and "open, as no file of CIFAR does" in said
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out").exists()


def test_truncated_and_strange_files_are_refused_by_name(tmp_path, capsys):
    def said(form: str, name: str, content: bytes) -> str:
        source = unpack(tmp_path / form / name, {**members(form), name: content})
        message = refused(capsys, CIFAR.main, "--source", source, "--out", tmp_path / "out")
        assert f"{source}: {name} " in message
        return message

    python, binary = "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"
    for end in (0, 1, 1000, -1, -1000):
        assert "is cut off" in said(python, "data_batch_2", members(python)["data_batch_2"][:end])
        assert "is cut off" in said(binary, "data_batch_2.bin", members(binary)["data_batch_2.bin"][:end])
    images, labels = SETS["test"]
    for data, wrong in (
        (images.reshape(20, -1)[:, 1:], labels.tolist()),
        (images.reshape(20, -1), labels.tolist()[1:]),
        (images.reshape(20, -1), ["cat"] * 20),
        ("text", labels.tolist()),
    ):
        content = python2_pickle({"data": data, "labels": wrong})
        assert "does not hold images and labels" in said(python, "test_batch", content)
    assert "it holds a list" in said(python, "test_batch", python2_pickle([1]))
    room_for_many = b"\x80\x02}r" + (2**26).to_bytes(4, "little") + b"."
    assert "it numbers a value 67,108,864" in said(python, "batches.meta", room_for_many)
    assert "does not hold the names" in said(python, "batches.meta", python2_pickle({"label_names": "cat"}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "change", "reason"), [
    ("labels", lambda labels: np.where(np.arange(len(labels)) == 7, 10, labels), "label 10 at train image 7, where"),
    ("labels", lambda labels: np.where(np.arange(len(labels)) == 7, -1, labels), "label -1 at train image 7, where"),
    ("labels", lambda labels: np.where(labels == 3, 4, labels), "0 train images of 'cat', and 10 of another class"),
    ("count", lambda labels: labels[:40], "40 train images, expected 50"),
])  # fmt: skip
def test_labels_out_of_range_and_wrong_counts_are_refused(tmp_path, capsys, monkeypatch, name, change, reason):
    images, labels = SETS["train"]
    if name == "count":
        images = images[:40]
    monkeypatch.setitem(SETS, "train", (images, change(labels)))
    said = refused(capsys, CIFAR.main, "--source", parquet(tmp_path / "copy"), "--out", tmp_path / "out")
    assert f"{tmp_path / 'copy'} is not the usual CIFAR: " in said and reason in said
    assert not (tmp_path / "out").exists()


def deep_png() -> bytes:
    """A PNG of 32 × 32 pixels with 16 bits for each of red, green and blue."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(32 * 6) for _ in range(32))
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_of_mode(mode: str, size: int = 32) -> bytes:
    Image.new(mode, (size, size)).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("content", "reason"), [
    (encoded(SETS["train"][0][7], "JPEG")[:-200], "a broken image"),
    (encoded(SETS["train"][0][7])[:100], "a broken image"),
    (b"GIF89a", "a broken image"),
    (b"", "a broken image"),
    (None, "a broken image"),
    (png_of_mode("L"), "32 × 32 pixels of mode L, not 32 × 32 of RGB with 8 bits"),
    (png_of_mode("RGBA"), "of mode RGBA, not"),
    (png_of_mode("I;16"), "pixels of mode I;16 and 16 bits, not"),
    (deep_png(), "32 × 32 pixels of mode RGB and 16 bits, not"),
    (png_of_mode("RGB", 33), "33 × 33 pixels of mode RGB, not"),
], ids=["cut JPEG", "cut PNG", "GIF", "empty", "missing", "gray", "alpha", "deep gray", "deep", "large"])  # fmt: skip
def test_an_image_that_is_broken_or_no_8_bit_colour_is_refused_with_its_place(tmp_path, capsys, content, reason):
    source = parquet(tmp_path / "copy", row_7=content)
    said = refused(capsys, CIFAR.main, "--source", source, "--out", tmp_path / "out")
    assert "train-00000-of-00001.parquet, row 7" in said and reason in said
    assert not (tmp_path / "out").exists()


def test_sources_that_are_no_cifar_are_refused(tmp_path, capsys):
    def said(source: Path) -> str:
        return refused(capsys, CIFAR.main, "--source", source, "--out", tmp_path / "out")

    assert "nowhere cannot be read" in said(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty holds no CIFAR; give cifar-10-python.tar.gz" in said(tmp_path / "empty")
    copy = parquet(tmp_path / "copy", column="picture")
    assert "has the columns picture, label, coarse_label" in said(copy)
    pq.write_table(pa.table({"img": [{"bytes": b""}], "label": ["cat"]}), copy / "test-00000-of-00001.parquet")
    pq.write_table(pa.table({"img": [{"bytes": b""}], "label": ["cat"]}), copy / "train-00000-of-00001.parquet")
    assert "whole numbers (label or fine_label) are needed" in said(copy)
    (copy / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert "is no Parquet file, or damaged" in said(copy)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("…")
    assert "exists and is not a prepared set of small images" in said(parquet(tmp_path / "good"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
