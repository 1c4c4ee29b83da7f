"""What a run tells: lines or a progress bar, rows of metrics, TensorBoard events."""

import io
import itertools
import json
import logging
import math
import time

import pytest
from toy_task import ToyTask, toy_config, train

from seqssgd import processes
from seqssgd.report.metrics import shared_metric
from seqssgd.runs.reading import read_run
from seqssgd.training import RunDirectory, loop
from seqssgd.training.logs import Console

TIMES = ("seconds", "units_per_second")


def settings(**training):
    return toy_config({"noise_schedule": "1-9S"}, {"epochs": 2, "checkpoint_every": None, **training})


def rows(run, kind=None):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if kind in (None, row["kind"])]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ListeningTask(ToyTask):
    """Notes the loss of every pass."""

    heard: list

    def loss(self, batch, part):
        loss, units = super().loss(batch, part)
        self.heard = [*getattr(self, "heard", []), (part.index, loss.item())]
        return loss, units


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_rows_hold_the_means_since_the_row_before(tmp_path):
    _, task = train(tmp_path, settings(log_every=4), ListeningTask)
    steps = []  # the losses of each step's passes: one pass in the first epoch, two in the second
    for index, loss in task.heard:
        steps = [*steps, [loss]] if index == 0 else [*steps[:-1], [*steps[-1], loss]]
    assert [len(passes) for passes in steps] == [1] * 5 + [2] * 5
    means = [sum(passes) / len(passes) for passes in steps]
    train_rows, valid_rows = rows(tmp_path, "train"), rows(tmp_path, "valid")
    assert [row["loss"] for row in train_rows] == pytest.approx([sum(means[:4]) / 4, sum(means[4:8]) / 4])
    assert [row["train_loss"] for row in valid_rows] == pytest.approx([sum(means[:5]) / 5, sum(means[5:]) / 5])
    for key, train_values, valid_values in (
        ("step", [4, 8], [5, 10]),
        ("epoch", [1, 2], [1, 2]),
        ("passes", [4, 5 + 2 * 3], [5, 15]),
        ("lr", [0.1, 0.1], [0.1, 0.1]),
        ("noise", [0.0, 0.5], [0.0, 0.5]),  # of the step, not of the one after it
    ):
        assert ([row[key] for row in train_rows], [row[key] for row in valid_rows]) == (train_values, valid_values)
    assert list(train_rows[0]) == ["kind", "step", "epoch", "passes", "lr", "noise", "loss", "nonfinite", *TIMES]
    assert list(valid_rows[0])[-4:] == ["valid_loss", "train_loss", *TIMES]
    assert all(row[name] > 0 for row in rows(tmp_path) for name in TIMES)
    assert [row["seconds"] for row in rows(tmp_path)] == sorted(row["seconds"] for row in rows(tmp_path))


def test_times_add_up_over_interruptions(tmp_path, monkeypatch):
    """The time between two calls is not the run's."""
    now = itertools.count(0, 0.25)
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(now))
    first, _ = train(tmp_path, settings(), max_steps=3)
    for _ in range(10_000):
        next(now)
    second, _ = train(tmp_path, settings())
    assert first["seconds"] < second["seconds"] < 100
    assert second["units"] == 10 * 24
    assert second["units_per_second"] == pytest.approx(24 / 0.25)  # one tick from a step's beginning to its end


def test_what_a_task_makes_of_its_training_loss_is_logged_beside_validation(tmp_path):
    class Doubled(ListeningTask):
        def train_metrics(self, loss):
            return {"train_double": 2 * loss}

    train(tmp_path, settings(), Doubled)
    valid_rows = rows(tmp_path, "valid")
    assert [row["train_double"] for row in valid_rows] == [2 * row["train_loss"] for row in valid_rows]
    assert shared_metric([read_run(tmp_path)]) == "valid_loss"  # what was learned is no result


# ---- lines and bar ---------------------------------------------------------------------------------------------------


def test_off_a_terminal_there_are_plain_lines(tmp_path, capsys):
    train(tmp_path, settings())
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and "\r" not in out
    assert [line.split()[:3] for line in lines[:-1]] == [
        ["train", "step", "3"],
        ["valid", "step", "5"],
        ["train", "step", "6"],
        ["train", "step", "9"],
        ["valid", "step", "10"],
    ]
    assert f"valid_loss {rows(tmp_path, 'valid')[0]['valid_loss']:.4g}  " in lines[1]
    assert lines[-1] == f"finished at step 10; see {tmp_path / 'result.json'}"


def test_on_a_terminal_there_is_a_bar_with_the_evaluations_above_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    train(tmp_path, settings(), max_steps=4)
    bars = terminal.getvalue().split("\r")
    assert "0/4 " in bars[1] and "4/4 " in bars[-1] and bars[-1].endswith("\n")
    assert ", epoch 1/2 passes 4 loss " in bars[-1] and all(len(bar.rstrip("\n")) <= 80 for bar in bars)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["valid", "stopped"]
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    train(tmp_path, settings())
    assert "4/10 " in terminal.getvalue().split("\r")[1]  # a resumed run's bar begins where it is
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["resuming", "valid", "valid", "finished"]


def test_the_progress_line_has_a_running_loss_in_the_unit_of_validation_and_fits_80_columns(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with Console(37_168, 37_160, 20, lambda loss: {"train_perplexity": math.exp(loss / 20)}) as console:
        losses = [100.0, math.nan, *[90.0] * 6]
        for loss in losses:
            console.advance(loss, 20, 74_336)
        console._bar.refresh()
    mean = 100.0
    for loss in losses[2:]:
        mean += (loss - mean) / Console.MEMORY
    last = terminal.getvalue().split("\r")[-1].rstrip()
    assert last.endswith(f"epoch 20/20 passes 74336 perplexity {math.exp(mean / 20):.4g}") and len(last) <= 80
    assert "37168/37168 [" in last and "<" in last


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_only_the_main_process_speaks(capsys, monkeypatch, stream):
    monkeypatch.setattr(processes, "is_main", lambda: False)
    monkeypatch.setattr("sys.stderr", silent := stream())
    with Console(5, 0) as console:
        console.advance(1.0, 1, 1)
        console.train({"kind": "train", "step": 1, "epoch": 1, "loss": 1.0})
        console.valid({"kind": "valid", "step": 1, "epoch": 1})
    assert silent.getvalue() == capsys.readouterr().out == ""


def test_the_logger_silences_progress_and_warnings(tmp_path, capsys, monkeypatch):
    logger = logging.getLogger("seqssgd")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    try:
        logger.setLevel("WARNING")
        train(tmp_path, settings(), max_steps=4)
        (tmp_path / "environment.json").write_text("{}")
        train(tmp_path, settings(), max_steps=6)
        assert capsys.readouterr().out == ""
        assert [line.split(":")[0] for line in terminal.getvalue().splitlines()] == ["warning"]  # and no bar
        logger.setLevel("ERROR")
        train(tmp_path, settings())
        assert capsys.readouterr().out == "" and terminal.getvalue().count("\n") == 1
    finally:
        logger.setLevel("INFO")


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def scalars(run):
    """{tag: [(step, value), …]} as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def scalars_of(metrics):
    """The same from metrics.jsonl."""
    wanted = {}
    for row in metrics:
        for name, value in row.items():
            if name not in ("kind", "step"):
                wanted.setdefault(f"{row['kind']}/{name}", []).append((row["step"], pytest.approx(value, rel=1e-6)))
    return wanted


def test_tensorboard_shows_the_rows(tmp_path):
    train(tmp_path, settings())
    shown = scalars(tmp_path)
    assert shown == scalars_of(rows(tmp_path))
    assert [step for step, _ in shown["train/loss"]] == [3, 6, 9]
    assert {"valid/valid_loss", "valid/train_loss", "train/lr", "train/noise"} <= set(shown)


class Crash(BaseException):
    pass


@pytest.mark.parametrize(
    "every, crash_in_save, unsaved",
    [(None, 1, [1, 2, 3, 4, 5, 5]), (2, 5, [7, 8]), (5, 2, [5]), (5, 4, [10])],
)
def test_after_a_crash_no_row_is_shown_twice_and_none_is_lost(tmp_path, monkeypatch, every, crash_in_save, unsaved):
    """The last checkpoint does not know of the rows at the steps ``unsaved``: they are made once more."""
    config, saves, real = settings(log_every=1, checkpoint_every=every), itertools.count(1), loop._Loop.save

    def save(self):
        if next(saves) == crash_in_save:
            raise Crash
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "save", save)
        with pytest.raises(Crash):
            train(tmp_path, config)
    assert [row["step"] for row in rows(tmp_path)][-len(unsaved) :] == unsaved
    (events,) = (tmp_path / "tensorboard").iterdir()
    events.rename(events.with_name("events.out.tfevents.1"))  # the files of one second may be read in any order
    result, _ = train(tmp_path, config)
    assert result["steps"] == 10 and len(rows(tmp_path)) == 10 + 2
    assert scalars(tmp_path) == scalars_of(rows(tmp_path))


def test_events_are_on_disk_when_a_checkpoint_says_so(tmp_path, monkeypatch):
    """TensorBoard writes in a thread; a kill after the checkpoint must not lose what was before it."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    real = RecordWriter.write
    monkeypatch.setattr(RecordWriter, "write", lambda self, data: (time.sleep(0.05), real(self, data)))
    run = RunDirectory(tmp_path, {})
    run.start_metrics(0, 0)
    for step in (1, 2, 3):
        run.write_metrics({"kind": "train", "step": step, "loss": 2.5})
    assert run.metrics_length() == (tmp_path / "metrics.jsonl").stat().st_size > 0
    assert scalars(tmp_path) == {"train/loss": [(1, 2.5), (2, 2.5), (3, 2.5)]}
    run.close()
