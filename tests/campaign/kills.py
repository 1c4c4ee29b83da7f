"""Trainings that are killed at random instants end as those that are not: the same bits, metrics and files."""

import json
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path

from .processes import Child, child
from .trainings import Training, Trainings, result_of

SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
LONGEST = 240.0  # seconds of an attempt; more is a hang


class Kills:
    """One trial: a training, killed up to five times; and what it ended with."""

    name = "kills"

    def __init__(self, folder: Path) -> None:
        self.folder, self.trainings = folder, Trainings(folder)
        self.whole: dict[str, tuple[list, float]] = {}

    def trial(self, chance: random.Random) -> dict[str, int | str]:
        training = self.trainings.any(chance)
        expected, seconds = self.reference(training)
        out, log = self.folder / "killed", self.folder / "log"
        shutil.rmtree(out, ignore_errors=True)
        log.unlink(missing_ok=True)
        count = {"trials": 1, "kills": 0, training.name.split()[0]: 1}
        for _ in range(chance.randint(1, 5)):
            with child(lambda: training.run(out), log) as process:
                process.wait(chance.uniform(0, 0.9) * seconds)
                process.kill(chance.choice(SIGNALS))
                status = process.wait(LONGEST)
            if status is None:
                return count | {"failed": 1, "note": f"{training.name}: hangs after a signal"}
            if status == 70:
                return count | {"failed": 1, "note": f"{training.name}: {last_line(log)}"}
            count["kills"] += status in (-9, -15, -2, 143, 130)
        with child(lambda: training.run(out), log) as process:
            status = process.wait(LONGEST)
        if status != 0 or result_of(out) != expected:
            return count | {"failed": 1, "note": f"{training.name}: status {status}, {last_line(log)}"}
        left = [path for path in out.rglob(".*.tmp")]
        return count | ({"failed": 1, "note": f"{training.name}: left {left[0].name}"} if left else {})

    def reference(self, training: Training) -> tuple[list, float]:
        """What the training ends with uninterrupted, and how long it takes."""
        if training.name not in self.whole:
            out, begin = self.folder / "whole", time.monotonic()
            shutil.rmtree(out, ignore_errors=True)
            with child(lambda: training.run(out), self.folder / "log") as process:
                status = process.wait(LONGEST)
            if status != 0:
                raise RuntimeError(f"{training.name} ends with {status}: {last_line(self.folder / 'log')}")
            self.whole[training.name] = result_of(out), time.monotonic() - begin
        return self.whole[training.name]


class Ranks(Kills):
    """One trial: two data-parallel processes, one of which is killed; both are started again."""

    name = "ranks"

    def trial(self, chance: random.Random) -> dict[str, int | str]:
        sign = chance.choice(["ranks", "batch", "halves"])
        training = self.trainings.recipe("ptb_lstm", "ssgd", "--optim.signs", sign)
        training = Training(f"{training.name} {sign}", training.main, training.arguments)
        if training.name not in self.whole:
            out, begin = self.folder / "whole", time.monotonic()
            shutil.rmtree(out, ignore_errors=True)
            if self.both(training, out, None, chance) != [0, 0]:
                raise RuntimeError(f"{training.name}: {last_line(self.folder / 'log')}")
            self.whole[training.name] = result_of(out), time.monotonic() - begin
        expected, seconds = self.whole[training.name]
        out = self.folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        count = {"trials": 1, "kills": 0}
        for _ in range(chance.randint(1, 2)):
            statuses = self.both(training, out, chance.uniform(0.1, 0.9) * seconds, chance)
            count["kills"] += -9 in statuses
        statuses = self.both(training, out, None, chance)
        if statuses != [0, 0] or result_of(out) != expected:
            return count | {"failed": 1, "note": f"{training.name}: {statuses}, {last_line(self.folder / 'log')}"}
        return count

    def both(self, training: Training, out: Path, after: float | None, chance: random.Random) -> list[int | None]:
        """Trains with two ranks over the loopback; kills one ``after`` so many seconds, then both."""

        def rank() -> int:
            from seqssgd.training import cleanup

            try:
                return training.run(out)
            finally:
                cleanup()

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
        logs = [self.folder / "log", self.folder / "log1"]
        ranks = [Child(rank, log, {**common, "RANK": str(i), "LOCAL_RANK": str(i)}) for i, log in enumerate(logs)]
        try:
            if after is not None:
                time.sleep(after)
                ranks[chance.randrange(2)].kill()
                for process in ranks:
                    process.wait(0.5)
                    process.kill()
            return [process.wait(LONGEST) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.wait(10)


def last_line(log: Path) -> str:
    """What a process said last, without paths."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return json.dumps(lines[-1].replace(os.sep, "/")[-160:]) if lines else "nothing said"
