"""Prepares ImageNet (Deng et al. 2009), or any images in folders named after their classes, or a data set of the hub.

    python data_prep/imagenet.py --source /corpora/imagenet --out data/imagenet --jobs 8
    python data_prep/imagenet.py --source ILSVRC/Data/CLS-LOC --val-labels LOC_val_solution.csv --out data/imagenet
    python data_prep/imagenet.py --hub /data/my_parquet_folder --out data/mine

A source has train/CLASS/FILE and val/CLASS/FILE, where files may lie in further folders below that of their class. The
validation images may also lie in val/ itself, as they come, with a file that gives the class of each: a line
"FILE CLASS", or "FILE,CLASS …", where the class is the name of its folder, or its number in their order. Images are
kept byte for byte, or reduced with --shortest-side. Grey, palette and CMYK images become RGB when they are decoded;
those with more than 8 bits a channel are rejected, as those that are broken, and whatever is no regular file.
"""

import argparse
import os
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from seqssgd.data.hub import add_paths_option, as_files, choose_splits, holding, load_hub, own_folders, sources
from seqssgd.data.image_rows import KIND, LabelledImage, check_classes, image_form, read_file, read_row
from seqssgd.data.items import NOWHERE, printable
from seqssgd.data.lines import read_lines
from seqssgd.data.prepared import read_sets
from seqssgd.data.preparing import add_arguments, allowed_share, note_newer, rejections, source_paths, write_sets
from seqssgd.data.shards import Rejected
from seqssgd.errors import UserError, run_cli

VALIDATION = ("val", "valid", "validation")
Listing = tuple[list[str], dict[str, list[LabelledImage]], list[Rejected]]  # classes, sets, and what is left out


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    limit = allowed_share(args)
    if args.shortest_side is not None and args.shortest_side < 1:
        raise UserError(f"--shortest-side {args.shortest_side}: it must have at least 1 pixel")
    if args.val_labels is not None and args.source is None:
        raise UserError("--val-labels goes with --source; a data set of the hub has its labels in a column")
    classes, sets, rejected = read_hub(args) if args.source is None else read_folder(args)
    may_lack = ("valid",) if args.partial else ()
    for name in ("train",) if args.partial else ("train", "valid"):
        check_classes(name, classes, Counter(str(image.label) for image in sets[name]))
    name, form = args.name or args.hub or args.source.resolve().name, image_form(classes, may_lack)
    info = {"classes": classes, "shortest_side": args.shortest_side}
    written = write_sets(args.out, sets, form, name, rejected, jobs=args.jobs, info=info, most_rejected=limit,
                         sources=source_paths(args))  # fmt: skip
    if not written:
        print(f"{args.out} is already prepared from these images with these settings; nothing to do")
        note_newer(args.out, args)
    print(summary(args.out))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Prepare ImageNet, or any images by class, for image classifiers.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--source", type=Path, metavar="DIR", help="folder with train/CLASS/ and val/CLASS/")
    source.add_argument("--hub", metavar="NAME", help="name of a data set on the Hugging Face hub, or a local path")
    add_arguments(parser, most_rejected=0.001)
    parser.add_argument("--name", help="what messages call the images (default: the source's name)")
    parser.add_argument("--val-labels", type=Path, metavar="FILE", help="the classes of images that lie in val/ itself")
    parser.add_argument("--shortest-side", type=int, metavar="N",
                        help="reduce larger images to N pixels on the shorter side (default: keep all)")  # fmt: skip
    parser.add_argument("--partial", action="store_true", help="allow classes without validation images")
    parser.add_argument("--hub-config", metavar="NAME", help="configuration of the data set")
    parser.add_argument("--splits", nargs="+", metavar="SET=SPLIT", default=[],
                        help="its train and valid set (default: by their usual names)")  # fmt: skip
    parser.add_argument("--image-column", default="image", metavar="COLUMN", help="images (default: image)")
    add_paths_option(parser)
    parser.add_argument("--label-column", default="label", metavar="COLUMN", help="classes (default: label)")
    return parser


def summary(folder: Path) -> str:
    """What a prepared folder holds, one line per set, and what was left out for which reasons."""
    info = read_sets(folder, KIND)
    rows = [f"{folder.resolve()}: {info['name']}, {len(info['classes']):,} classes"]
    for name, count in info["sets"].items():
        gigabytes = sum(count["files"].values()) / 1e9
        rows.append(f"  {name:<6}{count['images']:>10,} images of {count['classes']:,} classes, "
                    f"{count['smallest_class']:,} or more of each, {gigabytes:,.3f} GB")  # fmt: skip
    return "\n".join([*rows, rejections(folder)])


# ---- folders ---------------------------------------------------------------------------------------------------------


def read_folder(args: argparse.Namespace) -> Listing:
    """The images below train/ and val/, in the order of their names."""
    folders = {"train": args.source / "train"}
    folders["valid"] = next((args.source / name for name in VALIDATION if (args.source / name).is_dir()),
                            args.source / "val")  # fmt: skip
    for folder in folders.values():
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give a --source with train/CLASS/ and val/CLASS/")
    classes = sorted(path.name for path in folders["train"].iterdir() if path.is_dir() and path.name[0] != ".")
    if not classes:
        raise UserError(f"{folders['train']} has no folders, one for each class; give the folder above train/ and val/")
    labels = {name: label for label, name in enumerate(classes)}
    train, rejected = list_classes("train", folders["train"], labels, args)
    if args.val_labels is None:
        valid, left_out = list_classes("valid", folders["valid"], labels, args)
        if not valid:
            raise UserError(f"{folders['valid']} has no images in folders, one for each class; give --val-labels FILE")
    else:
        valid, left_out = list_flat(folders["valid"], labels, args)
    return [printable(name) for name in classes], {"train": train, "valid": valid}, rejected + left_out


def list_classes(
    name: str, folder: Path, labels: dict[str, int], args: argparse.Namespace
) -> tuple[list[LabelledImage], list[Rejected]]:
    """Every file at any depth of a folder that is named after a class, and what is none."""
    images, rejected = [], []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            reason = NOWHERE if not entry.exists() else "lies in no folder of a class"
            rejected.append(Rejected(name, printable(entry.name), _where(entry, args), reason))
            continue
        if entry.name not in labels:
            raise UserError(f"{entry} is of a class that train/ lacks; add it there, or remove it")
        found, left_out = _files(name, entry, args)
        rejected += left_out
        images += [_image(str(path.relative_to(folder)), labels[entry.name], path, size, args) for path, size in found]
    return images, rejected


def list_flat(
    folder: Path, labels: dict[str, int], args: argparse.Namespace
) -> tuple[list[LabelledImage], list[Rejected]]:
    """Every file in the folder itself, with the class that the list of classes gives it."""
    known = read_labels(args.val_labels, labels)
    images = []
    found, rejected = _files("valid", folder, args)
    for path, size in found:
        label = known.get(path.name, known.get(path.stem))
        if label is None:
            reason = f"has no class in {args.val_labels}"
            rejected.append(Rejected("valid", printable(path.name), _where(path, args), reason))
        else:
            images.append(_image(path.name, label, path, size, args))
    if not images:
        raise UserError(f"{folder} holds none of the images that {args.val_labels} names; give the list of its classes")
    return images, rejected


def read_labels(file: Path, labels: dict[str, int]) -> dict[str, int]:
    """The class of every image that a list names."""
    try:
        lines = read_lines(file)
    except UserError as error:
        raise UserError(f"--val-labels {file} cannot be read as text ({error})") from None
    found, numbers = {}, {str(label): label for label in labels.values()}
    for number, line in enumerate(lines, 1):
        words = re.split(r"[\s,]+", line.strip())
        if words == [""] or words[0] == "ImageId":  # the title of Kaggle's table
            continue
        label = labels.get(words[1], numbers.get(words[1])) if len(words) > 1 else None
        if label is None:
            raise UserError(f"{file}:{number}: {line.strip()!r} is not FILE CLASS with a class of train/")
        found[words[0]] = label
    return found


def _files(name: str, folder: Path, args: argparse.Namespace) -> tuple[list[tuple[Path, int]], list[Rejected]]:
    """The files at any depth of a folder and their sizes, by name, but for hidden ones; and what is no regular file."""
    found, rejected, seen = [], [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        if (here := os.path.realpath(parent)) in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(here)
        for path in sorted(Path(parent, name) for name in names if not name.startswith(".")):
            if path.is_file():
                found.append((path, path.stat().st_size))
            else:
                reason = NOWHERE if not path.exists() else "is no regular file"
                rejected.append(Rejected(name, printable(path.name), _where(path, args), reason))
    return sorted(found), rejected


def _where(path: Path, args: argparse.Namespace) -> str:
    return printable(str(path.relative_to(args.source)))


def _image(key: str, label: int, path: Path, size: int, args: argparse.Namespace) -> LabelledImage:
    read = partial(read_file, path.resolve())
    return LabelledImage(printable(key), label, _where(path, args), size, args.shortest_side, read)


# ---- the hub ---------------------------------------------------------------------------------------------------------


def read_hub(args: argparse.Namespace) -> Listing:
    """The images of a data set with columns of images and labels."""
    loaded = load_hub(args.hub, args.hub_config)
    chosen = choose_splits(loaded, args.splits, args.hub)
    if not {"train", "valid"} <= set(chosen):
        raise UserError(f"--hub {args.hub} has no train and valid set; name them with --splits train=SPLIT valid=SPLIT")
    sets, rejected, classes = {}, [], None
    for name in ("train", "valid"):
        table = loaded[chosen[name]]
        for option in ("image_column", "label_column"):
            if getattr(args, option) not in table.column_names:
                flag = f"--{option.replace('_', '-')}"
                raise UserError(f"--hub {args.hub} has no column {getattr(args, option)!r} in {name}; "
                                f"{flag} can be {', '.join(table.column_names)}")  # fmt: skip
        labels = list(table[args.label_column])
        if any(label is not None and not isinstance(label, int) for label in labels):
            raise UserError(f"--hub {args.hub}: column {args.label_column!r} holds no whole numbers; "
                            "--label-column chooses another")  # fmt: skip
        names = getattr(table.features[args.label_column], "names", None)
        count = 1 + max((label for label in labels if label is not None), default=-1)
        classes = classes or names or [str(label) for label in range(count)]
        sets[name], left_out = read_split(name, table, labels, len(classes), args)
        rejected += left_out
    return classes, sets, rejected


def read_split(
    name: str, table, labels: list[int | None], classes: int, args: argparse.Namespace
) -> tuple[list[LabelledImage], list[Rejected]]:
    """The images of a split (a ``datasets.Dataset``), and what is left out."""
    import datasets

    with holding(args.hub, args.image_column, "images", "--image-column"):
        images = as_files(table, args.image_column, datasets.Image(decode=False))
        sizes, paths = sources(images, args.image_column)
    kept, rejected = [], []
    for i, (label, path, size) in enumerate(zip(labels, paths, sizes, strict=True)):
        key, path = f"{name}-{i:07d}", path or f"{name}/{i}"
        if label is None or not 0 <= label < classes:
            rejected.append(Rejected(name, key, path, f"has the label {label}, where there are {classes:,} classes"))
        else:
            read = partial(read_row, images, i, args.image_column, own_folders(args.hub, args.any_path))
            kept.append(LabelledImage(key, label, path, size, args.shortest_side, read))
    return kept, rejected


if __name__ == "__main__":
    sys.exit(run_cli(main))
