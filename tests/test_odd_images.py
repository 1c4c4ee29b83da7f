"""Images as people have them: nested, linked, deep, damaged, and with names in any encoding."""

import io
import json
import os
import warnings
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from picture_folders import CLASSES, encoded, picture, write_tree
from PIL import Image
from programs import load

from seqssgd.data import pictures
from seqssgd.data.pictures import ImageError, decode_rgb
from seqssgd.errors import run_cli

IMAGENET = load("data_prep/imagenet.py")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_tree(tmp_path / "tree", train=2, valid=1)


def prepare(source: Path, out: Path, *options: object) -> tuple[dict, dict[str, str]]:
    """What dataset.json says, and the reason of everything that was left out by its name."""
    IMAGENET.main([str(word) for word in ("--source", source, "--out", out, "--most-rejected", 1, *options)])
    rows = map(json.loads, (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines())
    return json.loads((out / "dataset.json").read_bytes()), {row["id"]: row["reason"] for row in rows}


def test_images_below_a_class_folder_belong_to_the_class(tree, tmp_path):
    for folder in ("train/n01/session 1/a", "train/n01/session 1", "val/n02/b"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
        (tree / folder / "deep.JPEG").write_bytes(encoded(picture(1, 9)))
    os.symlink(tree / "train/n01", tree / "train/n01/session 1/back")  # a loop, which is walked once
    info, rejected = prepare(tree, tmp_path / "out")
    assert rejected == {} and info["sets"]["train"]["images"] == 18 and info["sets"]["valid"]["images"] == 9
    rows = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    deep = {row["image"]["path"]: row["label"] for row in rows if "deep" in row["image"]["path"]}
    assert deep == {"train/n01/session 1/a/deep.JPEG": 1, "train/n01/session 1/deep.JPEG": 1}


def test_whatever_is_no_image_file_is_counted_and_named(tree, tmp_path, capsys):
    os.symlink(".git/annex/objects/absent", tree / "train/n00/annexed.JPEG")
    os.symlink("absent", tree / "train/n99")
    os.mkfifo(tree / "val/n00/pipe.JPEG")
    (tree / "train/labels.csv").write_text("a,b")
    (tree / "train/n03/notes.txt").write_text("notes")
    info, rejected = prepare(tree, tmp_path / "out")
    assert {key: reason.split(" (")[0].split(",")[0] for key, reason in rejected.items()} == {
        "annexed.JPEG": "is a link to nothing", "n99": "is a link to nothing", "pipe.JPEG": "is no regular file",
        "labels.csv": "lies in no folder of a class", "n03/notes.txt": "is a broken image"}  # fmt: skip
    assert info["classes"] == CLASSES and info["sets"]["train"]["rejected"] == 4
    assert "5 rejected, listed in" in capsys.readouterr().out


def test_file_names_that_are_not_utf_8_are_prepared(tree, tmp_path):
    os.rename(tree / "train/n00/0.JPEG", os.fsencode(tree / "train/n00") + b"/caf\xe9.JPEG")
    broken = os.fsencode(tree / "train/n00") + b"/\xff.JPEG"
    with open(broken, "wb") as file:
        file.write(b"no image")
    _, rejected = prepare(tree, tmp_path / "out")
    assert list(rejected) == ["n00/\udcff.JPEG"] or list(rejected) == ["n00/\\udcff.JPEG"]
    paths = [row["image"]["path"] for row in pq.read_table(tmp_path / "out/train.parquet").to_pylist()]
    assert "train/n00/caf\\udce9.JPEG" in paths


def test_a_list_of_classes_may_begin_with_a_byte_order_mark(tree, tmp_path):
    for number, title in enumerate(CLASSES):
        os.rename(tree / f"val/{title}/50.JPEG", tree / f"val/{number}.JPEG")
        os.rmdir(tree / f"val/{title}")
    lines = "\n".join(f"{number}.JPEG {title}" for number, title in enumerate(CLASSES))
    (tmp_path / "labels.txt").write_text(lines, encoding="utf-8-sig")
    info, rejected = prepare(tree, tmp_path / "out", "--val-labels", tmp_path / "labels.txt")
    assert info["sets"]["valid"]["images"] == 8 and not rejected


# ---- one image -------------------------------------------------------------------------------------------------------


def ppm(largest: int, comment: bytes = b"") -> bytes:
    return b"P6 " + comment + b"2 2\n%d\n" % largest + bytes(12 * (2 if largest > 255 else 1))


def tiff_of_16_bits() -> bytes:
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140),
               (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 24)]  # fmt: skip
    directory = len(entries).to_bytes(2, "little") + b"".join(
        tag.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + count.to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, kind, count, value in entries
    )
    data = b"II*\0" + (8).to_bytes(4, "little") + directory + bytes(4)
    return data.ljust(134, b"\0") + b"\x10\0" * 3 + bytes(24)


def test_images_of_more_than_8_bits_are_left_out_whatever_their_format():
    grey16 = Image.new("I;16", (4, 4))
    deep = {"PPM": ppm(65_535), "PPM with a comment": ppm(1023, b"# 255\n"), "TIFF": tiff_of_16_bits()}
    for kind in ("PNG", "TIFF", "JPEG2000"):
        buffer = io.BytesIO()
        grey16.save(buffer, kind)
        deep[f"grey {kind}"] = buffer.getvalue()
    colour = io.BytesIO()
    Image.new("RGB", (8, 8)).save(colour, "JPEG2000", no_jp2=True)
    data = bytearray(colour.getvalue())
    place = data.index(b"\xff\x4f\xff\x51") + 42
    for component in range(3):
        data[place + 3 * component] = 15  # 16 bits
    deep["colour JPEG 2000"] = bytes(data)
    for name, content in deep.items():
        with pytest.raises(ImageError, match="more than 8 bits|broken"):
            decode_rgb(content)
        assert name
    with pytest.raises(ImageError, match="more than 8 bits"):
        decode_rgb(deep["PPM"])
    with pytest.raises(ImageError, match="more than 8 bits"):
        decode_rgb(deep["TIFF"])
    for kind in ("PPM", "PNG", "TIFF", "JPEG2000", "SGI", "AVIF", "ICO", "WEBP", "BMP"):
        assert decode_rgb(encoded(picture(1, 1, (16, 16)), kind)).size == (16, 16)
    assert decode_rgb(ppm(255)).size == (2, 2)


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "PNG", "GIF", "WEBP", "TIFF", "JPEG2000", "SGI", "TGA", "PCX", "ICNS"])
def test_a_damaged_image_of_any_format_is_a_broken_image(kind):
    image = picture(1, 1, (64, 64))
    data = encoded(image, kind)
    for position in range(0, len(data), max(1, len(data) // 40)):
        for damaged in (data[:position], data[:position] + bytes(8) + data[position + 8 :],
                        data[:position] + b"\xff" * 8 + data[position + 8 :]):  # fmt: skip
            try:
                decode_rgb(damaged)
            except ImageError as error:
                assert str(error)


def test_an_image_of_far_more_pixels_than_it_has_bytes_is_refused_before_it_is_decoded():
    with io.BytesIO() as buffer:
        Image.new("1", (8_000, 8_000)).save(buffer, "TIFF", compression="group4")
        content = buffer.getvalue()
    with pytest.raises(pictures.ImageError, match=f"8,000 × 8,000 pixels in {len(content):,} bytes"):
        pictures.decode(content)
    with io.BytesIO() as buffer:  # as many for a byte as PNG makes of one colour
        Image.new("1", (8_000, 8_000)).save(buffer, "PNG")
        assert pictures.decode(buffer.getvalue())[0].size == (8_000, 8_000)


def test_what_pillow_warns_of_is_left_out_in_programs_and_nowhere_else():
    def warn(module: str) -> None:
        warnings.warn_explicit("odd", UserWarning, "file.py", 1, module)

    before = list(warnings.filters)
    pictures._pillow.cache_clear()
    pictures.decode(encoded(picture(1, 1, (8, 8)), "PNG"))
    assert run_cli(lambda: warn("PIL.Image")) == 0
    for call in (lambda: warn("PIL.Image"), lambda: run_cli(lambda: warn("PILLAR"))):
        with pytest.raises(UserWarning, match="odd"):
            call()
    assert list(warnings.filters) == before


@pytest.mark.parametrize("error", [RuntimeError("bad"), NotImplementedError(), KeyError("x")])
def test_whatever_pillow_raises_is_a_broken_image(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match="is a broken image"):
        pictures.decode(b"x")
