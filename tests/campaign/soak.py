"""Hours of training in tiny steps: memory, open files, threads and disk must stay what they were."""

import os
import random
import shutil
import statistics
import time
from pathlib import Path

from .processes import child
from .trainings import Trainings


class Soak:
    """One trial: a training of ``seconds`` with evaluations, logs and checkpoints, looked at all the while."""

    name = "soak"

    def __init__(self, folder: Path, seconds: float = 60.0) -> None:
        self.folder, self.trainings, self.seconds = folder, Trainings(folder), seconds

    def trial(self, chance: random.Random) -> dict[str, float | str]:
        endless = ["--training.epochs", 10**7, "--max-minutes", self.seconds / 60, "--training.log_every", 1000]
        endless += ["--training.evaluate_every", 2, "--training.checkpoint_every", 50]
        training = self.trainings.recipe("ptb_lstm", "ssgd", *endless)
        out, log = self.folder / "soak", self.folder / "log"
        shutil.rmtree(out, ignore_errors=True)
        log.unlink(missing_ok=True)
        seen: list[dict[str, float]] = []
        with child(lambda: training.run(out), log) as process:
            while (status := process.wait(self.seconds / 200)) is None:
                if measured := measure(process.pid, out):
                    seen.append(measured)
        if status != 0 or len(seen) < 8:
            return {"trials": 1, "failed": 1, "note": f"soak: status {status}"}
        quarter = len(seen) // 4
        early, late = ({key: statistics.median(one[key] for one in part) for key in seen[0]}
                       for part in (seen[quarter : 2 * quarter], seen[-quarter:]))  # fmt: skip
        growth = {f"{key} growth in %": round(100 * (late[key] / early[key] - 1), 2) for key in early if early[key]}
        steps = int(sorted(out.glob("checkpoints/step-*.pt"))[-1].stem.split("-")[1])
        found = {"trials": 1, "seconds": round(self.seconds), "steps": steps, **growth}
        grown = [key for key, value in growth.items() if value > 5]
        return found | ({"failed": 1, "note": f"soak: {grown[0]} {growth[grown[0]]}"} if grown else {})


def measure(pid: int, out: Path) -> dict[str, float] | None:
    """Resident memory in bytes, open files, threads, and bytes of checkpoints; None once the process is gone."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        files = [path for path in out.rglob("*.pt")]
        return {
            "memory": 1024.0 * int(fields["VmRSS"].split()[0]),
            "open files": float(len(os.listdir(f"/proc/{pid}/fd"))),
            "threads": float(fields["Threads"]),
            "disk": float(sum(path.stat().st_size for path in files)),
        }
    except (OSError, KeyError):
        time.sleep(0.01)
        return None
