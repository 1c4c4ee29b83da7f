"""What goes wrong around a run: full disks, kills, damaged files, contents of another kind.

Whatever it is, it is one line that names the thing and its mend, or the run ends as if it had not been.
"""

import errno
import math
import os
import re
import zipfile
from pathlib import Path

import pytest
import torch
from programs import places, replaced
from toy_task import ToyTask, toy_config, train

from seqssgd.errors import UserError
from seqssgd.files import atomic_path, make_folder
from seqssgd.report import read_run
from seqssgd.runs import checkpoints
from seqssgd.training import RunDirectory


def newest(run: Path) -> Path:
    return checkpoints.load_newest(run / "checkpoints")[0]


# ---- the disk --------------------------------------------------------------------------------------------------------


class FullDisk:
    """Files opened for writing take ``room`` bytes in all, then the disk is full, as the kernel says it."""

    def __init__(self, monkeypatch, room: int):
        import builtins

        real, left = builtins.open, [room]

        def limited(file, mode="r", *args, **kwargs):
            opened = real(file, mode, *args, **kwargs)
            if "w" not in mode or "b" not in mode:
                return opened
            write = opened.raw.write if hasattr(opened, "raw") else opened.write

            class Limited:
                def __getattr__(self, name):
                    return getattr(opened, name)

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    opened.close()

                def write(self, data):
                    left[0] -= len(data)
                    if left[0] < 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return write(data)

            return Limited()

        monkeypatch.setattr(builtins, "open", limited)


@pytest.mark.parametrize("room", [0, 100, 700, 1500, 3000])
def test_a_disk_that_is_full_at_a_checkpoint_is_named_with_the_file(tmp_path, monkeypatch, room):
    state = {"model": {f"w{i}": torch.randn(100) for i in range(10)}}
    checkpoints.save(tmp_path / "step.pt", {"model": {}})
    before = (tmp_path / "step.pt").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        FullDisk(patch, room)
        checkpoints.save(tmp_path / "step.pt", state)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "step.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["step.pt"] and (tmp_path / "step.pt").read_bytes() == before


@pytest.mark.parametrize("name", [str, os.fsencode])  # TensorBoard opens its files by bytes
def test_a_program_on_a_full_disk_says_one_line(capsys, tmp_path, name):
    from seqssgd.errors import run_cli

    def fails():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name(tmp_path / "x.pt"))

    assert run_cli(fails) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: /\S+x\.pt: the disk at /\S* is full \(.*\); make room and run the same command .*\n", said
    )


def test_a_full_disk_under_tensorboard_is_said_once(tmp_path, monkeypatch):
    """Its thread would show a traceback, which the suite takes for an error, of what is raised in ours as well."""
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = RunDirectory(tmp_path / "run", {"seed": 0})
    run.start_metrics(0, 0)
    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(OSError, match="No space left") as raised:
        for step in range(3):
            run.write_metrics({"kind": "train", "step": step, "loss": 1.0})
            run.metrics_length()
    assert raised.value.filename.endswith("tensorboard")
    with pytest.raises(OSError, match="No space left"):
        run.close()


def test_a_renamed_file_is_there_after_a_power_cut(tmp_path, monkeypatch):
    """The name of a file is on disk only once its folder was written out, after the renaming."""
    done, real = [], os.fsync

    def fsync(handle):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
        return real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("replace", str(b))), replace(a, b))[1])
    make_folder(tmp_path / "a/b")
    with atomic_path(tmp_path / "a/b/file") as path:
        path.write_text("x")
    folder = str(tmp_path / "a/b")
    assert sorted(name for _, name in done[:2]) == [str(tmp_path), str(tmp_path / "a")]
    assert done[2][0] == "fsync" and Path(done[2][1]).parent == Path(folder)
    assert done[3:] == [("replace", f"{folder}/file"), ("fsync", folder)]


def test_what_killed_starts_left_anywhere_in_a_run_is_cleaned_up(tmp_path):
    train(tmp_path / "run", toy_config(), max_steps=1)
    (tmp_path / "run/tokenizer").mkdir()
    left = [tmp_path / "run" / name for name in (".config.yaml.a.tmp", "tokenizer/.v.b.tmp", "checkpoints/.s.c.tmp")]
    for path in left:
        path.write_text("half")
    train(tmp_path / "run", toy_config(), max_steps=2)
    assert not any(path.exists() for path in left)


def test_a_checkpoint_too_many_that_a_kill_left_is_deleted_by_the_next_start(tmp_path):
    """Killed between writing its last checkpoint and deleting an old one, a run has nothing left to save."""
    config = toy_config(training={"epochs": 2, "keep": 2})
    train(tmp_path, config, ToyTask)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    (tmp_path / "checkpoints/step-00000002.pt").write_bytes((tmp_path / "checkpoints" / names[0]).read_bytes())
    (tmp_path / "result.json").unlink()
    train(tmp_path, config, ToyTask)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == names and len(names) == 2


# ---- damaged files ---------------------------------------------------------------------------------------------------

BAD_JSON = ["", "[]", "3", "null", "{", '{"steps": "x", "stopped_early": false}', "[" * 100_000, "\udcff"]


@pytest.mark.parametrize("content", BAD_JSON)
def test_a_damaged_result_is_named_with_its_mend(tmp_path, content):
    train(tmp_path, toy_config(training={"epochs": 1}))
    (tmp_path / "result.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"result\.json is damaged \(.*\); delete it"):
        train(tmp_path, toy_config(training={"epochs": 1}))
    (tmp_path / "result.json").unlink()
    result, _ = train(tmp_path, toy_config(training={"epochs": 1}))
    assert result["steps"] == 5 and (tmp_path / "result.json").is_file()


@pytest.mark.parametrize("content", [*BAD_JSON[:4], "{", "[" * 100_000, "\udcff", '{"packages": 3}'])
def test_a_damaged_record_of_the_environment_is_a_warning(tmp_path, capsys, content):
    RunDirectory(tmp_path, {"seed": 0}).close()
    (tmp_path / "environment.json").write_bytes(content.encode(errors="surrogateescape"))
    RunDirectory(tmp_path, {"seed": 0}).close()
    assert capsys.readouterr().err.count("warning: ") == 1


@pytest.mark.parametrize("line", ["", "x", "[]", '{"kind": "other"}', "[" * 90, "\udcff"])
def test_damaged_metrics_are_named_with_their_line(tmp_path, line):
    train(tmp_path, toy_config(), max_steps=6)
    file = tmp_path / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")
    bad = line.encode(errors="surrogateescape")
    lines[1] = bad + b" " * max(0, len(lines[1]) - len(bad))
    file.write_bytes(b"\n".join(lines))
    for read in (lambda: train(tmp_path, toy_config()), lambda: read_run(tmp_path)):
        with pytest.raises(UserError, match=r"line 2: damaged"):
            read()


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "not the configuration"),
        ("[1]", "not the configuration"),
        ("seed: 0\nseed: 0", "given twice"),
        ("a: [", "no settings in YAML"),
        ("[" * 1000, "nested deeper"),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path, content, said):
    train(tmp_path, toy_config(), max_steps=1)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=rf"config\.yaml.*{said}.*choose another directory"):
        train(tmp_path, toy_config())


def test_whole_checkpoints_with_wrong_contents_are_refused_or_train_on(tmp_path, capsys):
    """Every value of a checkpoint but for each number of a generator, and what the task keeps, is replaced by values of
    other kinds, and the file written whole."""
    config = toy_config(training={"epochs": 2})
    train(tmp_path, config, max_steps=7)
    path = newest(tmp_path)
    state = checkpoints.load(path)
    chosen = [at for at in places(state) if "task" not in at and ("python" not in at or len(at) < 6)]
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    refused = 0
    for number, at in enumerate(chosen):
        value = [None, "x", -1, [], {}, math.nan, torch.zeros(2, 2), 10**30][number % 8]
        checkpoints.save(path, replaced(state, at, value) if at else {"model": value})
        (tmp_path / "metrics.jsonl").write_bytes(metrics)
        try:
            train(tmp_path, config, max_steps=8)
        except UserError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)
            refused += 1
        (tmp_path / "result.json").unlink(missing_ok=True)
        for other in (tmp_path / "checkpoints").glob("step-*.pt"):
            if other != path:
                other.unlink()
    assert refused > len(chosen) / 2


def test_numbers_of_draws_in_a_checkpoint_are_whole(tmp_path):
    config = toy_config(training={"epochs": 2})
    train(tmp_path, config, max_steps=7)
    path = newest(tmp_path)
    state = checkpoints.load(path)
    position = state["optimizer"]["perturbation"]
    assert set(position) == {"draws", "seed", "unit"}
    for key in ("draws", "seed"):
        checkpoints.save(path, replaced(state, ("optimizer", "perturbation", key), 7.5))
        with pytest.raises(UserError, match=rf"perturbation\.{key} is 7\.5"):
            train(tmp_path, config, max_steps=8)


def test_a_checkpoint_that_is_compressed_is_not_read(tmp_path):
    """Six megabytes may stand for six gigabytes; torch never writes such a file."""
    torch.save({"model": {"w": torch.zeros(3_000_000)}}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb\.pt: damaged checkpoint, or none .*compressed"):
        checkpoints.load(tmp_path / "bomb.pt")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read anything")
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path):
    checkpoints.save(tmp_path / "a.pt", {})
    (tmp_path / "a.pt").chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.load(tmp_path / "a.pt")
