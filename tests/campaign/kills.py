"""Trainings that are killed at random instants end as those that are not: the same bits, metrics and files."""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

from programs import ROOT

from .processes import Child, Started, alive, learn, learning
from .trainings import Training, Trainings, result_of

SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
KILLED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT}
MOST = 8  # kills of one training
STARTED = 0.05  # share of the trials in which Python starts anew, so that kills hit its imports, too
LONGEST = 240.0  # seconds of an attempt; more is a hang


class Kills:
    """One trial: a training, killed up to eight times; and what it ended with."""

    name = "kills"

    def __init__(self, folder: Path) -> None:
        self.folder, self.trainings, self.log = folder, Trainings(folder), folder / "log"
        self.whole: dict[str, tuple[list, float]] = {}
        self.start = 0.0  # seconds in which Python and all imports are there

    def trial(self, chance: random.Random) -> dict:
        training, anew = self.trainings.any(chance), chance.random() < STARTED
        expected, seconds = self.reference(training)
        if anew:
            seconds += self.seconds_of_a_start()
        out = self.folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        count: dict = {"trials": 1, "kills": 0, "of": Counter()}
        for _ in range(chance.randint(1, MOST)):
            with alive(self.attempt(training, out, anew)) as process:
                process.wait(chance.uniform(0, seconds))
                process.kill(chance.choice(SIGNALS))
                status = process.wait(LONGEST)
            if status in KILLED:
                count["kills"] += 1
                count["of"][training.name] += 1
            if status == 0:
                break
            if status not in KILLED and not (anew and self.is_pythons_own()):
                return count | self.failure(training, "hangs after a signal" if status is None else f"status {status}")
        with alive(self.attempt(training, out, anew)) as process:
            status = process.wait(LONGEST)
        if status != 0 or result_of(out) != expected:
            return count | self.failure(training, f"status {status} in the end")
        left = [path.name for path in out.rglob(".*.tmp")]
        return count | (self.failure(training, f"left {left[0]}") if left else {})

    def attempt(self, training: Training, out: Path, anew: bool) -> Child | Started:
        return Started(training.command(out), self.log) if anew else Child(lambda: training.run(out), self.log)

    def reference(self, training: Training) -> tuple[list, float]:
        """What the training ends with uninterrupted, and how many seconds it takes."""
        if training.name not in self.whole:
            out, modules = self.folder / "whole", self.folder / "modules"
            for _ in range(1 if modules.exists() else 2):  # the first one also imports
                shutil.rmtree(out, ignore_errors=True)
                begin = time.monotonic()
                with alive(Child(learning(lambda: training.run(out), modules), self.log)) as process:
                    if (status := process.wait(LONGEST)) != 0:
                        raise RuntimeError(f"{training.name} ends with {status}: {last_line(self.log)}")
                self.whole[training.name] = result_of(out), time.monotonic() - begin
                learn(modules)
        return self.whole[training.name]

    def seconds_of_a_start(self) -> float:
        if not self.start:
            begin = time.monotonic()
            with alive(Started([*self.trainings.recipe("ptb_lstm", "none").command(self.folder)[:2], "--help"],
                               self.log)) as process:  # fmt: skip
                process.wait(LONGEST)
            self.start = time.monotonic() - begin
        return self.start

    def is_pythons_own(self) -> bool:
        """Whether Ctrl-C came before the first line of a program, where Python itself shows a traceback."""
        text = self.log.read_text(errors="replace")
        return "KeyboardInterrupt" in text and str(ROOT) not in text

    def failure(self, training: Training, what: str) -> dict:
        said = last_line(self.log).replace(f"{self.folder}{os.sep}", "")
        return {"failed": 1, "note": f"{training.name}: {what}, {said}"}


def last_line(log: Path) -> str:
    """What a process said last, without paths."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return json.dumps(lines[-1].replace(os.sep, "/")[-160:]) if lines else "nothing said"
