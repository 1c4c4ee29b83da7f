"""Commands about finished runs: evaluate, compare, list, tell apart, describe."""

import argparse
from collections.abc import Sequence

from ..errors import UserError
from ..options import check_names, evaluation_arguments


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``seqssgd evaluate`` takes."""
    parser.usage = "%(prog)s --run DIR [--data DIR] [--split NAME] [--save] [options of its task: --run DIR --help]"
    parser.epilog = "Each task has further options: seqssgd evaluate --run DIR --help"
    evaluation_arguments(parser)
    parser.add_argument("--split", help="which data (default test)")


def evaluate_command(args: argparse.Namespace) -> None:
    """``seqssgd evaluate``: refuses what names no run; else :func:`evaluate` gets the words themselves."""
    raise UserError("there is nothing to evaluate; give a run directory with --run")


def evaluate(words: Sequence[str]) -> None:
    """``seqssgd evaluate`` of the run that ``words`` name, whatever its recipe.

    Raises:
        UserError: they name no run directory of a recipe, or what its evaluation refuses.
    """
    from ..runs.recipes import read_recipe

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--run", required=True)
    check_names(named := first.parse_known_args(words)[0])
    program = read_recipe(named.run, settled=False)[0].module("evaluation")
    parser = argparse.ArgumentParser(
        prog="seqssgd evaluate", description=program.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    evaluation_arguments(parser)
    program.arguments(parser)
    args = parser.parse_args(words)
    check_names(args)
    program.evaluate(args)


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``seqssgd compare`` takes."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory of any recipe; all of one task")
    parser.add_argument("--out", metavar="DIR", help="also write a report there: HTML, Markdown, CSV, curves")
    parser.add_argument("--metric", help="of the evaluations (default: the one that all runs have and that is no loss)")
    parser.add_argument("--baseline", metavar="NAME",
                        help="method (as the table names it) or run directory to hold all others against "
                        "(default: the base optimizer alone, at equal epochs)")  # fmt: skip
    parser.add_argument("--partial", action="store_true", help="take unfinished runs in, as far as they are")
    parser.add_argument("--landscape", metavar="DIR", help="a section of the report about what seqssgd landscape wrote")


def compare_command(args: argparse.Namespace) -> None:
    """``seqssgd compare``: writes the report, and its table to standard output."""
    from ..report import compare, read_run, summary, write_report
    from ..runs.outputs import check_output

    if args.out:
        check_output(args.out)
    comparison = compare([read_run(path) for path in args.runs], args.metric, args.baseline, args.partial)
    sections = []
    if args.landscape:
        from ..landscape.section import section

        sections = [section(args.landscape)]
    paths = write_report(comparison, args.out, sections=sections) if args.out else []
    print(summary(comparison))
    if paths:
        print(f"\n{args.out}: {', '.join(path.name for path in paths)}")


def runs_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``seqssgd runs`` takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="state, step, metric and minutes of each run in a folder")
    listing.add_argument("folder", metavar="DIR", help="a folder with run directories, at any depth")
    diff = actions.add_parser("diff", help="what differs between two runs, to the first tensor; exits with 1 if any")
    diff.add_argument("runs", nargs=2, metavar="RUN", help="run directory")


def runs_command(args: argparse.Namespace) -> int:
    """``seqssgd runs``: lists the runs of a folder, or tells two apart; 1 if they differ."""
    if args.action == "list":
        from ..report.listing import list_runs, table

        print(table(list_runs(args.folder)))
        return 0
    from ..runs.comparing import differences

    found = differences(*args.runs)
    print("\n".join(found) if found else "no difference but for times")
    return 1 if found else 0


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``seqssgd export`` takes."""
    parser.add_argument("run", metavar="RUN", help="run directory of a recipe")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder, whose name is the model's")
    parser.add_argument("--checkpoint", default="best", help="best (on validation; default), last, or a file")
    parser.add_argument("--about", default="", metavar="TEXT", help="for the card: the training data, their licence")
    parser.add_argument("--half", action="store_true", help="weights in half precision: half of the space")
    parser.add_argument("--record", action="store_true", help="settings, metrics and figures alone, without the model")


def export_command(args: argparse.Namespace) -> None:
    """``seqssgd export``: writes the folder to give away."""
    from ..runs.release import export, export_record

    if args.record:
        found = export_record(args.run, args.out)
    else:
        found = export(args.run, args.out, args.checkpoint, args.about, args.half)
    size = sum(path.stat().st_size for path in found.rglob("*") if path.is_file())
    print(f"{found}: {size / 1000:,.0f} kB")


def describe_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``seqssgd describe`` takes."""
    parser.usage = "%(prog)s RUN_OR_CONFIG [options] [-- options of train.py]"
    parser.add_argument("what", metavar="RUN_OR_CONFIG", help="a run directory, or a recipe's settings in YAML")
    parser.add_argument("--checkpoint", help="of a run: best (on validation; default), last, or a file")
    parser.add_argument("--data", metavar="DIR", help="of a configuration: the folder of prepared data")
    parser.add_argument(
        "--program",
        metavar="FILE",
        help="of a configuration: the recipe's program (train.py beside it, or that of the recipe "
        "that has its settings)",
    )
    parser.add_argument("options", nargs="*", help=argparse.SUPPRESS)


def describe_command(args: argparse.Namespace) -> None:
    """``seqssgd describe``: writes what noise does to each layer to standard output."""
    from pathlib import Path

    from ..describing import describe_config, describe_run

    what = Path(args.what)
    if what.is_dir():
        if args.data or args.program or args.options:
            raise UserError(
                f"{what}: a run has its data and settings; --data, --program and options are for a configuration"
            )
        print(describe_run(what, args.checkpoint or "best"))
    elif what.is_file():
        if args.checkpoint:
            raise UserError(f"{what}: a configuration has no checkpoint; give the directory of a run")
        if not args.data:
            raise UserError(f"{what}: the sizes of the model depend on the data; give --data")
        print(describe_config(what, args.data, Path(args.program) if args.program else None, args.options))
    else:
        raise UserError(f"{what}: no such file or directory; give a run directory or a recipe's YAML file")
