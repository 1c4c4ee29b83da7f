"""Data sets of the Hugging Face hub, or in its formats on disk."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqssgd.data.lines import MARK, split_lines
from seqssgd.documents import NotTaken, check_keys
from seqssgd.errors import UserError, require

if TYPE_CHECKING:
    import datasets

LARGEST = 2_000_000_000  # bytes of a file that a cell names
SPLITS = {"train": ("train",), "valid": ("validation", "valid", "dev"), "test": ("test",)}  # ours: what they call it


def load_hub(name: str, config: str | None = None) -> Mapping:
    """The splits of a data set (``datasets.Dataset`` by name): one of the hub, a local one, or one saved to disk.

    Raises:
        UserError: the package datasets is not there, or the data set cannot be loaded.
    """
    datasets = require("datasets")
    if Path(name).is_file():
        raise UserError(f"{name} is a file; give the folder of the data set, or its name on the hub")
    _check_card(Path(name))
    _quiet()
    try:
        saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json"))  # by save_to_disk
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except Exception as error:  # the hub, the network, the cache and the data's own reader each raise their own
        error = error.__cause__ or error  # which datasets wraps in one that says no more than that there is one
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "torchcodec" in reason:
            reason = "sound files need a table of them, metadata.csv with the columns file_name and text, beside them"
        here = "" if Path(name).exists() else "; there is no folder of this name here either"
        raise UserError(f"the data set {name} could not be loaded: {reason}{here}") from None
    splits = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    return {name: _without_mark(table) for name, table in splits.items()}


def _quiet() -> None:
    """Leaves it to us to say what goes wrong, and to show progress on terminals alone."""
    import datasets

    datasets.logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _check_card(folder: Path) -> None:
    """Refuses a local data set whose card (README.md) gives a key of its YAML head twice: which files it has would then
    be decided by the last of the two."""
    card = folder / "README.md"
    if not card.is_file():
        return
    lines = split_lines(card.read_text(encoding="utf-8", errors="replace"))
    if lines[:1] == ["---"] and "---" in lines[1:]:
        try:
            check_keys("\n".join(["", *lines[1 : lines.index("---", 1)]]))  # an empty line, so that the numbers agree
        except NotTaken as error:
            raise UserError(f"{card}: {error}") from None


def _without_mark(table):
    """A split whose columns' names have no byte-order mark, which CSV files may begin with."""
    marked = {name: name.removeprefix(MARK) for name in getattr(table, "column_names", []) if name.startswith(MARK)}
    return table.rename_columns(marked) if marked else table


def as_files(table: "datasets.Dataset", column: str, kind: "datasets.Audio | datasets.Image") -> "datasets.Dataset":
    """One column of a data set, as files that are not decoded: their bytes, or the paths to them.

    Strings and bytes may be of the forms for much text that pandas and polars write, or of a dictionary (categories).

    Raises:
        TypeError, ValueError, KeyError, NotImplementedError: the column holds no files.
    """
    import datasets

    table = table.select_columns(column)
    plain = _plain(table.features[column])
    if plain != table.features[column]:
        table = table.cast_column(column, plain)
    elif isinstance(plain, datasets.Value) and plain.dtype.startswith("dictionary"):
        table = table.cast_column(column, datasets.Value("string"))
    return table.cast_column(column, kind)


@contextlib.contextmanager
def holding(name: str, column: str, kind: str, option: str) -> Iterator[None]:
    """Around what takes the files out of a column, as :func:`as_files` and :func:`sources` do.

    Args:
        name: of the data set.
        kind: of what the column is to hold, in words.
        option: that chooses another column.

    Raises:
        UserError: it holds none.
    """
    try:
        yield
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:  # pyarrow's errors are ValueErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--hub {name}: column {column!r} holds no {kind} ({reason}); {option} chooses another"
        ) from None


def _plain(feature):
    """A column's type with ordinary strings and bytes in place of those for much of either."""
    import datasets

    if isinstance(feature, datasets.Value):
        names = {"large_string": "string", "string_view": "string", "large_binary": "binary", "binary_view": "binary"}
        return datasets.Value(names.get(feature.dtype, feature.dtype))
    if isinstance(feature, dict):
        return {name: _plain(entry) for name, entry in feature.items()}
    return feature


def holds_samples(table: "datasets.Dataset", column: str) -> bool:
    """Whether a column has decoded recordings: ``{array, sampling_rate}``, as datasets gives them."""
    feature = table.features[column]
    return isinstance(feature, dict) and {"array", "sampling_rate"} <= set(feature)


def open_parquet(title: str, files: Sequence[Path], unit: str) -> "datasets.Dataset":
    """Parquet files as one memory-mapped data set.

    Args:
        title: what messages call it.
        files: in their order.
        unit: what messages call its rows.

    Raises:
        UserError: there are no rows, or the files cannot be read.
    """
    import datasets
    import datasets.config
    import pyarrow.parquet

    _quiet()
    try:
        if not sum(pyarrow.parquet.read_metadata(file).num_rows for file in files):  # datasets cannot read that
            raise UserError(f"{title} has no {unit}; prepare it again")
        return datasets.load_dataset("parquet", data_files={"set": [str(file) for file in files]}, split="set")
    except UserError:
        raise
    except Exception as error:  # pyarrow and datasets each raise their own
        error = error.__cause__ or error
        if isinstance(error, OSError) and error.errno is not None:
            cache = datasets.config.HF_DATASETS_CACHE
            raise UserError(
                f"{title} cannot be opened: datasets keeps a copy in its cache, {error.filename or cache} "
                f"({error.strerror}); set HF_HOME to a folder that can be written to, with room"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{title} cannot be read as Parquet ({reason}); prepare it again") from None


def choose_splits(loaded: Mapping, wanted: list[str], name: str) -> dict[str, str]:
    """Our names of the sets, and what the data set calls them."""
    if not wanted:
        chosen = {ours: next((split for split in theirs if split in loaded), None) for ours, theirs in SPLITS.items()}
        chosen = {ours: split for ours, split in chosen.items() if split is not None}
    else:
        pairs = [item.partition("=") for item in wanted]
        chosen = {ours: theirs if equals else ours for ours, equals, theirs in pairs}
    absent = [split for split in chosen.values() if split not in loaded]
    if absent or not chosen:
        lacks = f"has no split {', '.join(absent)}" if absent else "has no split of the usual names"
        raise UserError(f"the data set {name} {lacks}; its splits are {', '.join(sorted(map(str, loaded)))}")
    return chosen


def add_paths_option(parser: argparse.ArgumentParser) -> None:
    """The option that lets cells name files anywhere."""
    parser.add_argument("--any-path", action="store_true",
                        help="read files that cells name outside the folder of the data set, too")  # fmt: skip


def own_folders(name: str, anywhere: bool) -> tuple[str, ...] | None:
    """Below which folders cells of a data set may name files: its own, or where what came from the hub is kept; None
    for everywhere."""
    import datasets.config
    import huggingface_hub.constants

    if anywhere:
        return None
    config = datasets.config
    kept = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, huggingface_hub.constants.HF_HUB_CACHE)
    folders = (name,) if Path(name).is_dir() else kept
    return tuple(os.path.realpath(folder) for folder in folders)


def why_not_read(path: str | Path, folders: Collection[str] | None) -> str | None:
    """Why the file that a cell names is left alone, before it is opened; None if it may be read.

    A cell may name anything: a device or a pipe would never end, and a private file would become a part of the set.

    Args:
        path: the file's.
        folders: below which it must be, links followed (see :func:`own_folders`); None: anywhere.
    """
    path = Path(path)
    real = Path(os.path.realpath(path))
    if folders is not None and path.exists() and not any(real.is_relative_to(folder) for folder in folders):
        return "names a file outside the folder of the data set, which is read with --any-path only"
    if path.exists() and not path.is_file():
        return "names what is no ordinary file"
    if path.is_file() and path.stat().st_size > LARGEST:
        return f"names a file of {path.stat().st_size:,} bytes, more than the {LARGEST:,} that one may have"
    return None


def sources(audio, column: str) -> tuple[list[int], list[str | None]]:
    """For every row of a column of encoded files, the file's bytes and the path it had, without reading the files."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # most of its functions are made when it is imported
    cells = audio.with_format("arrow")[:][column]
    paths = pc.struct_field(cells, "path").to_pylist()
    sizes = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
    for i, (size, path) in enumerate(zip(sizes, paths, strict=True)):
        if size is None:
            sizes[i] = Path(path).stat().st_size if path and Path(path).is_file() else 0
    return sizes, paths
