"""A campaign of faults against trainings and readers; the figures are added to those of earlier ones.

    python -m tests.campaign --minutes 60
    python -m tests.campaign --minutes 10 --only kills inputs
    python -m tests.campaign --minutes 60 --only soak

Trials of each kind take their turns until the time is over; docs/reliability.md then shows what was counted. All files
are in memory where there is /dev/shm, or else where TMPDIR says.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

# threads, pyarrow's own among them, would not be in a fork
os.environ.update({"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"})
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what tests share

from tests.campaign import figures  # noqa: E402
from tests.campaign.inputs import Inputs  # noqa: E402
from tests.campaign.kills import Kills  # noqa: E402
from tests.campaign.powercut import PowerCuts  # noqa: E402
from tests.campaign.soak import Soak  # noqa: E402
from tests.campaign.two_ranks import Ranks  # noqa: E402

KINDS = {kind.name: kind for kind in (Kills, PowerCuts, Inputs, Ranks, Soak)}
SHARES = {"kills": 0.3, "power cuts": 0.15, "inputs": 0.35, "ranks": 0.1, "soak": 0.1}  # of the time
IN_MEMORY = "/dev/shm"


def main(argv: list[str] | None = None) -> int:
    """Runs trials; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, metavar="M", help="how long (default 10)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of trials (default: all)")
    parser.add_argument("--seed", type=int, help="of the trials (default: the clock)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="for inputs that made a reader fail")
    parser.add_argument("--figures", type=Path, default=figures.FILE, help="where they are added up")
    parser.add_argument(
        "--add", type=Path, metavar="FILE", help="adds the figures of a file of another machine; tries nothing"
    )
    args = parser.parse_args(argv)
    if args.add:
        figures.add_all(figures.read(args.add), args.figures)
        return finish(args.figures, 0)
    seed = time.time_ns() if args.seed is None else args.seed
    begin, failed = time.monotonic(), 0
    shares = {kind: SHARES[kind] / sum(SHARES[one] for one in args.only) for kind in args.only}
    where = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) and "TMPDIR" not in os.environ else None
    with tempfile.TemporaryDirectory(dir=where) as name:
        os.environ["HF_DATASETS_CACHE"] = f"{name}/cache"
        kinds, more = {}, {"soak": [60 * args.minutes * shares.get("soak", 0)], "inputs": [args.keep]}
        for kind in args.only:
            folder = Path(name) / kind
            folder.mkdir()
            kinds[kind] = KINDS[kind](folder, *more.get(kind, []))
        spent = dict.fromkeys(kinds, 0.0)
        number = 0
        while time.monotonic() - begin < 60 * args.minutes - 1:
            kind = min(kinds, key=lambda one: spent[one] / shares[one])
            chance, at = random.Random(f"{seed} {number}"), time.monotonic()
            found = kinds[kind].trial(chance)
            spent[kind] += time.monotonic() - at
            number += 1
            failed += bool(found.get("failed"))
            figures.add(kind, found, args.figures)
            if note := found.get("note"):
                print(f"failed: {kind}, trial {number} of seed {seed}: {note}", flush=True)
    return finish(args.figures, failed)


def finish(file: Path, failed: int) -> int:
    """Writes the page, if the figures are the repository's, and shows the table; the exit status."""
    found = figures.read(file)
    if file == figures.FILE:
        figures.PAGE.write_text(figures.page(found), encoding="utf-8")
    print(figures.table(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
