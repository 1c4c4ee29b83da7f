"""The figures of all campaigns so far, by commit, in a file that grows; and the page that shows them."""

import json
import subprocess
from pathlib import Path
from typing import Any

from programs import ROOT

from seqssgd.files import atomic_path

FILE, PAGE = ROOT / "docs/reliability.json", ROOT / "docs/reliability.md"
NOTES = 20  # of failures, kept for each kind of trial

TITLES = {
    "kills": "trainings killed by SIGKILL, SIGTERM or SIGINT at random instants and started again",
    "ranks": "two data-parallel processes (gloo), one killed, both started again",
    "power cuts": "power lost at a random sync, rename or deletion, and started again from what the disk held",
    "inputs": "batches of 100 mutated inputs of one reader",
    "soak": "trainings in tiny steps, watched for growth",
}


def add(kind: str, found: dict[str, Any], file: Path = FILE) -> None:
    """Adds what one trial counted to the figures of this commit."""
    figures = read(file)
    own = figures.setdefault(commit(), {}).setdefault(kind, {"trials": 0, "failed": 0})
    for key, value in found.items():
        if key == "note":
            notes = own.setdefault("notes", [])
            if value not in notes:
                notes[NOTES - 1 :] = [value]
        elif "growth" in key:
            own[key] = max(own.get(key, value), value)
        else:
            own[key] = own.get(key, 0) + value
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def read(file: Path = FILE) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def commit() -> str:
    """The commit that is tried, and whether it was changed."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def table(figures: dict[str, Any]) -> str:
    """The figures as a table in Markdown, a row for each commit and kind of trial."""
    lines = ["| commit | trials | what | counted | failed |", "| --- | ---: | --- | --- | ---: |"]
    for name, kinds in figures.items():
        for kind, found in kinds.items():
            counted = [f"{value:,} {key}" for key, value in found.items() if key not in ("trials", "failed", "notes")]
            lines.append(
                f"| `{name}` | {found['trials']:,} | {TITLES[kind]} | {', '.join(counted)} | {found['failed']:,} |"
            )
    return "\n".join(lines)


def page(figures: dict[str, Any]) -> str:
    """docs/reliability.md."""
    failures = []
    for name, kinds in figures.items():
        for kind, found in kinds.items():
            failures += [f"- `{name}`, {kind}: {note.replace('<', '&lt;')}" for note in found.get("notes", [])]
    parts = [
        "# Reliability under fault",
        "This page is written by `python -m tests.campaign --minutes 60`, which adds to its figures: trials of the "
        "state of the repository that the first column names. A trial fails if a training that was interrupted does "
        "not end with the same weights, optimizer, metrics and result to the bit as one that was not; if an input "
        "makes a reader raise anything but its own refusal of one line, run longer than 20 seconds or take more "
        "memory than 64 MiB and 50 times the input; or if memory, open files, threads or the disk grow by over 5 %.",
        table(figures),
        "Power cuts are simulated: of every file and folder is kept what the last `fsync` made certain, and at a "
        "random call the rest is lost, in whole or in part (`tests/campaign/powercut.py`). Disks that lie about "
        "`fsync` are another matter.",
        "## What failed\n\n" + ("\n".join(failures) or "Nothing."),
    ]
    return "\n\n".join(parts) + "\n"
