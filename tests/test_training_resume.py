"""Interrupted at any instant or not: the same bits, and the same metrics apart from times."""

import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import pytest
import torch
import toy_task
from toy_task import ToyTask, toy_config, train

from seqssgd.errors import UserError
from seqssgd.runs import checkpoints
from seqssgd.training import RunDirectory
from seqssgd.training.signals import StopSignals

TIMES = ("seconds", "units_per_second")


def metrics(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def newest(run: Path) -> dict:
    return checkpoints.load_newest(run / "checkpoints")[1]


def assert_same(a, b, at=""):
    """Equality to the bit of nested tensors and plain values."""
    assert type(a) is type(b), at
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), at
    elif isinstance(a, dict):
        assert list(a) == list(b), at
        for key in a:
            if key not in (*TIMES, "training_seconds", "metrics_length"):
                assert_same(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), at
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{at}[{index}]")
    else:
        assert a == b, at


def assert_same_runs(a: Path, b: Path):
    assert_same(newest(a), newest(b))
    assert metrics(a) == metrics(b)
    assert_same(checkpoints.load(a / "checkpoints/best.pt"), checkpoints.load(b / "checkpoints/best.pt"))
    assert_same(*(json.loads((run / "result.json").read_text()) for run in (a, b)))
    names = [sorted(p.name for p in (run / "checkpoints").iterdir()) for run in (a, b)]
    assert names[0] == names[1]


SETTINGS = {
    "optim": {
        **{"noise_schedule": "1-3S", "lr_schedule": "zaremba", "lr_divisor": 1.5},
        **{"lr_warmup": 5, "lr_warmup_unit": "step"},
    },
    "training": {"epochs": 3, "accumulate": 2, "clip": 0.5},
}


def run_until_event(out: str, event: int | None, report: str) -> None:
    """Trains, and kills its own process at the ``event``-th call or return of any function, Python's or C's."""
    count = 0

    def profile(frame, kind, argument):
        nonlocal count
        count += 1
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.modules["torch.utils.tensorboard"] = None  # its threads are no part of what is tested, and slow
    sys.setprofile(profile)
    train(out, toy_config(**SETTINGS), task_settings={"steps_per_epoch": 3})
    sys.setprofile(None)
    Path(report).write_text(str(count))


def spawn(out: Path, event: int | None, report: Path) -> int:
    process = forked.process(run_until_event, str(out), event, str(report))
    process.join()
    return process.exitcode


def test_killed_at_any_instant_the_run_ends_with_the_same_bits(tmp_path):
    report = tmp_path / "events"
    assert spawn(tmp_path / "whole", None, report) == 0
    total = int(report.read_text())
    assert newest(tmp_path / "whole")["progress"]["step"] == 9
    generator = random.Random(0)
    for chain in range(3):  # a run killed again and again, a few hundred to thousands of calls after each start
        out, kills = tmp_path / f"killed{chain}", 0
        while spawn(out, generator.randrange(1, total), report) != 0 and kills < 6:
            kills += 1
        assert kills > 0
        assert spawn(out, None, report) == 0
        assert_same_runs(tmp_path / "whole", out)


def test_killed_while_files_are_written(tmp_path, monkeypatch):
    """Right before and right after each kind of change on disk: in process, a kill is played by an exception."""

    class Killed(BaseException):
        pass

    config = toy_config(**SETTINGS)
    train(tmp_path / "whole", config)
    real = {"replace": os.replace, "fsync": os.fsync}
    cases = [("replace", 1, 0), ("replace", 2, 1), ("replace", 5, 0), ("replace", 6, 1), ("fsync", 7, 0)]
    for name, when, after in cases:
        out, calls = tmp_path / f"{name}{when}{after}", 0

        def deadly(*args, name=name, when=when, after=after, **kwargs):
            nonlocal calls
            calls += 1
            if calls == when and after:
                real[name](*args, **kwargs)
            if calls == when:
                raise Killed
            return real[name](*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, deadly)
            patch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # nobody cleans up after a kill
            with pytest.raises(Killed):
                train(out, config)
        train(out, config)
        assert_same_runs(tmp_path / "whole", out)
        assert not [p for p in out.rglob("*.tmp")]


def launch(out: Path, settings: dict, limits: dict | None = None) -> BaseProcess:
    arguments = [out, json.dumps(settings), json.dumps(limits or {})]
    return forked.program(toy_task.__file__, *arguments, log=out.with_suffix(".log"))


def wait_for(path: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not any(path.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {path}"
        time.sleep(0.005)


def test_a_program_killed_and_started_again(tmp_path):
    settings, run = {"training": {"epochs": 20}}, tmp_path / "killed"
    generator = random.Random(1)
    for _ in range(2):
        before = len(list(run.glob("tensorboard/*")))
        process = launch(run, settings)
        deadline = time.monotonic() + 120  # a program on a busy machine may take a minute to start
        while len(list(run.glob("tensorboard/*"))) == before and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.3))
        process.kill()
        process.join()
    process = launch(run, settings)
    process.join()
    assert process.exitcode == 0, run.with_suffix(".log").read_text()
    train(tmp_path / "whole", toy_config(**settings))
    assert_same_runs(tmp_path / "whole", run)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_stop_after_a_checkpoint(tmp_path, number, code):
    settings = {"training": {"epochs": 10_000, "checkpoint_every": None, "log_every": 1}}
    process = launch(tmp_path / "stopped", settings)
    wait_for(tmp_path / "stopped", "checkpoints/step-*.pt")
    os.kill(process.pid, number)
    process.join(60)
    said = (tmp_path / "stopped.log").read_text()
    assert process.exitcode == code, said
    last = said.splitlines()[-1]
    assert last.startswith(f"stopped by {number.name} at step ") and "run the same command again" in last
    step = newest(tmp_path / "stopped")["progress"]["step"]
    assert not (tmp_path / "stopped/result.json").exists()
    config, limit = toy_config(**settings), step + 2
    train(tmp_path / "stopped", config, max_steps=limit)
    train(tmp_path / "whole", config, max_steps=limit)
    assert_same(newest(tmp_path / "stopped")["model"], newest(tmp_path / "whole")["model"])
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_twice_is_one(number):
    with StopSignals() as signals:
        for _ in range(2):  # as Slurm and torchrun, or timeout, send it
            os.kill(os.getpid(), number)
        assert signals.number == number


def test_only_ctrl_c_interrupts_a_training_that_stops(monkeypatch):
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        now = time.monotonic() + StopSignals.AGAIN
        monkeypatch.setattr(time, "monotonic", lambda: now)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_folder_that_is_moved_away_under_a_training_is_one_line(tmp_path):
    process = launch(tmp_path / "run", {"training": {"epochs": 10_000, "log_every": 1}})
    wait_for(tmp_path / "run", "checkpoints/step-*.pt")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    process.join(60)
    said = (tmp_path / "run.log").read_text()
    assert process.exitcode == 2 and said.splitlines()[-1].startswith(f"error: {tmp_path / 'run'}"), said
    assert "No such file or directory" in said and "Traceback" not in said


def test_max_minutes_stops_and_the_same_command_goes_on(tmp_path):
    config = toy_config(**SETTINGS)
    train(tmp_path / "whole", config)
    stops = 0
    while not (result := train(tmp_path / "stopped", config, max_minutes=1e-9)[0])["finished"]:
        stops += 1
        assert result["exit_code"] == 0 and result["steps"] == stops
    assert stops == 14  # every call makes one step; the last one is the end anyway
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_finished_run_is_left_alone_and_larger_limits_go_on(tmp_path, capsys):
    config, run = toy_config(**SETTINGS), tmp_path / "run"

    def snapshot():
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.rglob("*") if p.is_file()}

    first, _ = train(run, config, max_steps=7)
    before = snapshot()
    capsys.readouterr()
    for limits in ({"max_steps": 7}, {"max_steps": 3}):
        again, task = train(run, config, **limits)
        assert again == first and task.evaluations == 0
        assert "already finished at step 7" in capsys.readouterr().out
    assert snapshot() == before
    result, _ = train(run, config)
    assert result["steps"] == 15 and result["finished"] and result["exit_code"] == 0
    train(tmp_path / "whole", config)
    whole, longer = newest(tmp_path / "whole"), newest(run)
    for key in ("model", "optimizer", "schedulers", "processes"):
        assert_same(whole[key], longer[key])
    train(run, config)
    assert "already finished at step 15" in capsys.readouterr().out


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:  # one wrong byte in the middle of a tensor
        weight = checkpoints.load(path)["model"]["rnn.weight_ih_l0"]
        position = content.index(weight.numpy().tobytes()) + 5
        path.write_bytes(content[:position] + bytes([content[position] ^ 64]) + content[position + 1 :])


@pytest.mark.parametrize("how", ["truncated", "empty", "one byte"])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys, how, keep):
    config = toy_config(**{**SETTINGS, "training": {**SETTINGS["training"], "keep": keep}})
    train(tmp_path / "whole", config)
    train(tmp_path / "run", config, max_steps=8)
    damage(tmp_path / "run/checkpoints/step-00000008.pt", how)
    if keep == 1:
        with pytest.raises(UserError, match="all 1 checkpoints are damaged"):
            train(tmp_path / "run", config)
        return
    capsys.readouterr()
    train(tmp_path / "run", config)
    captured = capsys.readouterr()
    assert "step-00000008.pt: damaged checkpoint" in captured.err and "resuming at step 7" in captured.out
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_checkpoints_after_a_damaged_one_are_not_lost(tmp_path):
    for step in (5, 9):
        checkpoints.save_step(tmp_path, {"step": step}, step, keep=2)
    damaged = tmp_path / "step-00000009.pt"
    damaged.write_bytes(b"?")
    checkpoints.save_step(tmp_path, {"step": 7}, 7, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000007.pt"]


def test_checkpoints_of_another_model_are_refused(tmp_path):
    class WiderTask(ToyTask):
        def __init__(self, config):
            super().__init__(config)
            self.model.out = torch.nn.Linear(8, 5)

    train(tmp_path / "run", toy_config(), max_steps=1)
    with pytest.raises(UserError, match=r"step-00000001\.pt: weights of another model \(size mismatch for out\.weight"):
        train(tmp_path / "run", toy_config(), WiderTask)


def test_checkpoints_are_plain_and_complete(tmp_path):
    train(tmp_path / "run", toy_config(**SETTINGS))
    state = torch.load(tmp_path / "run/checkpoints/step-00000015.pt", weights_only=True)
    keys = {"progress", "model", "optimizer", "schedulers", "scaler", "processes", "metrics_length", "files"}
    assert set(state) == keys
    best = torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)
    assert set(best) == {"model", "metrics", "step", "epoch", "files"}
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["best"] == {**best["metrics"], "step": best["step"], "epoch": best["epoch"]}
    names = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert names == ["best.pt", "step-00000014.pt", "step-00000015.pt"]


def test_all_global_generators_are_restored():
    import random as python_random

    import numpy as np

    state = checkpoints.rng_state()
    expected = python_random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()
    checkpoints.set_rng_state(state)
    assert expected == (python_random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item())


def test_a_generator_is_left_alone_where_nothing_was_drawn(monkeypatch):
    states, setter = [], torch.set_rng_state
    monkeypatch.setattr(torch, "set_rng_state", lambda state: (states.append(state), setter(state)))
    state = checkpoints.rng_state()
    assert not checkpoints.set_rng_state(state, only_changed=True)
    assert not states
    expected = torch.rand(1).item()
    checkpoints.set_rng_state(state, only_changed=True)
    assert len(states) == 1 and torch.rand(1).item() == expected


# ---- the run directory -----------------------------------------------------------------------------------------------


def test_another_configuration_is_refused_and_named(tmp_path):
    train(tmp_path, toy_config(), max_steps=1)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"optim\.noise = 0\.5, now 0\.7\); choose another directory"):
        train(tmp_path, toy_config({"noise": 0.7}))
    with pytest.raises(UserError, match=r"seed = 0, now 3, .* and 1 more"):
        train(tmp_path, toy_config({"noise": 0.7, "lr": 1.0}, {"clip": 1.0}, seed=3))
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_folders_that_are_no_runs_are_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("…")
    with pytest.raises(UserError, match="thesis: not empty, and not a run"):
        RunDirectory(tmp_path / "thesis", {})
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]
    with pytest.raises(UserError, match="cannot write there"):
        RunDirectory(tmp_path / "thesis/chapter1.tex/run", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_an_unwritable_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write there"):
        RunDirectory(tmp_path / "run", {})


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    process = launch(tmp_path / "run", {"training": {"epochs": 10_000}})
    try:
        wait_for(tmp_path / "run", "checkpoints/step-*.pt")
        with pytest.raises(UserError, match="another process is training there"):
            RunDirectory(tmp_path / "run", asdict(toy_config(training={"epochs": 10_000})))
    finally:
        process.kill()
        process.join()
    RunDirectory(tmp_path / "run", asdict(toy_config(training={"epochs": 10_000}))).close()


def test_environment_is_recorded_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    RunDirectory(tmp_path / "run", {"seed": 5}).close()
    record = json.loads((tmp_path / "run/environment.json").read_text())
    assert record["seed"] == 5 and record["commit"] is None and record["packages"]["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads() and record["cores"] and record["command"]


def test_metrics_without_a_number_are_null(tmp_path):
    run = RunDirectory(tmp_path / "run", {})
    run.write_metrics({"kind": "valid", "step": 1, "loss": float("nan"), "best": float("inf")})
    run.close()
    assert (tmp_path / "run/metrics.jsonl").read_text() == '{"kind": "valid", "step": 1, "loss": null, "best": null}\n'
