"""Prepared images: the folder and what guards it, augmentation one image at a time, minibatches from anywhere."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch

from seqssgd.data.images import (
    AugmentedBatches,
    ImageSet,
    Normalization,
    crop_and_flip,
    load_images,
    write_image_dataset,
)
from seqssgd.data.prepared import with_checksum
from seqssgd.errors import UserError


def drawn(count: int, seed: int = 0, size: int = 8) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, size, size + 2), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % 5)


def write(out, train=50, test=20, classes=tuple("abcde")) -> bool:
    sets = {name: drawn(count, count) for name, count in (("train", train), ("test", test))}
    arrays = {name: (part.images.numpy(), part.labels.numpy()) for name, part in sets.items()}
    return write_image_dataset(out, arrays, "drawn", classes)


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_with_the_statistics_of_the_training_images(tmp_path):
    assert write(tmp_path / "data")
    data = load_images(tmp_path / "data")
    for name, count in (("train", 50), ("test", 20)):
        for written, read in zip(drawn(count, count), data.split(name), strict=True):
            assert torch.equal(written, read) and written.dtype == read.dtype
    values = drawn(50, 50).images.double() / 255
    assert data.info["mean"] == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert data.info["std"] == pytest.approx(values.std((0, 2, 3), correction=0).tolist())
    assert str(data).splitlines()[:2] == [
        f"{tmp_path / 'data'}: drawn, 5 classes",
        "  train        50 images of 8 × 10",
    ]


def test_a_second_call_does_nothing_and_one_with_other_images_is_refused(tmp_path):
    write(tmp_path / "data")
    assert not write(tmp_path / "data")
    for changes in ({"train": 49}, {"test": 19}, {"classes": tuple("abcdf")}):
        with pytest.raises(UserError, match="was prepared from another source"):
            write(tmp_path / "data", **changes)
    (tmp_path / "file").write_text("…")
    with pytest.raises(UserError, match="is not a prepared set of small images"):
        write(tmp_path / "file")


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_folders_that_hold_something_else_or_have_changed_are_refused(tmp_path):
    for folder, reason in ((tmp_path / "absent", "does not exist"), (tmp_path, "holds no prepared images")):
        with pytest.raises(UserError, match=reason):
            load_images(folder)
    write(tmp_path / "data")
    data = load_images(tmp_path / "data")
    path = tmp_path / "data/test.npz"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"test\.npz has changed"):
        data.split("test")
    path.unlink()
    with pytest.raises(UserError, match=r"test\.npz is missing"):
        data.split("test")
    data.split("train")
    (tmp_path / "data/dataset.json").write_text('{"format": 1, "sha256": {"a": ""}, "fingerprint": "f", "splits": {}}')
    with pytest.raises(UserError, match="damaged or of another version or kind .*; choose another folder"):
        load_images(tmp_path / "data")


@pytest.mark.parametrize("how", ["compressed", "no labels", "floats", "short", "label"])
def test_a_set_whose_checksum_is_right_and_whose_arrays_are_not_is_refused(tmp_path, how):
    """As somebody may have made it who wants to fill the memory: deflated zeros stand for a thousand times as many."""
    images, labels = np.zeros((4, 3, 2, 2), np.uint8), np.array([0, 1, 0, 1])
    write_image_dataset(tmp_path / "out", {"train": (images, labels), "test": (images, labels)}, "toy", ["a", "b"])
    file, info = tmp_path / "out/test.npz", json.loads((tmp_path / "out/dataset.json").read_text())
    arrays = {"images": images, "labels": labels}
    changed = {"floats": {"images": images / 2}, "short": {"labels": labels[:3]}, "label": {"labels": labels + 1}}
    arrays |= changed.get(how, {})
    if how == "no labels":
        del arrays["labels"]
    (np.savez_compressed if how == "compressed" else np.savez)(file, **arrays)
    info["sha256"]["test.npz"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "out/dataset.json").write_text(json.dumps(with_checksum(info)))
    with pytest.raises(UserError, match=r"test\.npz holds no images with labels \(.+\); prepare them again"):
        load_images(tmp_path / "out").split("test")


def test_held_out_images_are_the_same_in_every_run_and_leave_the_others():
    data = ImageSet(torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(40))
    train, valid = data.hold_out(15)
    assert len(valid.labels) == 15 and sorted([*train.labels.tolist(), *valid.labels.tolist()]) == list(range(40))
    torch.manual_seed(5)
    for a, b in zip((train, valid), data.hold_out(15), strict=True):
        assert torch.equal(a.labels, b.labels) and torch.equal(a.images.flatten(), a.labels.to(torch.uint8))
    assert valid.labels.tolist() not in (list(range(15)), list(range(25, 40)))  # neither the first nor the last
    assert len(data.hold_out(0)[0].labels) == 40 and len(data.hold_out(0)[1].labels) == 0
    for count in (40, -1):
        with pytest.raises(UserError, match="cannot be held out"):
            data.hold_out(count)


# ---- augmentation ----------------------------------------------------------------------------------------------------


def test_crops_and_flips_are_those_of_one_image_at_a_time():
    images, pad, fill = drawn(40).images, 3, torch.tensor([7, 8, 9], dtype=torch.uint8)
    tops, lefts = torch.randint(7, (2, 40))
    flips = torch.rand(40) < 0.5
    pieces = crop_and_flip(images, pad, tops, lefts, flips, fill)
    for image, top, left, flip, piece in zip(images.numpy(), tops, lefts, flips, pieces.numpy(), strict=True):
        for channel in range(3):
            padded = np.pad(image[channel], pad, constant_values=7 + channel)
            expected = padded[top : top + 8, left : left + 10]
            assert np.array_equal(piece[channel], expected[:, ::-1] if flip else expected)
    assert len(set(tops.tolist())) == len(set(lefts.tolist())) == 7  # every place was tried


def test_normalized_channels_have_mean_zero_and_deviation_one_and_lie_last_in_memory():
    images = drawn(50).images
    values = images.double() / 255
    normalization = Normalization(values.mean((0, 2, 3)).tolist(), values.std((0, 2, 3), correction=0).tolist())
    floats = normalization(images)
    assert floats.dtype == torch.float32 and floats.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(floats.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(floats.std((0, 2, 3), correction=0), torch.ones(3))
    blank = normalization(normalization.fill().view(1, 3, 1, 1))
    assert blank.abs().max() < 0.6 / 255 / values.std()  # what is added around images is as good as 0


# ---- minibatches -----------------------------------------------------------------------------------------------------

NORMAL = Normalization([0.5] * 3, [0.25] * 3)


def batches(count=50, batch_size=8, **settings) -> AugmentedBatches:
    data = drawn(count)
    return AugmentedBatches(ImageSet(data.images, torch.arange(count)), NORMAL, batch_size, **settings)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_epoch_shows_every_image_once_but_for_the_rest_and_in_another_order():
    made = batches()
    assert len(made) == 6
    epochs = [torch.cat([labels for _, labels in made.epoch(epoch)]).tolist() for epoch in range(3)]
    for labels in epochs:
        assert len(labels) == len(set(labels)) == 48
    assert len({tuple(labels) for labels in epochs}) == 3
    assert len({frozenset(labels) for labels in epochs}) > 1  # another rest is left out
    other = torch.cat([labels for _, labels in batches(seed=1).epoch(0)]).tolist()
    assert other != epochs[0]


def test_an_epoch_can_begin_anywhere_and_does_not_depend_on_what_was_drawn_before():
    whole = list(batches().epoch(3))
    made = batches()
    list(made.epoch(0))
    torch.manual_seed(9)
    for start in (0, 1, 5, 6):
        rest = list(made.epoch(3, start))
        assert len(rest) == 6 - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_images_are_cropped_everywhere_and_half_of_them_flipped():
    data, seen, flipped = drawn(40), set(), 0
    made = AugmentedBatches(ImageSet(data.images, torch.arange(40)), NORMAL, 40, pad=1)
    for epoch in range(10):
        (images, labels), = made.epoch(epoch)  # fmt: skip
        for image, label in zip(images, labels, strict=True):
            original = data.images[label][None]
            found = [
                (top, left, flip)
                for top in range(3) for left in range(3) for flip in (False, True)
                if torch.equal(NORMAL(crop_and_flip(original, 1, *torch.tensor([[top], [left]]), torch.tensor([flip]),
                                                    NORMAL.fill()))[0], image)
            ]  # fmt: skip
            assert len(found) == 1
            seen.add(found[0])
            flipped += found[0][2]
    assert len(seen) == 18 and 150 < flipped < 250


def test_without_crop_and_flip_images_come_as_they_are():
    for images, labels in batches(pad=0, flip=False).epoch(0):
        assert torch.equal(images, NORMAL(drawn(50).images[labels]))


def test_processes_share_every_minibatch():
    whole = list(batches().epoch(1))
    parts = [list(batches(rank=rank, world_size=4).epoch(1)) for rank in range(4)]
    for index, batch in enumerate(whole):
        joined = [torch.cat(tensors) for tensors in zip(*(part[index] for part in parts), strict=True)]
        assert same(joined, batch)


def test_impossible_minibatches_are_refused():
    for settings, reason in (
        ({"batch_size": 0}, "batch_size: 0 images"),
        ({"batch_size": 51}, "more than the 50 training images"),
        ({"batch_size": 6, "world_size": 4}, "do not divide among 4"),
        ({"pad": -1}, "pad: -1"),
    ):
        with pytest.raises(UserError, match=reason):
            batches(**settings)
