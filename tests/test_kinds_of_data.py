"""A folder of one kind of prepared data given in place of another: the message says what it is and what is wanted."""

import itertools
import re

import pytest
import tones
from picture_folders import prepared_tree
from programs import coloured_images, generated_lines

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


def test_another_kind_of_data_is_not_written_over(folders, tmp_path):
    lines = generated_lines(20)
    with pytest.raises(UserError, match="holds a speech corpus, where a text is wanted; choose another folder"):
        write_text_dataset(folders["speech corpus"], {"train": lines, "valid": lines, "test": lines}, "generated")
