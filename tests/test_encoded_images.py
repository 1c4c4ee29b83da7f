"""Images that stay encoded: the pieces that are cut out of them, and minibatches from anywhere."""

import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from picture_folders import CLASSES, encoded, picture, prepared_tree
from PIL import Image

from seqssgd.data.encoded_images import (
    MEAN,
    STD,
    TRIES,
    EncodedDataset,
    RandomPieces,
    central_box,
    load_encoded,
    random_box,
)
from seqssgd.data.images import Normalization
from seqssgd.data.pictures import decode_rgb
from seqssgd.errors import UserError

SIZE = 24
NORMAL = Normalization(MEAN, STD)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> EncodedDataset:
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield load_encoded(prepared_tree(folder))


def originals(dataset: EncodedDataset) -> list[tuple[int, Image.Image]]:
    """Class and image of every row of the training set, straight from the files it was prepared from."""
    files = sorted((dataset.folder.parent / "tree/train").glob("*/*.JPEG"))
    return [(CLASSES.index(file.parent.name), decode_rgb(file.read_bytes())) for file in files]


# ---- pieces ----------------------------------------------------------------------------------------------------------


def test_random_pieces_are_as_large_and_as_wide_as_they_may_be_and_lie_everywhere():
    width, height, boxes = 500, 400, []
    for draws in torch.rand(3000, TRIES, 4):
        boxes.append(random_box(width, height, draws))
    left, top, right, bottom = np.array(boxes).T
    assert left.min() == 0 and top.min() == 0 and right.max() == width and bottom.max() == height
    area, ratio = (right - left) * (bottom - top) / (width * height), (right - left) / (bottom - top)
    assert 0.079 < area.min() < 0.1 and 0.85 < area.max() <= 1
    assert 0.745 < ratio.min() < 0.76 and 1.31 < ratio.max() < 1.34
    # areas are uniform where all of them fit, ratios are as often above 1 as below it
    small = area < 0.5
    assert area[small].mean() == pytest.approx(0.29, abs=0.015)
    assert np.median(ratio[small]) == pytest.approx(1, abs=0.03)
    whole = [random_box(300, 300, draws, smallest_area=1.0) for draws in torch.rand(50, TRIES, 4)]
    assert all((r - x) * (b - y) > 0.74 * 300 * 300 for x, y, r, b in whole)


def test_the_first_try_that_fits_is_taken_and_the_middle_if_none_does():
    draws = torch.full((TRIES, 4), 0.999)  # all but the whole area, 4/3 wide: too wide for a square
    draws[3] = torch.tensor([0.0, 0.5, 0.999, 0.0])  # the smallest square, at the right edge
    side = round(math.sqrt(0.08 * 100 * 100))
    assert random_box(100, 100, draws) == (100 - side, 0, 100, side)
    draws[3] = draws[0]
    assert random_box(100, 100, draws) == (0, 0, 100, 100)
    assert random_box(1000, 30, draws) == (480, 0, 520, 30)
    assert random_box(30, 1000, torch.full((TRIES, 4), 0.99)) == (0, 480, 30, 520)


def test_the_central_piece_is_what_resizing_and_cutting_gives():
    image = picture(5, 0, (6, 8)).resize((600, 800), Image.Resampling.BICUBIC)  # smooth
    expected = image.resize((256, 341), Image.Resampling.BILINEAR).crop((16, 58, 240, 282))
    found = image.resize((224, 224), Image.Resampling.BILINEAR, central_box(*image.size))
    difference = np.abs(np.asarray(found, int) - np.asarray(expected, int))
    other = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR), int)
    assert difference.max() <= 2 and np.abs(other - np.asarray(expected, int)).max() > 10


# ---- minibatches -----------------------------------------------------------------------------------------------------


def batches(dataset: EncodedDataset, workers: int = 1, **settings) -> RandomPieces:
    return RandomPieces(dataset.split("train", SIZE, workers), NORMAL, settings.pop("batch_size", 8), **settings)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_image_is_a_piece_of_one_with_its_label(prepared):
    """Each image of an epoch is found among all pieces that its draws could have made of it, mirrored or not."""
    images, found, mirrored = originals(prepared), set(), 0
    made = batches(prepared, smallest_area=0.3)
    order = torch.randperm(48, generator=made.generator("images", 2)).tolist()
    for index, (pieces, labels) in enumerate(made.epoch(2)):
        draws = torch.rand(8, TRIES, 4, generator=made.generator("pieces", 2, index))
        for number, (piece, label) in enumerate(zip(pieces, labels, strict=True)):
            row = order[8 * index + number]
            expected_label, image = images[row]
            box = tuple(map(int, random_box(*image.size, draws[number], 0.3)))
            cut = np.array(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box))
            expected = NORMAL(torch.from_numpy(cut).permute(2, 0, 1)[None])[0]
            assert label == expected_label
            assert torch.equal(piece, expected) or torch.equal(piece, expected.flip(2))
            mirrored += torch.equal(piece, expected.flip(2))
            found.add(row)
    assert found == set(range(48)) and 12 < mirrored < 36


def test_an_epoch_can_begin_anywhere_with_any_number_of_threads(prepared):
    whole = list(batches(prepared, seed=3).epoch(1))
    assert len(whole) == 6 and not same(whole[0], next(batches(prepared, seed=4).epoch(1)))
    assert not same(whole[0], next(batches(prepared, seed=3).epoch(0)))
    for workers, ahead, start in ((1, 0, 2), (3, 2, 4), (2, 5, 0)):
        torch.manual_seed(workers)
        rest = list(batches(prepared, workers, seed=3, ahead=ahead).epoch(1, start))
        assert len(rest) == 6 - start and all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_processes_share_every_minibatch(prepared):
    whole = list(batches(prepared).epoch(0))
    parts = [list(batches(prepared, rank=rank, world_size=4).epoch(0)) for rank in range(4)]
    for index, batch in enumerate(whole):
        joined = [torch.cat(tensors) for tensors in zip(*(part[index] for part in parts), strict=True)]
        assert same(joined, batch)


def test_central_pieces_come_in_order(prepared):
    data = prepared.split("train", SIZE)
    everything = [torch.cat(tensors) for tensors in zip(*data.batches(10), strict=True)]
    assert everything[0].shape == (48, 3, SIZE, SIZE) and everything[1].tolist() == [
        label for label, _ in originals(prepared)
    ]
    _, image = originals(prepared)[7]
    expected = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, central_box(*image.size))
    assert np.array_equal(everything[0][7].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_there_are_no_more_decoders_than_cores(prepared, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    for workers, threads in ((1, 1), (3, 3), (100_000, 3)):
        assert prepared.split("valid", 8, workers)._pool._max_workers == threads


def test_impossible_settings_are_refused(prepared):
    for settings, reason in (
        ({"batch_size": 49}, "more than the 48 training images"),
        ({"smallest_area": 0.0}, "smallest_area: 0.0"),
        ({"ahead": -1}, "ahead: -1"),
        ({"batch_size": 9, "world_size": 2}, "do not divide among 2"),
    ):
        with pytest.raises(UserError, match=reason):
            batches(prepared, **settings)


def test_images_that_do_not_decode_any_more_are_named(prepared, monkeypatch):
    data = prepared.split("train", SIZE)
    broken = encoded(picture(0, 0))[:-300]
    cells = [{"bytes": encoded(picture(0, 1))}, {"bytes": broken}]
    monkeypatch.setattr(data, "_images", type("Rows", (), {"__getitem__": lambda self, rows: {"image": cells}})())
    with pytest.raises(UserError, match="train, row 9 is a broken image .*; prepare the images again"):
        data.pieces([4, 9])


def test_folders_that_are_not_prepared_images_are_refused(tmp_path, prepared):
    for folder, reason in ((tmp_path / "absent", "does not exist"), (tmp_path, "holds no prepared images")):
        with pytest.raises(UserError, match=reason):
            load_encoded(folder)
    (tmp_path / "dataset.json").write_text((Path(prepared.folder) / "dataset.json").read_text())
    with pytest.raises(UserError, match="train.parquet is missing; remove"):
        load_encoded(tmp_path)
