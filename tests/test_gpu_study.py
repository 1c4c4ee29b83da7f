"""The paper's own sizes, rehearsed: every run is one that the programs take, and a stopped rehearsal goes on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from programs import coloured_images, generated_lines, load, refused

from seqssgd.data.text import write_text_dataset

GPU, STUDY = load("recipes/studies/gpu.py"), load("recipes/studies/run.py")
STUDIES, RECIPES = (STUDY.read_yaml(STUDY.HERE / f"{name}.yaml") for name in ("studies", "recipes"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sets = {name: generated_lines(60, 15, seed=i) for i, name in enumerate(("train", "valid", "test"))}
    write_text_dataset(folder / "ptb", sets, "15 words")
    coloured_images(folder / "cifar10")
    return folder


@pytest.mark.parametrize(("name", "rehearsed"), [*((name, False) for name in GPU.JOBS), ("4k", True)])
def test_every_job_is_a_study_with_a_process_for_each_run(name, rehearsed, data, tmp_path):
    job = GPU.JOBS[name]
    options = job.rehearsal if rehearsed else job.options
    study = STUDY.build(
        STUDIES[job.study], RECIPES[job.recipe], data / job.data, tmp_path / "out", job.seeds, list(options)
    )
    assert len(study.cells) == job.processes
    epochs = {cell.arm: cell.config["training"]["epochs"] for cell in study.cells}
    assert epochs["none"] == epochs["ssgd"] and (rehearsed or epochs["none"] in (39, 55, 175))
    if not rehearsed and "phases" in epochs:
        assert next(c for c in study.cells if c.arm == "phases").config["optim"]["noise_schedule"] == "75-25S-25S"


def test_a_rehearsal_that_ran_out_of_time_goes_on_to_its_end_and_is_then_left_alone(data, tmp_path, capfd, monkeypatch):
    def listed(words: list[str], check: bool) -> None:
        """What follows the trainings, in this process."""
        assert words[:2] == [sys.executable, str(GPU.RUN)] and STUDY.main(words[2:]) == 0

    monkeypatch.setattr(GPU, "subprocess", SimpleNamespace(Popen=subprocess.Popen, run=listed))

    def rehearse(minutes: float, processes: int) -> str:
        monkeypatch.setitem(GPU.JOBS, "lstm", dataclasses.replace(GPU.JOBS["lstm"], processes=processes))
        words = ["--rehearse", "--jobs", "lstm", "--data", data, "--out", tmp_path / "out", "--max-minutes", minutes]
        assert GPU.main([str(word) for word in words]) == 0
        return capfd.readouterr().out

    assert "none/seed0: finished" not in rehearse(0.0001, 1)
    said = rehearse(5, 2)
    assert "none/seed0: finished\nssgd/seed0: finished" in said and "lstm: started; see" in said
    runs = [tmp_path / "out/lstm" / arm / "seed0" for arm in ("none", "ssgd")]
    assert [json.loads((run / "result.json").read_text())["epochs"] for run in runs] == [3, 3]
    assert all("test" in json.loads((run / "evaluation.json").read_text()) for run in runs)
    before = {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*") if path.is_file()}
    rehearse(5, 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def asleep(monkeypatch, code: str) -> None:
    monkeypatch.setattr(GPU, "command", lambda name, args: [sys.executable, "-c", code])


def test_a_signal_goes_to_all_processes_and_no_further_one_starts(tmp_path, monkeypatch, capfd):
    asleep(monkeypatch, "import sys, time; print('up', flush=True); time.sleep(60)")
    args = GPU.parse(["--rehearse", "--out", str(tmp_path), "--parallel", "2"])

    def send() -> None:
        while not all(
            (tmp_path / f"lstm-{i}.log").is_file() and (tmp_path / f"lstm-{i}.log").read_text() for i in (1, 2)
        ):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before, thread = signal.getsignal(signal.SIGTERM), threading.Thread(target=send)
    thread.start()
    began = time.monotonic()
    assert GPU.Pool(args, time.monotonic() + 60).work(["lstm"] * 3) == 143
    thread.join()
    assert time.monotonic() - began < 30 and not (tmp_path / "lstm-3.log").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_that_fails_is_named_with_its_log_and_the_others_run(tmp_path, monkeypatch, capfd):
    asleep(monkeypatch, "import sys; print('why'); sys.exit(3)")
    args = GPU.parse(["--rehearse", "--out", str(tmp_path)])
    assert GPU.Pool(args, time.monotonic() + 60).work(["lstm", "4k"]) == 1
    said = capfd.readouterr().err
    assert f"error: lstm: status 3; the reason is in {tmp_path / 'lstm-1.log'}" in said and "error: 4k" in said
    assert (tmp_path / "lstm-1.log").read_text() == "why\n"


def test_what_cannot_be_done_is_one_line(tmp_path, capsys, monkeypatch):
    assert f"--jobs lstn: there are {', '.join(GPU.JOBS)}" in refused(capsys, GPU.main, "--jobs", "lstn")
    assert "--max-minutes must be a number > 0" in refused(capsys, GPU.main, "--max-minutes", "nan")
    assert "--parallel at least 1" in refused(capsys, GPU.main, "--parallel", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device here; --rehearse" in refused(capsys, GPU.main, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
