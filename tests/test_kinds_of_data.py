"""What dataset.json says of prepared data: another kind is named, with the one that is wanted, and so is every entry
that is not what it should be."""

import functools
import itertools
import json
import operator
import re

import pytest
import tones
from picture_folders import prepared_tree
from programs import coloured_images, generated_lines, places

from seqssgd.data.encoded_images import load_encoded
from seqssgd.data.images import load_images
from seqssgd.data.speech import load_speech
from seqssgd.data.text import load_text, write_text_dataset
from seqssgd.errors import UserError

LOADERS = {
    "text": load_text,
    "speech corpus": lambda folder: load_speech(folder, "train"),
    "set of images": load_encoded,
    "set of small images": load_images,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    lines = generated_lines(20)
    write_text_dataset(folder / "text", {"train": lines, "valid": lines, "test": lines}, "generated")
    return {
        "text": folder / "text",
        "speech corpus": tones.prepare(folder / "speech"),
        "set of images": prepared_tree(folder),
        "set of small images": coloured_images(folder / "small"),
    }


@pytest.mark.parametrize(("there", "wanted"), list(itertools.permutations(LOADERS, 2)))
def test_another_kind_of_data_is_named(folders, there, wanted):
    said = f"{folders[there]} holds a {there}, where a {wanted} is wanted; choose another folder (data_prep/"
    with pytest.raises(UserError, match="^" + re.escape(said)):
        LOADERS[wanted](folders[there])


@pytest.mark.parametrize("kind", LOADERS)
def test_every_entry_is_what_it_should_be_or_is_named(folders, kind):
    """Some are left out, others are values of another kind."""
    file = folders[kind] / "dataset.json"
    content, named = file.read_bytes(), 0
    entries = [at for at in places(json.loads(content)) if at]
    tried = entries[:: 1 + len(entries) // 25]
    for number, at in enumerate(tried):
        info = json.loads(content)
        *path, key = at
        within = functools.reduce(operator.getitem, path, info)
        if number % 3:
            within[key] = [None, "x", [], {}, -1, True][number // 3 % 6]
        else:
            del within[key]
        file.write_text(json.dumps(info))
        try:
            LOADERS[kind](folders[kind])
        except UserError as error:
            named += ".".join(name for name in at if isinstance(name, str)) in str(error).partition("dataset.json")[2]
    file.write_bytes(content)
    LOADERS[kind](folders[kind])
    file.write_bytes(content.replace(b'"name"', b'"name": "", "name"', 1))
    with pytest.raises(UserError, match=r"dataset\.json is damaged .*name is given twice"):
        LOADERS[kind](folders[kind])
    file.write_bytes(content)
    assert named >= len(tried) / 3


def test_another_kind_of_data_is_not_written_over(folders, tmp_path):
    lines = generated_lines(20)
    with pytest.raises(UserError, match="holds a speech corpus, where a text is wanted; choose another folder"):
        write_text_dataset(folders["speech corpus"], {"train": lines, "valid": lines, "test": lines}, "generated")
