"""Runs a study, a grid of training runs over any recipe, from where it was left; ends with the table of its results.

    python recipes/studies/run.py --list
    python recipes/studies/run.py --study methods --recipe an4 --max-minutes 10
    python recipes/studies/run.py --study price --recipe ptb --seeds 0 1 2 -- --optim.noise 1

What follows ``--`` goes to every run, as to the recipe's train.py. studies.yaml has the studies, recipes.yaml the
recipes, and the README beside this file what they are good for.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
import argparse
import dataclasses
import difflib
import itertools
import math
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from overrides import check_overrides
from scaling import absolute

from seqssgd import documents, notes
from seqssgd.commands.runs import evaluate
from seqssgd.errors import UserError, run_cli
from seqssgd.report import compare, read_run, summary
from seqssgd.report.metrics import best_evaluation, lower_is_better, shared_metric
from seqssgd.runs import layout
from seqssgd.runs.directory import in_use
from seqssgd.runs.settings import check_same, flatten, plain
from seqssgd.training import parse_recipe
from seqssgd.training.config import check_seed
from seqssgd.training.recipe import as_options, load_program

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent
PRECISION = "training.precision"
MACHINE = ("training.threads", "training.device", "training.graphs")
PAUSE = 2.0  # seconds between looks at the trials of other processes


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One run of a study: an alternative of an arm, with a seed.

    Attributes:
        run: its directory.
        options: of the recipe's train.py.
        config: what they amount to, nested.
    """

    arm: str
    alternative: str
    seed: int
    run: Path
    options: list[str]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.alternative}/{self.run.name}"

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train.

        Raises:
            UserError: its directory holds a run of another configuration.
        """
        if not (self.run / layout.RESULT).is_file():
            return False
        run, asked = read_run(self.run), flatten(self.config)
        settings = {key: value for key, value in run.settings.items() if key.split(".")[0] in self.config}
        if asked[PRECISION] == "auto":  # a run keeps what its machine made of that
            asked[PRECISION] = settings[PRECISION]
        asked |= {key: settings[key] for key in MACHINE if key in settings}  # it may have been another one
        check_same(self.run, settings, asked)
        return run.finished or bool(run.diverged)

    @property
    def diverged(self) -> str | None:
        """What is wrong with a finished run or its model; None if nothing is."""
        return read_run(self.run).diverged


@dataclasses.dataclass
class Study:
    """A study over a recipe.

    Attributes:
        train: the recipe's program.
        data: the prepared data.
        tuned: the alternatives of an arm are trials with the first seed; the best of them gets the other seeds.
        cells: every run that there may be, in the order in which they are made.
    """

    train: ModuleType
    data: Path
    tuned: bool
    cells: list[Cell]

    def due(self, again: Callable[[], list[Cell]] = list) -> Iterator[Cell]:
        """The runs to make. In a tuned study the trials, made in between, decide on those with further seeds.

        ``again`` is called after the trials: it gives those that were left to another process, which may have been
        stopped at them, until there are none.
        """
        first = self.cells[0].seed
        trials = [cell for cell in self.cells if cell.seed == first]
        yield from trials
        if self.tuned and len(trials) < len(self.cells):
            while left := again():
                yield from left
            if any(in_use(cell.run) for cell in trials):
                return
        kept = self.kept()
        yield from (cell for cell in self.cells if cell.seed != first and cell.alternative in kept)

    def kept(self) -> set[str]:
        """The alternatives that count: all, or in a tuned study the best of each arm's finished trials. One that
        diverged is none, however good it was before.

        Raises:
            UserError: the trials were not validated.
        """
        if not self.tuned:
            return {cell.alternative for cell in self.cells}
        finished = [cell for cell in self.cells if cell.seed == self.cells[0].seed and cell.finished]
        trials = [(cell, read_run(cell.run)) for cell in finished if not cell.diverged]
        for cell, run in trials:
            if not any(name.startswith("valid_") for name in run.rows[-1]):
                raise UserError(f"{cell.run}: without validation data no trial is the best; hold some out")
        metric = shared_metric([run for _, run in trials]) if trials else ""
        sign = 1 if lower_is_better(metric, [run for _, run in trials]) else -1
        best: dict[str, tuple[float, str]] = {}
        for cell, run in trials:
            if (row := best_evaluation(run, metric)) is not None:
                value = sign * row[metric]
                best[cell.arm] = min(best.get(cell.arm, (math.inf, "")), (value, cell.alternative))
        return {alternative for _, alternative in best.values()}


def main(argv: list[str] | None = None) -> int:
    args, overrides = parse(argv)
    studies, recipes = (read_yaml(HERE / f"{name}.yaml") for name in ("studies", "recipes"))
    if args.study is None:
        width = max(map(len, studies)) + 2
        print("\n".join(f"{name:{width}}{study['shows']}" for name, study in studies.items()))
        print(f"recipes: {', '.join(recipes)}")
        return 0
    study, recipe = pick(studies, "--study", args.study), pick(recipes, "--recipe", args.recipe)
    if args.recipe not in study.get("recipes", recipes):
        raise UserError(f"--study {args.study}: it is made for {', '.join(study['recipes'])}, not for {args.recipe}")
    if args.arms:
        study = {**study, "arms": {name: pick(study["arms"], "--arms", name) for name in args.arms}}
    out = args.out or Path("runs/studies") / f"{args.study}_{args.recipe}"
    study = build(study, recipe, args.data or Path(recipe["data"]), out, args.seeds, overrides)
    if args.list:
        print("\n".join(f"{cell.name}: {state(cell)}" for cell in study.cells))
        return 0
    deadline = math.inf if args.max_minutes is None else time.monotonic() + 60 * args.max_minutes
    print(f"{out}: {sum(cell.finished for cell in study.cells)} of {len(study.cells)} runs finished", flush=True)
    failed, status = train_all(study, deadline)
    return status or finish(study, failed)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of the study, and those after ``--``."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    usage = "%(prog)s --study NAME --recipe NAME [options] [-- options of train.py]"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=usage, allow_abbrev=False)
    parser.add_argument("--study", metavar="NAME", help="what to run; --list has them all")
    parser.add_argument("--recipe", metavar="NAME", help="what to run it on; --list has them all")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data (default: as in recipes.yaml)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the runs (default: runs/studies/STUDY_RECIPE)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="default: 0")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="of the study, in this order (default: all of them)")
    parser.add_argument("--max-minutes", type=float, metavar="M", help="stop, to be resumed, after so many")
    parser.add_argument(
        "--list", action="store_true", help="name studies and recipes; of a study, the state of its runs"
    )
    args = parser.parse_args(words[:end])
    if args.max_minutes is not None and not args.max_minutes > 0:
        raise UserError(f"--max-minutes {args.max_minutes:g}: it must be a number > 0")
    for seed in args.seeds:
        check_seed("--seeds", seed)
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds {' '.join(map(str, args.seeds))}: give each of them once")
    if (args.study is None) != (args.recipe is None) or (args.study is None and not args.list):
        raise UserError("give --study and --recipe; --list names them")
    return args, words[end + 1 :]


def read_yaml(path: Path) -> dict[str, Any]:
    return documents.read_yaml(path, "put the file of the repository back")


def pick(known: dict[str, Any], option: str, name: str) -> Any:
    """The entry of that name."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        help = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise UserError(f"{option} {name}: {help}")
    return known[name]


# ---- the grid --------------------------------------------------------------------------------------------------------


def build(
    study: dict[str, Any], recipe: dict[str, Any], data: Path, out: Path, seeds: Sequence[int], overrides: Sequence[str]
) -> Study:
    """Settles the configuration of every run, before the first of them begins.

    Raises:
        UserError: no data, an option that the study sets itself, an option or a value that the recipe refuses, epochs
            that the study cannot divide, two alternatives that are the same.
    """
    for text in check_overrides(study["arms"], overrides):
        notes.note(text)
    file = RECIPES / recipe["config"]
    folder = RECIPES / recipe.get("program", file.parent.name)
    train = load_program(folder / "train.py")
    common = ["--config", str(file), "--data", str(data), *as_options(recipe["options"]), *overrides]

    def settle(options: Sequence[str]) -> Any:
        return parse_recipe(train.Config, [*options, "--out", str(out)]).config

    base = settle([*common, "--optim.method", "none"])  # whose level is what the arms take multiples of
    tuned = study.get("tuned", False)
    seeds_of = {arm: settings.get("seeds", len(seeds)) for arm, settings in study["arms"].items()}
    found: list[tuple[str, str, list[str], dict[str, Any]]] = []
    for arm, name, settings in alternatives(study["arms"], recipe["roles"], trials_first=tuned):
        options = [*common, *as_options({"optim.noise": 0.0, **absolute(base, settings)})]
        config = plain(dataclasses.asdict(settle(options)))
        for _, other, _, known in found:
            if config == known:
                raise UserError(f"{other} and {name} would be the same run with these settings; give it more epochs")
        found.append((arm, name, options, config))
    cells = []
    for (number, seed), (arm, name, options, config) in itertools.product(enumerate(seeds), found):
        if number >= seeds_of[arm]:
            continue
        run, seeded = out / name / f"seed{seed}", {"seed": seed, "optim": {**config["optim"], "noise_seed": seed}}
        options = [*options, *as_options({"seed": seed, "optim.noise_seed": seed}), "--out", str(run)]
        cells.append(Cell(arm, name, seed, run, options, {**config, **seeded}))
    return Study(train, data, tuned, cells)


def alternatives(
    arms: dict[str, dict[str, Any]], roles: Sequence[str], trials_first: bool
) -> list[tuple[str, str, dict[str, Any]]]:
    """Arm, name and settings of every alternative for which the network has the roles, in the order of the arms.

    ``trials_first``: the first of every arm, then the second of every arm, so that a study that is stopped early has
    compared something.
    """
    found = []
    for arm, settings in arms.items():
        settings = {key: value for key, value in settings.items() if key != "seeds"}
        choices = {key: value for key, value in settings.items() if isinstance(value, list)}
        for rank, values in enumerate(itertools.product(*choices.values())):
            chosen = {**settings, **dict(zip(choices, values, strict=True))}
            if set(chosen.get("optim.only", roles)) <= set(roles):
                words = ["+".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]
                found.append((rank * trials_first, arm, "-".join([arm, *words]), chosen))
    return [entry[1:] for entry in sorted(found, key=lambda entry: entry[0])]


# ---- the runs --------------------------------------------------------------------------------------------------------


def train_all(study: Study, deadline: float) -> tuple[list[str], int]:
    """Trains what is left, in this process, so that whatever ends the study ends the run that it is at.

    Runs that another process is at, which was given the same command, are left to it. Further seeds of a tuned study
    wait for its trials.

    Returns:
        the names of the runs that failed, and the exit status if a signal ended one.
    """
    failed: list[Cell] = []
    told: set[Cell] = set()
    passed_over: list[Cell] = []

    def again() -> list[Cell]:
        """The trials that were left to other processes, once one of them is free; none after the time limit."""
        others = passed_over.copy()
        passed_over.clear()
        if others and all(in_use(cell.run) for cell in others):
            print("\nwaiting for the trials of other processes", flush=True)
        while others and all(in_use(cell.run) for cell in others) and time.monotonic() < deadline:
            time.sleep(max(0.0, min(PAUSE, deadline - time.monotonic())))
        return others if time.monotonic() < deadline else []

    for cell in study.due(again):
        if cell.finished:
            continue
        minutes = (deadline - time.monotonic()) / 60
        if minutes <= 0:
            break
        if in_use(cell.run):
            if cell not in told:
                print(f"\n{cell.name}: another process is training it", flush=True)
            told.add(cell)
            passed_over.append(cell)
            continue
        print(f"\n== {cell.name}", flush=True)
        limit = [] if math.isinf(minutes) else ["--max-minutes", str(minutes)]
        status = call(study.train.main, [*cell.options, *limit])
        if status > 128:
            return [cell.name for cell in failed], status
        if status and not cell.finished:  # one that diverged is finished, with a status
            if in_use(cell.run):
                passed_over.append(cell)
            else:
                failed.append(cell)
    return [cell.name for cell in failed if not cell.finished], 0  # another process may have made it since


def call(program: Callable[[list[str]], int | None], options: list[str]) -> int:
    """The exit status of a program; above 128 if a signal ended it."""
    try:
        return run_cli(lambda: program(options))
    except Exception:  # a bug, or no memory: of no concern to the other runs
        traceback.print_exc()
        return 1


def finish(study: Study, failed: list[str]) -> int:
    """Evaluates the finished runs that count on the test set, compares them, and says what is left; the exit status."""
    kept = study.kept()
    finished = [cell for cell in study.cells if cell.finished]
    shown = [cell for cell in finished if cell.alternative in kept]
    diverged = {cell: reason for cell in finished if (reason := cell.diverged)}
    ended = {cell: run for cell in shown if (run := read_run(cell.run)).finished}  # but those that could not go on
    for cell, run in ended.items():
        if "test" not in run.evaluations and (run.result.get("best") or cell not in diverged):
            status = call(evaluate, ["--run", str(cell.run), "--data", str(study.data), "--split", "test", "--save"])
            if status > 128:
                return status
            failed += [f"{cell.name} (evaluation)"] * bool(status)
    if ended:
        print(f"\n{summary(compare([read_run(cell.run) for cell in shown]))}")
        print(f"\nseqssgd compare {shlex.join(str(cell.run) for cell in shown)} --out report")
    if diverged:
        reasons = "; ".join(f"{cell.name}: {reason}" for cell, reason in diverged.items())
        print(f"\ndiverged, and not tried again: {reasons}")
    if study.tuned:
        print(f"\nbest on validation, of the finished trials: {', '.join(sorted(kept)) or 'none yet'}")
    left = [cell.name for cell in study.due() if not cell.finished]
    print(f"\n{len(finished)} runs finished, {len(left)} left{f'; next is {left[0]}' if left else ''}", flush=True)
    if failed:
        print(f"error: failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
    elif left:
        print("the same command goes on")
    return 1 if failed else 0


def state(cell: Cell) -> str:
    """How far a run is."""
    if cell.finished:
        return "diverged" if cell.diverged else "finished"
    return "begun" if (cell.run / layout.CONFIG).is_file() else "not begun"


if __name__ == "__main__":
    sys.exit(run_cli(main))
