"""data_prep/imagenet.py on made-up folders: what is kept, converted, rejected and refused."""

import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from picture_folders import CLASSES, encoded, picture, write_tree
from PIL import Image
from programs import load, refused

from seqssgd.data import shards
from seqssgd.data.pictures import ImageError, decode_rgb

IMAGENET = load("data_prep/imagenet.py")


@pytest.fixture(autouse=True)
def small_shards_and_own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "SHARD", 10)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_tree(tmp_path / "tree")


def prepare(source: Path, out: Path, *options: object) -> dict:
    IMAGENET.main([str(word) for word in ("--source", source, "--out", out, *options)])
    return json.loads((out / "dataset.json").read_text())


def rows_of(out: Path, name: str) -> list[dict]:
    files = sorted((out / name).glob("*.parquet")) or [out / f"{name}.parquet"]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def reasons(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return {f"{row['set']}/{row['id']}": row["reason"] for row in rows}


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_images_are_kept_byte_for_byte_with_the_class_of_their_folder(tree, tmp_path):
    (tree / "train/.DS_Store").touch()
    (tree / "train/n03/.hidden").touch()
    info = prepare(tree, tmp_path / "out")
    assert info["classes"] == CLASSES and info["name"] == "tree"
    for name, folder, count in (("train", "train", 48), ("valid", "val", 16)):
        rows, files = rows_of(tmp_path / "out", name), sorted((tree / folder).glob("*/*.JPEG"))
        assert len(rows) == len(files) == count == info["sets"][name]["images"]
        for row, file in zip(rows, files, strict=True):
            assert row["image"] == {"bytes": file.read_bytes(), "path": str(file.relative_to(tree))}
            assert CLASSES[row["label"]] == file.parent.name
    assert info["sets"]["train"]["classes"] == 8 and info["sets"]["train"]["smallest_class"] == 6


def test_the_files_are_readable_with_datasets(tree, tmp_path):
    prepare(tree, tmp_path / "out")
    files = {"train": str(tmp_path / "out/train/*.parquet"), "valid": str(tmp_path / "out/valid/*.parquet")}
    loaded = datasets.load_dataset("parquet", data_files=files)
    assert loaded["train"].features["label"].names == CLASSES
    assert loaded["valid"][0]["image"].size == (36, 48) and loaded["valid"].num_rows == 16


def test_a_rerun_changes_nothing_and_the_files_do_not_depend_on_the_jobs(tree, tmp_path, capsys):
    one, two = (prepare(tree, tmp_path / name, "--jobs", jobs) for name, jobs in (("one", 1), ("two", 2)))
    assert one == two
    for file in sorted((tmp_path / "one").rglob("*.parquet")):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")}
    prepare(tree, tmp_path / "one")
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")} == before
    said = refused(capsys, IMAGENET.main, "--source", tree, "--out", tmp_path / "one", "--shortest-side", 30)
    assert "was prepared from another source or with other settings" in said


def test_larger_images_are_reduced_and_smaller_ones_left_alone(tree, tmp_path):
    large = picture(0, 0, (400, 300)).resize((800, 600))
    (tree / "train/n00/0.JPEG").write_bytes(encoded(large))
    prepare(tree, tmp_path / "out", "--shortest-side", 60)
    rows = rows_of(tmp_path / "out", "train")
    found = Image.open(io.BytesIO(rows[0]["image"]["bytes"]))
    assert found.size == (80, 60) and found.format == "JPEG"
    expected = np.asarray(large.resize((80, 60), Image.Resampling.BICUBIC), np.float64)
    assert np.abs(np.asarray(found) - expected).mean() < 4  # that of a JPEG of good quality
    assert rows[1]["image"]["bytes"] == (tree / "train/n00/1.JPEG").read_bytes()


@pytest.mark.parametrize("line", ["{file} {name}", "{stem},{name} 85 1 499 272", "{file} {number}"])
def test_validation_images_without_folders_get_the_classes_of_a_list(tree, tmp_path, capsys, line):
    shutil.copytree(tree, flat := tmp_path / "flat")
    lines = ["ImageId,PredictionString"] if "," in line else []
    for path in sorted((flat / "val").glob("*/*.JPEG")):
        file = f"val_{path.parent.name}_{path.name}"
        path.rename(flat / "val" / file)
        number = CLASSES.index(path.parent.name)
        lines.append(line.format(file=file, stem=Path(file).stem, name=path.parent.name, number=number))
    for title in CLASSES:
        (flat / "val" / title).rmdir()
    (flat / "list.txt").write_text("\n".join(lines))
    (flat / "val/unknown.JPEG").write_bytes(encoded(picture(0, 0)))
    prepare(flat, tmp_path / "out", "--val-labels", flat / "list.txt", "--most-rejected", 0.1)
    prepare(tree, tmp_path / "expected")
    pairs = [(row["image"]["bytes"], row["label"]) for row in rows_of(tmp_path / "out", "valid")]
    assert sorted(pairs) == sorted((r["image"]["bytes"], r["label"]) for r in rows_of(tmp_path / "expected", "valid"))
    assert reasons(tmp_path / "out") == {"valid/unknown.JPEG": f"has no class in {flat / 'list.txt'}"}
    (flat / "list.txt").write_text("a.JPEG n99\n")
    said = refused(capsys, IMAGENET.main, "--source", flat, "--out", tmp_path / "b", "--val-labels", flat / "list.txt")
    assert "list.txt:1: 'a.JPEG n99' is not FILE CLASS" in said


def test_a_data_set_of_the_hub_gives_the_same_rows(tree, tmp_path, capsys):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    tables = {}
    for split, folder in (("train", "train"), ("validation", "val")):
        files = sorted((tree / folder).glob("*/*.JPEG"))
        cells = [{"bytes": file.read_bytes(), "path": str(file.relative_to(tree))} for file in files]
        labels = [CLASSES.index(file.parent.name) for file in files]
        tables[split] = datasets.Dataset.from_dict({"img": cells, "label": labels}, features=features)
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    command = ["--hub", str(tmp_path / "saved"), "--out", str(tmp_path / "out")]
    assert "has no column 'image' in train; --image-column can be img, label" in refused(
        capsys, IMAGENET.main, *command
    )
    IMAGENET.main([*command, "--image-column", "img"])
    prepare(tree, tmp_path / "expected")
    for name in ("train", "valid"):
        rows, expected = (rows_of(tmp_path / folder, name) for folder in ("out", "expected"))
        for row, wanted in zip(rows, expected, strict=True):
            assert (row["image"]["bytes"], row["label"]) == (wanted["image"]["bytes"], wanted["label"])


# ---- what is rejected and refused ------------------------------------------------------------------------------------


def deep_png() -> bytes:
    return encoded(Image.fromarray(np.full((30, 30), 40_000, np.uint16)), "PNG")


BROKEN = {
    "truncated.JPEG": (encoded(picture(0, 0, (200, 200)))[:-2000], "is a broken image"),
    "empty.JPEG": (b"", "is a broken image"),
    "page.JPEG": (b"<!DOCTYPE html><html>404</html>", "is a broken image"),
    "deep.png": (deep_png(), "has more than 8 bits a channel"),
    "float.tif": (encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "has more than 8 bits a channel"),
}


def test_broken_and_deep_images_are_named_and_counted_and_refused_beyond_a_share(tree, tmp_path, capsys):
    for name, (content, _) in BROKEN.items():
        (tree / "train/n05" / name).write_bytes(content)
    said = refused(capsys, IMAGENET.main, "--source", tree, "--out", tmp_path / "out")
    assert "9.43 % of train cannot be used, where 0.1 % may be left out; 5 rejected, listed in" in said
    assert "train n05/deep.png (train/n05/deep.png) has more" in said and not (tmp_path / "out").exists()
    info = prepare(tree, tmp_path / "out", "--most-rejected", 0.1)
    assert info["sets"]["train"]["images"] == 48 and info["sets"]["train"]["rejected"] == 5
    found = reasons(tmp_path / "out")
    assert set(found) == {f"train/n05/{name}" for name in BROKEN}
    assert all(reason in found[f"train/n05/{name}"] for name, (_, reason) in BROKEN.items())


def test_grey_palette_and_cmyk_images_become_rgb():
    image = picture(3, 1)
    grey = decode_rgb(encoded(image.convert("L"), "PNG"))
    assert grey.mode == "RGB" and np.array_equal(
        np.asarray(grey), np.asarray(image.convert("L"))[..., None].repeat(3, 2)
    )
    cmyk = np.asarray(decode_rgb(encoded(image.convert("CMYK"), "TIFF")), int)
    assert np.abs(cmyk - np.asarray(image, int)).max() <= 1
    palette = image.quantize(16)
    palette.info["transparency"] = bytes(16)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes(16))
    assert np.array_equal(np.asarray(decode_rgb(buffer.getvalue())), np.asarray(image.quantize(16).convert("RGB")))
    with pytest.raises(ImageError, match="8 bits"):
        decode_rgb(deep_png())


def test_classes_that_only_one_of_the_sets_has_are_named(tree, tmp_path, capsys):
    def said(*options: object) -> str:
        return refused(capsys, IMAGENET.main, "--source", tree, "--out", tmp_path / "out", *options)

    shutil.rmtree(tree / "val/n04")
    for path in (tree / "val/n06").iterdir():
        path.write_bytes(b"broken")
    assert "valid has no usable image of 1 of 8 classes: n04; add some, or prepare what there is with" in said()
    (tree / "val/n04").mkdir()
    (tree / "val/n04/0.JPEG").write_bytes(encoded(picture(4, 0)))
    assert "valid has no usable image of 1 of 8 classes: n06" in said("--most-rejected", 1)
    info = prepare(tree, tmp_path / "out", "--most-rejected", 1, "--partial")
    assert info["sets"]["valid"]["classes"] == 7 and info["sets"]["valid"]["images"] == 13
    shutil.rmtree(tmp_path / "out")
    (tree / "val/n99").mkdir()
    assert f"{tree}/val/n99 is of a class that train/ lacks" in said()
    (tree / "val/n99").rmdir()
    (tree / "train/empty").mkdir()
    assert "train has no usable image of 1 of 9 classes: empty; add some" in said("--partial")


def test_sources_that_are_no_images_by_class_are_refused(tree, tmp_path, capsys):
    def said(source: Path, *options: object) -> str:
        return refused(capsys, IMAGENET.main, "--source", source, "--out", tmp_path / "out", *options)

    assert "train is not a folder; give a --source with train/CLASS/ and val/CLASS/" in said(tree / "train")
    (tmp_path / "bare/train").mkdir(parents=True)
    (tmp_path / "bare/val").mkdir()
    assert "has no folders, one for each class" in said(tmp_path / "bare")
    (tmp_path / "flat/train/n00").mkdir(parents=True)
    (tmp_path / "flat/val").mkdir()
    assert "val has no images in folders, one for each class; give --val-labels" in said(tmp_path / "flat")
    assert "--most-rejected 5.0: a share is" in said(tree, "--most-rejected", 5)
    assert "--shortest-side 0" in said(tree, "--shortest-side", 0)
    assert "cannot be read as text" in said(tree, "--val-labels", tmp_path / "absent")
    assert not (tmp_path / "out").exists()
