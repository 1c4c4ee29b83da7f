"""Two processes under torchrun: the weights of one process on the whole batch, and exact resume.

Starting processes takes most of the time, so one launch of this file as a program trains all runs that are looked at.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from toy_task import ToyTask, toy_config, train

from seqssgd import processes
from seqssgd.errors import UserError
from seqssgd.runs import checkpoints
from seqssgd.training import cleanup, distributed
from seqssgd.training.recipe import run_program

METHODS = {
    "none": ({"method": "none"}, {}),
    "batch": ({"signs": "batch"}, {"clip": 0.3, "log_curvature": True}),
    "halves": ({"signs": "halves"}, {"accumulate": 2}),
    "steps": ({"signs": "steps", "base": "adam", "lr": 0.01}, {"accumulate": 2, "clip": 0.3}),
    "ranks": ({"signs": "ranks"}, {"clip": 0.3}),
    "pairs": ({"signs": "pairs"}, {"clip": 0.3, "accumulate": 2}),
}


def settings(optim=None, training=None, dropout=0.0):
    return toy_config(optim, {"epochs": 2, "checkpoint_every": None, **(training or {})}, dropout=dropout)


DROPOUT = settings({"signs": "steps"}, {"accumulate": 2}, dropout=0.5)


class NanTask(ToyTask):
    """One example of the third minibatch is not a number: with two processes, one of process 1."""

    def batches(self, epoch, start=0):
        for index, (x, y) in enumerate(super().batches(epoch, start), start):
            if index == 2 and processes.rank() == processes.world_size() - 1:
                x = torch.cat([x[:-1], x[-1:] * torch.nan])
            yield x, y


class ByRankTask(ToyTask):
    """The examples of process 0 come first, those of process 1 then: halves are what the processes have."""

    def batches(self, epoch, start=0):
        yield from (tuple(torch.cat([x[0::2], x[1::2]]) for x in batch) for batch in super().batches(epoch, start))


class StoppedTask(ToyTask):
    """Process 1 gets a SIGTERM within the third step, and process 0 none."""

    def batches(self, epoch, start=0):
        for index, batch in enumerate(super().batches(epoch, start), start):
            if index == 5 and epoch == 0 and processes.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


# ---- the program that torchrun starts twice --------------------------------------------------------------------------


def write_attempts(folder: str) -> list[tuple]:
    """A list that grows with everything this process tries to write in ``folder``."""
    attempts: list[tuple] = []

    def audit(event, arguments):
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.truncate") and str(arguments[0]).startswith(
            folder
        ):
            if event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                attempts.append((event, str(arguments[0])))

    sys.addaudithook(audit)
    return attempts


def count_exchanges() -> list[int]:
    """A list that gets one entry, its size, for every bucket of gradients that goes over the wire."""
    sizes, real = [], processes.parallel

    def parallel(model):
        wrapped = real(model)

        def hook(state, bucket):
            sizes.append(bucket.buffer().numel())
            return default_hooks.allreduce_hook(state, bucket)

        wrapped.register_comm_hook(None, hook)
        return wrapped

    processes.parallel = parallel
    return sizes


def worker(folder: Path) -> None:
    attempts, sizes, report = write_attempts(str(folder / "runs")), count_exchanges(), {}

    def run(name, *arguments, again=False, **limits):
        sizes.clear()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            result, task = train(folder / "runs" / name, *arguments, **limits)
        report[name + (", resumed" if again else "")] = {
            "weights": task.model.state_dict(),
            "result": result,
            "exchanges": list(sizes),
            "printed": out.getvalue(),
            "rng": torch.get_rng_state(),
        }

    for name, (optim, training) in METHODS.items():
        run(name, settings(optim, training))
    run("nan", settings(), NanTask, {"carry": False})
    run("whole", DROPOUT)
    run("parts", DROPOUT, max_steps=3)
    run("parts", DROPOUT, again=True)
    run("stopped", DROPOUT, StoppedTask)
    run("stopped", DROPOUT, again=True)
    try:
        run("whole", settings(), again=True)
    except UserError as error:
        report["refusal"] = str(error)
    report["attempts"] = attempts
    torch.save(report, folder / f"rank{processes.rank()}.pt")
    cleanup()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the runs, and what each process reports of them."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder / "runs", [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


# ---- what it must have done ------------------------------------------------------------------------------------------


def rows(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if row["kind"] == kind]


def assert_same_bits(a, b):
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_come_to_the_weights_of_one_on_the_whole_batch(runs, tmp_path, name):
    folder, reports = runs
    (optim, training), task_class = METHODS[name], ToyTask
    if name == "ranks":
        optim, task_class = {"signs": "halves"}, ByRankTask
    if name == "pairs":
        optim = {"signs": "batch"}
    result, task = train(tmp_path, settings(optim, training), task_class, {"batch": 4 if name == "pairs" else 8})
    for key, weight in task.model.state_dict().items():
        torch.testing.assert_close(reports[0][name]["weights"][key], weight, rtol=1e-4, atol=1e-5)
    for key in ("steps", "epochs", "passes", "units", "nonfinite"):
        assert reports[0][name]["result"][key] == result[key]
    for kind, key in (("train", "loss"), ("valid", "train_loss")):
        ours, alone = ([row[key] for row in rows(run, kind)] for run in (folder / name, tmp_path))
        assert ours == pytest.approx(alone, rel=1e-4) and len(ours) in (2, 3)
    if name == "batch":
        ours, alone = ([row["sharpness"] for row in rows(run, "train")] for run in (folder / name, tmp_path))
        assert ours == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_exchanged_once_per_step(runs, name):
    size = sum(w.numel() for w in ToyTask(toy_config()).model.parameters())
    assert all(report[name]["exchanges"] == [size] * 10 for report in runs[1])  # ten steps of up to two passes on two


def test_all_processes_have_the_same_bits(runs):
    first, second = runs[1]
    for name in set(first) - {"attempts", "refusal"}:
        assert_same_bits(first[name]["weights"], second[name]["weights"])
        for key in ("best", "steps", "nonfinite", "exit_code", "finished"):
            assert first[name]["result"][key] == second[name]["result"][key]


def test_every_process_has_a_dropout_of_its_own(runs):
    first, second = (report["whole"]["rng"] for report in runs[1])
    assert not torch.equal(first, second)


def test_a_loss_that_is_not_finite_in_one_process_is_skipped_in_all(runs, tmp_path):
    result, task = train(tmp_path, settings(), NanTask, {"batch": 8, "carry": False})
    assert result["nonfinite"] == 2
    for report in runs[1]:
        assert report["nan"]["result"]["nonfinite"] == 2
        for key, weight in task.model.state_dict().items():
            torch.testing.assert_close(report["nan"]["weights"][key], weight, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(runs):
    for report in runs[1]:
        assert report["parts"]["result"]["steps"] == 3 and report["whole"]["result"]["steps"] == 10
        for other in ("parts, resumed", "stopped, resumed"):
            assert_same_bits(report[other]["weights"], report["whole"]["weights"])
            assert torch.equal(report[other]["rng"], report["whole"]["rng"])


def test_a_signal_to_one_process_stops_all_after_the_same_step(runs):
    for report in runs[1]:
        result = report["stopped"]["result"]
        assert (result["exit_code"], result["finished"], result["steps"]) == (143, False, 3)


def test_what_the_main_process_refuses_all_refuse(runs):
    first, second = (report["refusal"] for report in runs[1])
    assert first == second and "whole: a run of another configuration" in first


@pytest.mark.parametrize("words", ["Connection closed by peer [::1]:1", "Read error [::1]:1: Connection reset by peer"])
def test_the_end_of_another_process_is_one_line(monkeypatch, capsys, words):
    def main():
        raise RuntimeError(f"[gloo/transport/tcp/pair.cc:537] {words}. GLHF!")

    with pytest.raises(RuntimeError, match="GLHF"):
        distributed.with_others(main)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(SystemExit, match="^2$"):
        run_program(main)
    assert capsys.readouterr().err.startswith("error: another process of this training has ended, or cannot be reached")


def test_only_the_main_process_writes_and_speaks(runs):
    folder, (main, other) = runs
    assert other["attempts"] == [] and len(main["attempts"]) > 50  # the main one's show that the audit works
    names = set(main) - {"attempts", "refusal"}
    assert all("step 3" in main[name]["printed"] and other[name]["printed"] == "" for name in names)
    assert json.loads((folder / "whole/environment.json").read_text())["processes"] == 2


def test_a_checkpoint_of_another_number_of_processes_is_refused(runs, tmp_path):
    shutil.copytree(runs[0] / "parts", tmp_path / "run")
    (tmp_path / "run/result.json").unlink()  # as if it were not finished
    path = checkpoints.load_newest(tmp_path / "run/checkpoints")[0]
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", DROPOUT)
    assert str(caught.value) == f"{path}: made by 2 processes; resume with as many"


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
