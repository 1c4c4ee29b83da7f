"""A demonstration that needs no data and a few minutes: SGD and symmetric weight noise at equal compute.

    make demo

It trains small LSTM language models on the docstrings of Python's standard library by the commands that it prints,
and compares them. Started again, it goes on where it was stopped. It is no result: one seed, a tiny text.
"""

import argparse
import contextlib
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRAIN, PREPARE = HERE.parent / "ptb_lstm/train.py", HERE.parents[1] / "data_prep/text.py"
NOISE = ["--optim.method", "ssgd", "--optim.noise", "0.5"]
METHODS = {
    "sgd": ["--optim.method", "none"],
    "ssgd": [*NOISE, "--training.epochs", "6"],
    "ssgd-halves": [*NOISE, "--optim.signs", "halves"],
}


def run(*command: object) -> None:
    """Runs one of the project's commands, after printing it; ends the demonstration if it fails."""
    words = [str(word) for word in command]
    print("\n$ python " + shlex.join(words), flush=True)
    process = subprocess.Popen([sys.executable, *words])
    while process.returncode is None:
        with contextlib.suppress(KeyboardInterrupt):  # the command got it too, and stops after a checkpoint
            process.wait()
    if process.returncode:
        sys.exit(process.returncode)


def minutes(seconds: float) -> str:
    """A length of time, as far as anybody wants to know it."""
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{max(10, round(seconds, -1)):.0f} seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the text, the runs and the report")
    out = parser.parse_args().out
    print("A demonstration of the commands, not a result: one seed, a tiny text, three trainings.")
    print("Equal compute: symmetric noise takes two passes a step, so it gets half the epochs; its halves take one.")
    run(HERE / "docstrings.py", "--out", out / "docstrings.txt", "--sentences", 4400)
    run(
        PREPARE, "--train", out / "docstrings.txt", "--vocab-size", 3000, "--valid-fraction", 0.1, "--out", out / "data"
    )
    runs, spent = [out / name for name in METHODS], 0.0
    for number, path in enumerate(runs, 1):
        left = f"; about {minutes(spent / (number - 1) * (len(runs) - number + 1))} to go" if spent else ""
        print(f"\n{number} of {len(runs)}: {path.name}{left}")
        started = time.monotonic()
        run(TRAIN, "--config", HERE / "small.yaml", "--data", out / "data", "--out", path, *METHODS[path.name])
        spent += time.monotonic() - started
    run("-m", "seqssgd", "compare", *runs, "--out", out / "report")
    print(f"\nThe trainings took {minutes(spent)}. This was a demonstration: README.md has the library in three lines,")
    print("and recipes/ the real experiments.")


if __name__ == "__main__":
    main()
