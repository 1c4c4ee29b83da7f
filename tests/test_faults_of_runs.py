"""What goes wrong around a run: full disks, damaged files, contents of another kind, divergence, limits within epochs.

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
from made_runs import make_run
from programs import places
from toy_task import ToyTask, toy_config, train

from seqssgd.errors import UserError
from seqssgd.files import atomic_path, make_folder
from seqssgd.report import compare, read_run
from seqssgd.runs import checkpoints
from seqssgd.runs.checkpoints import check_files, checksums, find_checkpoint
from seqssgd.runs.reading import data_folder
from seqssgd.runs.recipes import read_section
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


def test_a_program_on_a_full_disk_says_one_line(capsys, tmp_path):
    from seqssgd.errors import run_cli

    def fails():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x.pt"))

    assert run_cli(fails) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: \S+x\.pt: the disk at /\S* is full \(.*\); make room and run the same command .*\n", said
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


def replaced(tree, at, value):
    """A copy with the value at ``at`` replaced."""
    if not at:
        return value
    if isinstance(tree, dict):
        return {key: replaced(old, at[1:], value) if key == at[0] else old for key, old in tree.items()}
    return type(tree)(replaced(old, at[1:], value) if index == at[0] else old for index, old in enumerate(tree))


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
    assert set(position) == {"draws", "seed"}
    for key in position:
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


# ---- limits and patience ---------------------------------------------------------------------------------------------


class Scripted(ToyTask):
    """Validates with values that depend on the step alone."""

    best = ("score", "min")

    def __init__(self, config, values):
        super().__init__(config)
        self.values, self.step = values, 0

    def batches(self, epoch, start=0):
        for index, batch in enumerate(super().batches(epoch, start), start + 1):
            self.step = 5 * epoch + index
            yield batch

    def evaluate(self):
        return {"score": self.values[self.step]}


@pytest.mark.parametrize("limit", [1, 3, 7, 8, 13])
def test_a_limit_within_an_epoch_does_not_change_where_patience_ends(tmp_path, limit):
    """The evaluation at the limit is the best of all, yet nobody asked for it."""
    config = toy_config(training={"epochs": 6, "patience": 2, "checkpoint_every": None})
    values = {**dict.fromkeys(range(1, 31), 0.1), 5: 3.0, 10: 2.0, 15: 2.5, 20: 1.9, 25: 2.2, 30: 2.3}
    whole, _ = train(tmp_path / "whole", config, Scripted, {"values": values})
    assert whole["steps"] == 30 and whole["stopped_early"]
    train(tmp_path / "run", config, Scripted, {"values": values}, max_steps=limit)
    result, _ = train(tmp_path / "run", config, Scripted, {"values": values})
    assert result["steps"] == 30 and result["stopped_early"]
    a, b = (checkpoints.load(newest(tmp_path / name))["model"] for name in ("whole", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_a_limit_ended_says_so_as_compare_does(tmp_path, capsys):
    train(tmp_path / "run", toy_config(), max_steps=7)
    assert "stopped by max_steps at step 7 of 20, and goes on with a higher limit or none" in capsys.readouterr().out
    with pytest.raises(UserError, match="ended by a limit of steps at epoch 2 of 4; partial takes it in"):
        compare([read_run(tmp_path / "run")])


# ---- divergence ------------------------------------------------------------------------------------------------------


def test_a_run_that_was_never_finite_on_validation_fails(tmp_path, capsys):
    config, values = toy_config(training={"epochs": 2}), dict.fromkeys(range(11), math.nan)
    for _ in range(2):  # and when it is called again
        result, _ = train(tmp_path, config, Scripted, {"values": values})
        assert result["exit_code"] == 2 and result["best"] == {}
        said = capsys.readouterr().err
        assert re.fullmatch(r"error: \S+: training diverged \(score was never finite.*another directory\n", said)


class Exploding(ToyTask):
    """Its weights become infinite after step 8, without a bad gradient."""

    def batches(self, epoch, start=0):
        for index, batch in enumerate(super().batches(epoch, start), start):
            if 5 * epoch + index == 8:
                with torch.no_grad():
                    self.model.out.weight.fill_(math.inf)
            yield batch


def test_the_last_finite_weights_are_kept(tmp_path):
    config = toy_config(training={"epochs": 4, "max_nonfinite": 100, "keep": 2})
    result, _ = train(tmp_path, config, Exploding)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000008.pt", "step-00000019.pt", "step-00000020.pt"]
    assert checkpoints.is_finite(checkpoints.load(tmp_path / "checkpoints" / names[0])["model"].values())
    assert result["exit_code"] == 2 and result["diverged"] == "its weights are not finite"


def test_a_checkpoint_too_many_that_a_kill_left_is_deleted_by_the_next_start(tmp_path):
    """Killed between writing its last checkpoint and deleting an old one, a run has nothing left to save."""
    config = toy_config(training={"epochs": 2, "keep": 2})
    train(tmp_path, config, ToyTask)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    (tmp_path / "checkpoints/step-00000002.pt").write_bytes((tmp_path / "checkpoints" / names[0]).read_bytes())
    (tmp_path / "result.json").unlink()
    train(tmp_path, config, ToyTask)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == names and len(names) == 2


# ---- files that belong to a model ------------------------------------------------------------------------------------


def test_files_that_a_model_depends_on_are_those_of_its_checkpoint(tmp_path):
    run = tmp_path / "run"
    (run / "tokenizer").mkdir(parents=True)
    (run / "tokenizer/vocabulary.txt").write_text("<eos>\na\nb\n")
    (run / "config.yaml").write_text("model: {hidden_size: 3}\noptim: {lr: 1}\nseed: 0\n")
    state = {"files": checksums(run)}
    check_files(run, state, Path("best.pt"))
    check_files(run, {}, Path("best.pt"))  # an earlier version's
    (run / "config.yaml").write_text("# a comment\nseed: 4\nmodel: {hidden_size: 3}\n")
    check_files(run, state, Path("best.pt"))
    (run / "tokenizer/vocabulary.txt").write_text("<eos>\nb\na\n")
    with pytest.raises(UserError, match=r"tokenizer/vocabulary\.txt is not the one that best\.pt was trained with"):
        check_files(run, state, Path("best.pt"))
    (run / "tokenizer/vocabulary.txt").unlink()
    with pytest.raises(UserError, match=r"tokenizer/vocabulary\.txt is missing"):
        check_files(run, state, Path("best.pt"))
    (run / "tokenizer/vocabulary.txt").write_text("<eos>\na\nb\n")
    (run / "config.yaml").write_text("model: {hidden_size: 4}\n")
    with pytest.raises(UserError, match=r"config\.yaml is not the one"):
        check_files(run, state, Path("best.pt"))


def test_a_run_of_another_kind_is_called_what_it_is(tmp_path):
    kinds = {
        "a language model": "hidden_size: 3",
        "a speech recogniser": "features: {}, network: {}",
        "an image classifier": "name: x",
    }
    for kind, model in kinds.items():
        (tmp_path / "config.yaml").write_text(f"model: {{{model}}}\n")
        for wanted in kinds:
            if wanted != kind:
                with pytest.raises(UserError, match=f"is a run of {kind}; give one of {wanted}"):
                    read_section(tmp_path, "model", wanted)


def test_the_last_checkpoint_in_place_of_the_best_is_said(tmp_path, capsys):
    checkpoints.save_step(make(tmp_path / "checkpoints"), {"model": {}}, 7, keep=2)
    assert find_checkpoint(tmp_path).name == "step-00000007.pt"
    assert re.fullmatch(
        r"note: \S+ has no best checkpoint .*; taking the last, step-00000007\.pt\n", capsys.readouterr().err
    )
    find_checkpoint(tmp_path, "last")
    checkpoints.save(tmp_path / "checkpoints/best.pt", {})
    find_checkpoint(tmp_path)
    assert capsys.readouterr().err == ""


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_a_run_knows_where_its_data_lay(tmp_path):
    (tmp_path / "data").mkdir()
    RunDirectory(tmp_path / "run", {"seed": 0}, data=tmp_path / "data").close()
    assert data_folder(tmp_path / "run", None) == tmp_path / "data"
    assert data_folder(tmp_path / "run", "elsewhere") == Path("elsewhere")
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"data, the data of \S+run, is not there any more; give their folder"):
        data_folder(tmp_path / "run", None)
    RunDirectory(tmp_path / "run", {"seed": 0}, data=tmp_path / "moved").close()
    assert data_folder(tmp_path / "run", None) == tmp_path / "moved"
    (tmp_path / "run/environment.json").write_text("[]")
    with pytest.raises(UserError, match=r"environment\.json is damaged \(.*\); put the run's own back, or delete it"):
        data_folder(tmp_path / "run", None)
    (tmp_path / "run/environment.json").unlink()
    with pytest.raises(UserError, match="does not say where its data lie; give their folder"):
        data_folder(tmp_path / "run", None)


def test_what_an_earlier_version_did_not_note_is_no_difference(tmp_path):
    RunDirectory(tmp_path, {"lr": 1}, {"data": {"fingerprint": "a"}}).close()
    RunDirectory(tmp_path, {"lr": 1}, {"data": {"fingerprint": "a", "audio": "b"}}).close()
    with pytest.raises(UserError, match=r"data\.fingerprint = a, now c"):
        RunDirectory(tmp_path, {"lr": 1}, {"data": {"fingerprint": "c", "audio": "b"}})
    with pytest.raises(UserError, match=r"momentum = \(absent\), now 1"):
        RunDirectory(tmp_path, {"lr": 1, "momentum": 1}, {"data": {"fingerprint": "a"}})


# ---- reports of foreign runs -----------------------------------------------------------------------------------------


def test_names_from_foreign_runs_are_text_everywhere(tmp_path):
    from seqssgd.report import summary, write_report

    evil = "<script>alert(1)</script>\n| x | [y](javascript:z) $\\frac{ \x1b[31m"
    run = make_run(tmp_path / "=1+1", [3.0, 2.0], settings={"model": {"name": evil}}, base=evil)
    other = make_run(
        tmp_path / "b", [3.0, 2.5], settings={"model": {"name": "z"}}, base="=cmd|' /C calc'!A0", noise=0.1
    )
    comparison = compare([read_run(run), read_run(other)])
    write_report(comparison, tmp_path / "out")
    markdown = (tmp_path / "out/report.md").read_text()
    for text in (markdown, summary(comparison)):
        assert "<script" not in text and "\x1b" not in text and "](javascript" not in text
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows if line.startswith("| method | run")}) <= 1
    assert "<script>alert" not in (tmp_path / "out/report.html").read_text()
    for line in (tmp_path / "out/report.csv").read_text().splitlines():
        for cell in re.findall(r'(?:^|,)"?([^",])', line):
            assert cell not in "=+@"
