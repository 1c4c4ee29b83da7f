"""What ``dataset.json`` holds, by the kind of data: types that :func:`seqssgd.kinds.misfit` holds a file against."""

from typing import NamedTuple, NotRequired, TypedDict


class Folder(TypedDict):
    """What every dataset.json has."""

    name: str
    fingerprint: str


class Lines(TypedDict):
    """The counts of a split of a text."""

    lines: int
    tokens: int
    unknown: int
    blank_lines: int


class Text(Folder):
    """dataset.json of a text."""

    level: str
    splits: dict[str, Lines]
    sha256: dict[str, str]


class Squares(TypedDict):
    """The counts of a set of small images."""

    images: int
    size: tuple[int, int]


class SmallImages(Folder):
    """dataset.json of a set of small images."""

    classes: list[str]
    splits: dict[str, Squares]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: dict[str, str]


class Files(TypedDict):
    """What every set of Parquet files has: their sizes."""

    files: dict[str, int]


class Utterances(Files):
    """The counts of a set of utterances."""

    utterances: int
    speakers: int
    words: int
    hours: float
    sample_rate: int
    notes: NotRequired[dict[str, int]]


class Images(Files):
    """The counts of a set of images."""

    images: int
    classes: int
    smallest_class: int


class Sealed(Folder):
    """What every dataset.json of sets has beside them."""

    sha256: NotRequired[dict[str, str]]
    content: NotRequired[dict[str, str]]


class Sets(Sealed):
    """dataset.json of sets of whatever kind."""

    sets: dict[str, Files]


class Corpus(Sealed):
    """dataset.json of a speech corpus."""

    sets: dict[str, Utterances]


class EncodedImages(Sealed):
    """dataset.json of a set of images."""

    classes: list[str]
    sets: dict[str, Images]


class Kind(NamedTuple):
    """A kind of data.

    Attributes:
        name: what messages call it.
        programs: what writes it.
        form: of its dataset.json.
    """

    name: str
    programs: str
    form: type


# By what dataset.json, or its entry for a set, has in one kind of data only.
KINDS = {
    "level": Kind("text", "data_prep/ptb.py or data_prep/text.py", Text),
    "utterances": Kind("speech corpus", "data_prep/an4.py or another program for speech", Corpus),
    "smallest_class": Kind("set of images", "data_prep/imagenet.py", EncodedImages),
    "mean": Kind("set of small images", "data_prep/cifar.py", SmallImages),
}


def kind_of(name: str) -> Kind | None:
    """The kind of data of that name."""
    return next((kind for kind in KINDS.values() if kind.name == name), None)
