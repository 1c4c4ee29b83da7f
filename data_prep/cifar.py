"""Prepares CIFAR-10 or CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32×32 pixels.

    python data_prep/cifar.py --source cifar-10-python.tar.gz --out data/cifar10

The source is one of Krizhevsky's archives, python or binary, whose md5 is checked; a folder where one was unpacked, of
whose python files it is checked, too; or a folder with a copy in Parquet files, as they are on the Hugging Face hub
(train*.parquet and test*.parquet). Archives are read without unpacking them, and pickles without running what they ask
for.
"""

import argparse
import hashlib
import io
import os
import pickle
import pickletools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssgd.data import pictures
from seqssgd.data.archives import read_members
from seqssgd.data.images import load_images, write_image_dataset
from seqssgd.data.progress import ProgressBar
from seqssgd.documents import parse_json
from seqssgd.errors import UserError, run_cli
from seqssgd.kinds import misfit

IMAGES = {"train": 50_000, "test": 10_000}
SIZE, PIXELS = 32, 3 * 32 * 32
LARGEST = 200_000_000  # bytes of a file; the largest of the true ones has 155 million
Sets = dict[str, tuple[np.ndarray, np.ndarray]]  # images (N, 3, 32, 32) of uint8 and labels (N,) of each


@dataclass(frozen=True)
class Form:
    """How one of Krizhevsky's archives is made: its md5, the files of each set, that with the names of the classes, and
    where the labels are: their key in a pickle, or the number of bytes before each image, of which the last is it.

    ``md5s`` are those of its files in their order, as torchvision's CIFAR10 and CIFAR100 have them; none are published
    of the binary ones.
    """

    title: str
    md5: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: str
    labels: str | int
    md5s: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, *self.test, self.classes)


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
FORMS = {
    "cifar-10-python.tar.gz": Form(
        "CIFAR-10", "c58f30108f718f92721af3b95e74349a", BATCHES, ("test_batch",), "batches.meta", "labels",
        ("c99cafc152244af753f735de768cd75f", "d4bba439e000b95fd0a9bffe97cbabec", "54ebc095f3ab1f0389bbae665268c751",
         "634d18415352ddfa80567beed471001a", "482c414d41f54cd18b22e5b47cb7c3cb", "40351d587109b95175f43aff81a1287e",
         "5ff9c542aee3614f3951f8cda6e48888"),
    ),
    "cifar-10-binary.tar.gz": Form(
        "CIFAR-10", "c32a1d4ab5d03f1284b67883e8d87530", tuple(f"{name}.bin" for name in BATCHES), ("test_batch.bin",),
        "batches.meta.txt", 1,
    ),
    "cifar-100-python.tar.gz": Form(
        "CIFAR-100", "eb9058c3a382ffc7106e4002c42a8d85", ("train",), ("test",), "meta", "fine_labels",
        ("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc", "7973b15100ade9c7d40fb424638fde48"),
    ),
    "cifar-100-binary.tar.gz": Form(
        "CIFAR-100", "03b5dce01913d631647c71ecec9e9cb8", ("train.bin",), ("test.bin",), "fine_label_names.txt", 2
    ),
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Prepare CIFAR-10 or CIFAR-100 for image classifiers.")
    parser.add_argument("--source", type=Path, required=True, help="Krizhevsky's archive, or a folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for example data/cifar10")
    args = parser.parse_args(argv)
    if args.source.is_dir() and (files := parquet_files(args.source)):
        name, sets, classes = read_parquet(files)
    else:
        form, contents = read_folder(args.source) if args.source.is_dir() else read_archive(args.source)
        name, sets, classes = form.title, *decode(form, contents, args.source)
        if args.source.is_dir():
            check_files(form, contents, args.source)
    check(sets, classes, args.source)
    if not write_image_dataset(args.out, sets, name, classes):
        print(f"{args.out} is already prepared from these images; nothing to do")
    print(load_images(args.out))
    if "JPEG" in name:
        print("  note: these images went through JPEG; compare methods on them, but not with published accuracies")


def check(sets: Sets, classes: list[str], source: Path) -> None:
    """Raises a ``UserError`` that says everything in which the sets differ from Krizhevsky's."""
    wrong = []
    for split, expected in IMAGES.items():
        labels = sets[split][1]
        outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        counts = np.bincount(labels[(labels >= 0) & (labels < len(classes))], minlength=len(classes))
        if len(labels) != expected:
            wrong.append(f"{len(labels):,} {split} images, expected {expected:,}")
        if len(outside):
            first = outside[0]
            wrong.append(f"label {labels[first]} at {split} image {first}, where there are {len(classes)} classes")
        elif len(set(counts.tolist())) > 1:
            few = counts.argmin()
            wrong.append(f"{counts[few]:,} {split} images of {classes[few]!r}, and {counts.max():,} of another class")
    if wrong:
        raise UserError(f"{source} is not the usual CIFAR: {'; '.join(wrong)}; take Krizhevsky's archive, unchanged")


# ---- Krizhevsky's archives -------------------------------------------------------------------------------------------


def read_archive(source: Path) -> tuple[Form, dict[str, bytes]]:
    """The form of an archive, which its md5 tells, and the contents of its files; nothing is unpacked to disk."""
    try:
        with open(source, "rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); give {', '.join(FORMS)}, or a folder") from None
    form = next((form for form in FORMS.values() if form.md5 == md5), None)
    if form is None:
        known = FORMS.get(source.name)
        wanted = f"not {known.md5}" if known else f"which none of {', '.join(FORMS)} has"
        raise UserError(
            f"{source} has md5 {md5}, {wanted}; download it again, or give the folder where it was unpacked"
        )
    return form, _complete(form, read_members(source, form.files, LARGEST), source)


def read_folder(source: Path) -> tuple[Form, dict[str, bytes]]:
    """The form and the contents of the data set in the folder, ``source`` or one below it, that holds most of one."""
    places = [
        (form, Path(folder), set(form.files) & set(names))
        for folder, _, names in sorted(os.walk(source))
        for form in FORMS.values()
    ]
    form, folder, found = max(places, key=lambda place: len(place[2]) / len(place[0].files))
    present = [name for name in found if (folder / name).is_file()]  # and no link to nothing
    return form, _complete(form, {name: (folder / name).read_bytes() for name in present}, source)


def check_files(form: Form, contents: dict[str, bytes], source: Path) -> None:
    """Raises a ``UserError`` that names the files of an unpacked archive that are not the true ones."""
    if not form.md5s:
        print(f"note: {source}: no checksums of these files are published; give the archive to have them checked")
    damaged = [
        f"{name} has md5 {found}, not {md5}"
        for name, md5 in zip(form.files, form.md5s, strict=bool(form.md5s))
        if (found := hashlib.md5(contents[name]).hexdigest()) != md5
    ]
    if damaged:
        raise UserError(
            f"{source}: {'; '.join(damaged)}; unpack Krizhevsky's archive again, or give the archive itself"
        )


def _complete(form: Form, contents: dict[str, bytes], source: Path) -> dict[str, bytes]:
    missing = [name for name in form.files if name not in contents]
    if len(missing) == len(form.files):
        raise UserError(f"{source} holds no CIFAR; give {', '.join(FORMS)}, a folder where one was unpacked, or one "
                        "with train*.parquet and test*.parquet")  # fmt: skip
    if missing:
        raise UserError(f"{source}: {', '.join(missing)} of {form.title} not found; take all files of the archive")
    return contents


def decode(form: Form, contents: dict[str, bytes], source: Path) -> tuple[Sets, list[str]]:
    """The sets and the names of the classes that the files of an archive hold."""
    sets = {}
    for split, names in (("train", form.train), ("test", form.test)):
        read = read_records if isinstance(form.labels, int) else read_pickle
        parts = [read(contents[name], form.labels, f"{source}: {name}") for name in names]
        sets[split] = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if isinstance(form.labels, int):
        return sets, contents[form.classes].decode("latin-1").split()
    classes = unpickle(contents[form.classes], where := f"{source}: {form.classes}").get(
        form.labels.removesuffix("s") + "_names"
    )
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{where} does not hold the names of the classes; take Krizhevsky's archive, unchanged")
    return sets, classes


def read_records(content: bytes, before: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a file of records: ``before`` bytes, of which the last is the label, and an image each."""
    if not content or len(content) % (before + PIXELS):
        raise UserError(f"{where} is cut off: {len(content):,} bytes make no whole images; download it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, before + PIXELS)
    return records[:, before:].reshape(-1, 3, SIZE, SIZE), records[:, before - 1].astype(np.int64)


def read_pickle(content: bytes, key: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a pickled dictionary with the entries ``data`` and ``key``."""
    batch = unpickle(content, where)
    images, labels = batch.get("data"), batch.get(key)
    if (
        not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (PIXELS,))
        or not (isinstance(labels, list) and all(isinstance(label, int) and abs(label) < 2**31 for label in labels))
        or len(images) != len(labels)
    ):
        raise UserError(f"{where} does not hold images and labels; take Krizhevsky's archive, unchanged")
    return images.reshape(-1, 3, SIZE, SIZE), np.array(labels, np.int64)


class _Unpickler(pickle.Unpickler):
    """Knows the three names that arrays of numpy are pickled with, and no other."""

    NAMES = {
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, as no file of CIFAR does")
        return self.NAMES[module, name]


def unpickle(content: bytes, where: str) -> dict:
    """A pickled dictionary of numbers, texts and arrays; nothing else is loaded, and nothing is run."""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            # the unpickler makes room for as many values as the highest number that one is put aside under
            if opcode.name == "LONG_BINPUT" and argument > len(content):
                raise pickle.UnpicklingError(f"it numbers a value {argument:,}")
        value = _Unpickler(io.BytesIO(content), encoding="latin-1").load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
        return value
    except Exception as error:  # a damaged pickle makes the unpickler, or numpy, raise almost anything
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{where} is cut off or not of CIFAR ({reason}); take Krizhevsky's archive, unchanged"
        ) from None


# ---- copies in Parquet -----------------------------------------------------------------------------------------------


def parquet_files(source: Path) -> dict[str, list[Path]]:
    """The Parquet files of each set below ``source``; empty if there are none of one."""
    files = {split: sorted(source.rglob(f"{split}*.parquet")) for split in IMAGES}
    return files if all(files.values()) else {}


def read_parquet(files: dict[str, list[Path]]) -> tuple[str, Sets, list[str]]:
    """Name, sets and classes of a copy whose rows are an encoded image and a label."""
    tables = {split: [_read_table(path) for path in paths] for split, paths in files.items()}
    sets, formats, classes = {}, set(), None
    with ProgressBar(sum(len(table) for parts in tables.values() for table, _ in parts), unit="images") as progress:
        for split, parts in tables.items():
            images, labels = [], []
            for (table, names), path in zip(parts, files[split], strict=True):
                classes = classes or names
                labels += table["label"].to_pylist()
                for row, cell in enumerate(table["image"].to_pylist()):
                    image, encoding = decode_image((cell or {}).get("bytes"), f"{path}, row {row}")
                    images.append(image)
                    formats.add(encoding)
                    progress.advance()
            if None in labels:
                raise UserError(f"{path.parent}: {split} image {labels.index(None)} has no label; use another copy")
            sets[split] = np.array(images, np.uint8).reshape(-1, 3, SIZE, SIZE), np.array(labels, np.int64)
    classes = classes or [str(number) for number in range(int(sets["train"][1].max(initial=-1)) + 1)]
    return f"CIFAR-{len(classes)}{' through JPEG' if 'JPEG' in formats else ''}", sets, classes


def _read_table(path: Path):
    """The columns ``image`` and ``label`` of a file, and the names of the classes if datasets left them there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no Parquet file, or damaged ({str(error).splitlines()[0]}); get it again") from None
    image = next((field for field in table.schema if field.name in ("img", "image")), None)
    label = next((field for name in ("fine_label", "label") for field in table.schema if field.name == name), None)
    is_image = image is not None and pa.types.is_struct(image.type) and image.type.get_field_index("bytes") >= 0
    if not is_image or label is None or not pa.types.is_integer(label.type):
        raise UserError(
            f"{path} has the columns {', '.join(table.column_names)}; encoded images (img or image) and whole numbers "
            "(label or fine_label) are needed"
        )
    try:
        entry = parse_json((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", label.name, "names"):
            entry = entry.get(key, {}) if isinstance(entry, dict) else {}
        wrong = misfit(list[str], entry) if entry != {} else None
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise UserError(f"{path}: what datasets has written of its classes is damaged ({wrong}); get it again")
    return table.select([image.name, label.name]).rename_columns(["image", "label"]), entry or None


def decode_image(content: bytes | None, where: str) -> tuple[np.ndarray, str]:
    """An encoded image as (3, 32, 32) of uint8, and the format it was in."""
    try:
        image, deep = pictures.decode(content or b"")
    except pictures.ImageError as error:
        raise UserError(f"{where} {error}; use another copy") from None
    if image.mode != "RGB" or image.size != (SIZE, SIZE) or deep:
        what = f"{image.width} × {image.height} pixels of mode {image.mode}{' and 16 bits' if deep else ''}"
        raise UserError(f"{where}: {what}, not {SIZE} × {SIZE} of RGB with 8 bits; use another copy")
    return np.asarray(image).transpose(2, 0, 1), image.format


if __name__ == "__main__":
    sys.exit(run_cli(main))
