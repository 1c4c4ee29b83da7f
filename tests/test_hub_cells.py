"""Cells of a data set that name a file: only ordinary ones of a reasonable size are opened."""

import os

import pytest

from seqssgd.data import audio, hub, image_rows
from seqssgd.data.pictures import ImageError
from seqssgd.data.sphere import AudioError


@pytest.fixture(params=["pipe", "device", "folder", "large"])
def path(request, tmp_path, monkeypatch) -> str:
    path = tmp_path / request.param
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        return "/dev/zero"
    elif request.param == "folder":
        path.mkdir()
    else:
        monkeypatch.setattr(hub, "LARGEST", 10)
        path.write_bytes(b"0" * 11)
    return str(path)


def test_what_is_no_ordinary_file_is_a_rejection(path):
    table = [{"cell": {"bytes": None, "path": path}}]
    for read, refusal in ((lambda: audio.read_row(table, 0, "cell", 16_000), AudioError),
                          (lambda: image_rows.read_row(table, 0, "cell"), ImageError)):  # fmt: skip
        with pytest.raises(refusal, match="names "):
            read()
