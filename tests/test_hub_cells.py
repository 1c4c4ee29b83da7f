"""Cells of a data set that name a file: only ordinary ones of a reasonable size are opened."""

import os

import pytest
from sphere_files import speech_like

from seqssgd.data import audio, hub, image_rows
from seqssgd.data.pictures import ImageError
from seqssgd.data.recording import encode_flac
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


@pytest.mark.parametrize("how", ["beside", "above", "linked"])
def test_files_outside_the_folder_of_the_data_set_are_read_only_where_that_is_allowed(tmp_path, how):
    own, private = tmp_path / "set", tmp_path / "set of somebody" / "private.wav"
    for folder in (own / "audio", private.parent):
        folder.mkdir(parents=True)
    content = encode_flac(speech_like(3000, 0)[:, 0], 16_000)
    private.write_bytes(content)
    (own / "audio/inside.wav").write_bytes(content)
    (own / "link.wav").symlink_to(private)
    named = {"beside": private, "above": own / "audio/../.." / private.parent.name / private.name,
             "linked": own / "link.wav"}[how]  # fmt: skip
    table = [{"cell": {"bytes": None, "path": str(path)}} for path in (named, own / "audio/inside.wav")]
    folders, everywhere = hub.own_folders(str(own), False), hub.own_folders(str(own), True)
    for read, refusal in ((lambda i, where: audio.read_row(table, i, "cell", 16_000, folders=where), AudioError),
                          (lambda i, where: image_rows.read_row(table, i, "cell", where), ImageError)):  # fmt: skip
        with pytest.raises(refusal, match="outside the folder of the data set, which is read with --any-path only"):
            read(0, folders)
        read(1, folders)
        read(0, everywhere)


def test_data_sets_of_the_hub_may_name_what_was_downloaded(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    folders = hub.own_folders("somebody/speech", False)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/a.wav").write_bytes(b"")
    (tmp_path / "b.wav").write_bytes(b"")
    assert hub.why_not_read(tmp_path / "downloads/a.wav", folders) is None
    assert "outside the folder" in hub.why_not_read(tmp_path / "b.wav", folders)


def test_what_is_no_ordinary_file_is_a_rejection(path):
    table = [{"cell": {"bytes": None, "path": path}}]
    for read, refusal in ((lambda: audio.read_row(table, 0, "cell", 16_000), AudioError),
                          (lambda: image_rows.read_row(table, 0, "cell"), ImageError)):  # fmt: skip
        with pytest.raises(refusal, match="names "):
            read()
