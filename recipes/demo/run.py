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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the text, the runs and the report")
    out = parser.parse_args().out
    print("A demonstration of the commands, not a result: one seed and a tiny text. About three minutes on two cores.")
    print("Equal compute: symmetric noise takes two passes a step, so it gets half the epochs; its halves take one.")
    run(HERE / "docstrings.py", "--out", out / "docstrings.txt", "--sentences", 4400)
    run(
        PREPARE, "--train", out / "docstrings.txt", "--vocab-size", 3000, "--valid-fraction", 0.1, "--out", out / "data"
    )
    runs = [out / name for name in METHODS]
    for path in runs:
        run(TRAIN, "--config", HERE / "small.yaml", "--data", out / "data", "--out", path, *METHODS[path.name])
    run("-m", "seqssgd", "compare", *runs, "--out", out / "report")
    print("\nThis was a demonstration. README.md has the library in three lines, and recipes/ the real experiments.")


if __name__ == "__main__":
    main()
