"""What the rows of prepared images are that stay encoded, and how a labelled image becomes one."""

import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from seqssgd.data.contents import of_item
from seqssgd.data.hub import why_not_read
from seqssgd.data.items import printable
from seqssgd.data.pictures import ImageError, decode_rgb
from seqssgd.data.shards import Form
from seqssgd.errors import UserError

if TYPE_CHECKING:
    import datasets

KIND = "set of images"
QUALITY = 95  # of JPEGs that are written anew


@dataclass(frozen=True)
class LabelledImage:
    """One row to be: ``read`` gives the encoded image (or raises ``ImageError``) and goes to another process by pickle.

    Attributes:
        id: names it within its set.
        label: the number of its class.
        path: where it is from.
        size: its bytes; with the path it says whether it is still the same one in a rerun.
        shortest_side: pixels to which larger images are reduced; None: all are kept as they are, byte for byte.
        read: gives the encoded image.
    """

    id: str
    label: int
    path: str
    size: int
    shortest_side: int | None
    read: Callable[[], bytes] = field(repr=False, compare=False)

    @property
    def identity(self) -> list:
        return [self.id, self.label, self.path, self.size, self.shortest_side]

    def row(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The row and its counts, or an ``ImageError`` with the reason to leave it out."""
        content = self.read()
        image = decode_rgb(content)
        if self.shortest_side and min(image.size) > self.shortest_side:
            content = _reduced(image, self.shortest_side)
        row = {"image": {"bytes": content, "path": printable(self.path)}, "label": self.label}
        return row, {"labels": {str(self.label): 1}, "content": of_item(f"{self.label} {self.path}", content)}


def read_file(path: str | Path) -> bytes:
    """The bytes of a file, or an ``ImageError``."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from None


def read_row(table: "datasets.Dataset", index: int, column: str, folders: Collection[str] | None = None) -> bytes:
    """The encoded image in a row: its bytes, or those of the file that it names, which must be below one of ``folders``
    if these are given; or an ``ImageError``."""
    cell = table[index][column] or {}
    if cell.get("bytes") is not None:
        return cell["bytes"]
    if not cell.get("path"):
        raise ImageError("is no image, but an empty cell")
    if reason := why_not_read(cell["path"], folders):
        raise ImageError(reason)
    return read_file(cell["path"])


def _reduced(image, shortest_side: int) -> bytes:
    """The image as a JPEG whose shorter side has so many pixels."""
    from PIL import Image

    scale, buffer = shortest_side / min(image.size), io.BytesIO()
    size = tuple(round(scale * side) for side in image.size)
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def image_form(classes: Sequence[str], partial_sets: Collection[str] = ()) -> Form:
    """The form of images of these classes, all of which every set must have but for those that may be partial."""
    features = {"image": {"decode": True, "_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    return Form(KIND, "image", schema, ImageError, partial(_total, list(classes), partial_sets))


def check_classes(name: str, classes: Sequence[str], counts: Mapping[str, int]) -> None:
    """Makes sure that a set has an image of every class.

    Args:
        name: of the set.
        classes: their names.
        counts: of usable images, by the number of the class as a text.

    Raises:
        UserError: it lacks some, which are named.
    """
    lacking = [title for label, title in enumerate(classes) if not counts.get(str(label))]
    if lacking:
        more = f" and {len(lacking) - 5:,} more" if len(lacking) > 5 else ""
        mend = ", or prepare what there is with --partial" if name == "valid" else ""
        raise UserError(
            f"{name} has no usable image of {len(lacking):,} of {len(classes):,} classes: "
            f"{', '.join(lacking[:5])}{more}; add some{mend}"
        )


def _total(classes: list[str], partial_sets: Collection[str], name: str, counts: dict[str, Any]) -> dict[str, Any]:
    labels = counts.get("labels", {})
    if name not in partial_sets:
        check_classes(name, classes, labels)
    return {"classes": len(labels), "smallest_class": min(labels.values(), default=0)}
