"""The figures of all campaigns so far, by commit, in a file that grows; and the page that shows them."""

import json
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from programs import ROOT

from seqssgd.files import atomic_path

from .inputs import MEMORY, MULTIPLE, SLOW

FILE, PAGE = ROOT / "docs/reliability.json", ROOT / "docs/reliability.md"
NOTES = 20  # of failures, kept for each kind of trial
MENDED = "mended"  # in a note, by whoever mended what failed

TITLES = {
    "kills": "trainings killed by SIGKILL, SIGTERM or SIGINT at random instants and started again",
    "ranks": "two data-parallel processes (gloo), one killed, both started again",
    "power cuts": "trainings whose power fails at syncs, renames and deletions, started again from what the disk held",
    "inputs": "batches of mutated inputs of one reader, a hundred at most",
    "soak": "trainings in tiny steps, watched for growth",
}
OF = {"inputs": "kinds of input"}  # else of training: a recipe with a method


def add(kind: str, found: dict[str, Any], file: Path = FILE) -> None:
    """Adds what one trial counted to the figures of this commit."""
    add_all({commit(): {kind: found}}, file)


def add_all(more: dict[str, Any], file: Path = FILE) -> None:
    """Adds figures by commit and kind of trial to those of a file."""
    figures = read(file)
    for name, kinds in more.items():
        for kind, found in kinds.items():
            _merge(figures.setdefault(name, {}).setdefault(kind, {"trials": 0, "failed": 0}), found)
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _merge(own: dict[str, Any], found: dict[str, Any]) -> None:
    for key, value in found.items():
        if key in ("note", "notes"):
            notes = [*own.get("notes", []), *([value] if key == "note" else value)]
            own["notes"] = list(dict.fromkeys(notes))[:NOTES]
        elif key == "of":
            own[key] = dict(Counter(own.get(key, {})) + Counter(value))
        elif "growth" in key:
            own[key] = max(own.get(key, value), value)
        else:
            own[key] = own.get(key, 0) + value


def read(file: Path = FILE) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@cache
def commit() -> str:
    """The commit that is tried, and whether anything but these figures was changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()

    others = [f":!docs/{path.name}" for path in (FILE, PAGE)]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + "-dirty" * bool(changed)


def totals(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of all commits together."""
    found: dict[str, Any] = {}
    for kinds in figures.values():
        for kind, own in kinds.items():
            _merge(found.setdefault(kind, {}), own)
    return found


def table(figures: dict[str, Any]) -> str:
    """The figures as a table in Markdown: of all commits together, then a row for each commit and kind of trial."""
    lines = ["| commit | trials | what | counted | failed |", "| --- | ---: | --- | --- | ---: |"]
    for name, kinds in {"all": totals(figures), **{f"`{name}`": kinds for name, kinds in figures.items()}}.items():
        for kind, found in kinds.items():
            counted = [f"{value:,} {key}" for key, value in found.items()
                       if key not in ("trials", "failed", "notes", "of")]  # fmt: skip
            if "of" in found:
                counted.append(f"{len(found['of'])} {OF.get(kind, 'kinds of training')}")
            what = TITLES[kind] if name == "all" else kind
            lines.append(f"| {name} | {found['trials']:,} | {what} | {', '.join(counted)} | {found['failed']:,} |")
    return "\n".join(lines)


def of_kills(figures: dict[str, Any]) -> str:
    """How many kills hit which recipe and which method."""
    counts = totals(figures).get("kills", {}).get("of", {})
    recipes, methods = Counter(), Counter()
    for name, kills in counts.items():
        recipe, _, method = name.partition(" ")
        recipes[recipe] += kills
        methods[method] += kills if method else 0
    lines = [", ".join(f"{name} {kills:,}" for name, kills in sorted(found.items()) if kills) for found in
             (recipes, methods)]  # fmt: skip
    return f"Kills by what they hit: {lines[0]}. By method: {lines[1]}."


def page(figures: dict[str, Any]) -> str:
    """docs/reliability.md."""
    notes = [f"- `{name}`, {kind}: {note.replace('<', '&lt;')}" for name, kinds in figures.items()
             for kind, found in kinds.items() for note in found.get("notes", [])]  # fmt: skip
    still = [note for note in notes if MENDED not in note]
    mended = len(notes) - len(still)
    parts = [
        "# Reliability under fault",
        "This page is written by `python -m tests.campaign --minutes 60`, which adds to its figures: first those of "
        "all together, then trials of the state of the repository that the first column names. A trial fails if a "
        "training that was interrupted does not end with the same weights, optimizer state, best model, metrics and "
        "result to the bit as one that was not; if an input makes a reader raise anything but its own refusal of one "
        f"line, run longer than {SLOW:.0f} seconds or take more memory than {MEMORY // 2**20} MiB and {MULTIPLE} times "
        "the input; or if memory, open files, threads or the disk grow by over 5 %.",
        table(figures),
        of_kills(figures),
        "Trainings are forked from a process that has imported everything, so that a trial takes seconds; in "
        "one of twenty Python starts anew, and kills hit its imports as well. "
        "Power cuts are simulated: of every file and folder is kept what the last `fsync` made certain, and at each "
        "call the rest is lost, in whole or in part (`tests/campaign/powercut.py`). Disks that lie about `fsync` are "
        "another matter.",
        "## What is open\n\n" + ("\n".join(still) or "Nothing."),
        f"Earlier trials found {mended} kinds of failure; all are fixed. At most {NOTES} kinds are recorded for each "
        "commit and kind of trial. [reliability.json](reliability.json) has what each was.",
    ]
    return "\n\n".join(parts) + "\n"
