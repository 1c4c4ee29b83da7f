"""The command ``seqssgd``: what is done with recipes and finished runs beside training.

A new subcommand is one entry in ``COMMANDS`` and the two functions that it names. They import what they need
themselves, so that ``seqssgd --help`` does not wait for torch.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from seqssgd import __version__
from seqssgd.errors import UserError, not_installed, require, run_cli
from seqssgd.options import beam_arguments, check_beam_arguments, evaluation_arguments, run_arguments


class Subcommand(NamedTuple):
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]  # declares the command's options
    run: Callable[[argparse.Namespace], int | None]  # returns the exit status, None for 0
    passes_on: bool = False  # whether what follows -- is for another program, and goes into the list ``options``


def main(argv: list[str] | None = None) -> int:
    """Runs ``seqssgd`` with the given arguments (default: those of the process) and returns the exit status."""
    parser = argparse.ArgumentParser(prog="seqssgd", description="Use and compare finished runs; find a noise level.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        command.arguments(subparser)
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["evaluate"] and any(word.split("=")[0] == "--run" for word in words):
        return run_cli(lambda: _installed(lambda: evaluate(words[1:])))  # its options depend on the run
    passes_on = words and words[0] in COMMANDS and COMMANDS[words[0]].passes_on
    end = words.index("--") if passes_on and "--" in words else len(words)
    args = parser.parse_args(words[:end])
    if passes_on:
        args.options = words[end + 1 :]
    if args.command is None:
        parser.print_help()
        return 0
    return run_cli(lambda: _installed(lambda: COMMANDS[args.command].run(args)))


def _installed(run: Callable[[], int | None]) -> int | None:
    try:
        require("yaml")  # whatever it is about has a configuration
        return run()
    except ModuleNotFoundError as error:  # with torch alone, which is all that the optimizer needs
        raise not_installed(error) from None


command = main  # the name of the installed program's entry point


def _perplexity_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser, "a language model")
    parser.add_argument("files", nargs="+", metavar="FILE", help="UTF-8 text, one sentence per line")


def _perplexity(args: argparse.Namespace) -> None:
    from seqssgd.data.text import read_lines
    from seqssgd.devices import choose_device
    from seqssgd.language.finished import load_language_model
    from seqssgd.language.scoring import describe, perplexity

    device = choose_device(args.device)
    model, tokenizer = load_language_model(args.run, args.checkpoint)
    streams = {file: tokenizer.encode(read_lines(file), file) for file in args.files}  # all, before any is scored
    for file, stream in streams.items():
        score = perplexity(model, stream, device)
        print(f"{file}: {describe(score, stream, tokenizer)}", flush=True)


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser, "a language model")
    parser.add_argument("--prompt", default="", help="how the text begins (default: nothing)")
    parser.add_argument("--length", type=int, default=100, help="tokens to add (default 100)")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1 is more careful, 0 takes the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="of the first text; each further one takes the next")
    parser.add_argument("--count", type=int, default=1, help="number of texts (default 1)")


def _generate(args: argparse.Namespace) -> None:
    from seqssgd.devices import choose_device
    from seqssgd.language.finished import load_language_model
    from seqssgd.language.generation import generate

    if args.count < 1:
        raise UserError(f"--count {args.count}: it must be at least 1")
    device = choose_device(args.device)
    model, tokenizer = load_language_model(args.run, args.checkpoint)
    model.to(device)
    for seed in range(args.seed, args.seed + args.count):
        if args.count > 1:
            print(f"--- seed {seed}")
        print(generate(model, tokenizer, args.prompt, args.length, args.temperature, seed), flush=True)


def _transcribe_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser, "a speech recogniser")
    parser.add_argument("--json", action="store_true", help="one JSON object per line: file, seconds, text")
    parser.add_argument("--mix", action="store_true", help="average the channels of recordings with several")
    parser.add_argument("--chunk-seconds", type=float, default=30.0, metavar="S",
                        help="audio recognised at a time; bounds the memory, not the result (default 30)")  # fmt: skip
    beam_arguments(parser)
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio: whatever soundfile reads, or NIST SPHERE")


def _transcribe(args: argparse.Namespace) -> int:
    import json

    from seqssgd.data.items import printable, reason_of
    from seqssgd.devices import choose_device
    from seqssgd.speech.decode import open_search
    from seqssgd.speech.finished import load_recognizer
    from seqssgd.speech.recordings import Wave, recognise

    check_beam_arguments(args)
    if not args.chunk_seconds >= 1:
        raise UserError(f"--chunk-seconds {args.chunk_seconds:g}: it must be at least 1")
    device = choose_device(args.device)
    model, tokenizer = load_recognizer(args.run, args.checkpoint)
    model.to(device)
    search = None
    if args.beam is not None:
        search = open_search(tokenizer, args.beam, args.lm, args.lexicon, args.alpha[0], args.beta[0])
        if search.coverage:
            print(f"note: {search.coverage}", file=sys.stderr)
    rate, failed = model.features.rate, False
    for file in args.files:
        name = printable(file)

        def notes(wave: Wave, name: str = name) -> None:
            if wave.note:
                print(f"note: the header of {name} {wave.note}", file=sys.stderr)
            if wave.own_rate < rate:
                print(f"note: {name} has {wave.own_rate:,} Hz, the model hears {rate:,} Hz; expect more errors",
                      file=sys.stderr)  # fmt: skip

        try:
            text, seconds = recognise(model, tokenizer, file, args.mix, args.chunk_seconds, search, notes)
        except Exception as error:
            reason = reason_of(error, name, UserError)
            text = reason if isinstance(error, UserError) else f"{name}: {reason}"
            print(f"error: {printable(text)}", file=sys.stderr, flush=True)
            failed = True
            continue
        if args.json:
            found = {"file": name, "seconds": round(seconds, 3), "text": text}
            print(json.dumps(found, ensure_ascii=False), flush=True)
        else:
            print(f"{name}: {text}" if len(args.files) > 1 else text, flush=True)
    return 2 if failed else 0


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory of any recipe; all of one task")
    parser.add_argument("--out", metavar="DIR", help="also write a report there: HTML, Markdown, CSV, curves")
    parser.add_argument("--metric", help="of the evaluations (default: the one that all runs have and that is no loss)")
    parser.add_argument("--baseline", metavar="NAME",
                        help="method (as the table names it) or run directory to hold all others against "
                        "(default: the base optimizer alone, at equal epochs)")  # fmt: skip
    parser.add_argument("--partial", action="store_true", help="take unfinished runs in, as far as they are")
    parser.add_argument("--landscape", metavar="DIR", help="a section of the report about what seqssgd landscape wrote")


def _compare(args: argparse.Namespace) -> None:
    from seqssgd.report import compare, read_run, summary, write_report

    comparison = compare([read_run(path) for path in args.runs], args.metric, args.baseline, args.partial)
    sections = []
    if args.landscape:
        from seqssgd.landscape.section import section

        sections = [section(args.landscape)]
    paths = write_report(comparison, args.out, sections=sections) if args.out else []
    print(summary(comparison))
    if paths:
        print(f"\n{args.out}: {', '.join(path.name for path in paths)}")


def _landscape_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN[@CHECKPOINT]",
                        help="run directories of one recipe, model and data; runs/a@last, or runs/a@step-00001000.pt, "
                        "for another checkpoint than that of the others")  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="for landscape.json, figures, surfaces and a page")
    parser.add_argument("--max-minutes", type=float, metavar="M", help="begin nothing after so many; repeat to go on")
    parser.add_argument("--data", metavar="DIR", help="the prepared data (default: where the runs had them)")
    parser.add_argument("--checkpoint", default="best", help="best (on validation; default) or last")
    parser.add_argument("--split", default="test", help="the data beside the training set: test (default) or valid")
    parser.add_argument("--terms", type=int, metavar="N",
                        help="tokens, utterances or images for curvature (default 4000, 48 or 512)")  # fmt: skip
    parser.add_argument("--levels", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5], metavar="C",
                        help="noise levels (default 0.1 0.2 0.3 0.5)")  # fmt: skip
    parser.add_argument("--points", type=int, default=21, help="points of a line (default 21)")
    parser.add_argument("--side", type=int, default=9, help="points along a side of a plane or slice (default 9)")
    parser.add_argument("--only", nargs="+", metavar="PART",
                        help="measure these alone; another call with the same --out may add others: errors, traces, "
                        "sharpness, eigenvalues, robustness, density, variance, lines, plane, slices")  # fmt: skip
    parser.add_argument("--processes", type=int, help="that share the work (default 2, or 1 on a single core)")
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")


def _landscape(args: argparse.Namespace) -> None:
    import math
    import time
    from functools import partial
    from pathlib import Path

    from seqssgd.devices import choose_device
    from seqssgd.landscape.section import curvature_table, notes, section
    from seqssgd.landscape.study import PARTS, Study, default_processes, parse_run
    from seqssgd.report.writing import write_section

    for name, least in (("terms", 2), ("points", 3), ("side", 3), ("processes", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise UserError(f"--{name} {value}: it must be at least {least}")
    if not all(math.isfinite(level) and level > 0 for level in args.levels):
        raise UserError(f"--levels {' '.join(map(str, args.levels))}: they must be numbers > 0")
    if args.max_minutes is not None and not args.max_minutes > 0:
        raise UserError(f"--max-minutes {args.max_minutes:g}: it must be a number > 0")
    for part in args.only or ():
        if part not in PARTS:
            raise UserError(f"--only {part}: it is none of {', '.join(PARTS)}")
    deadline = math.inf if args.max_minutes is None else time.time() + 60 * args.max_minutes
    device = choose_device(args.device)
    processes = args.processes or (default_processes() if device.type == "cpu" else 1)
    specs = [parse_run(run, args.data, args.checkpoint, str(device)) for run in args.runs]
    study = Study(specs, Path(args.out), args.split, args.terms, args.points, args.side, tuple(args.levels),
                  tuple(args.only or PARTS), processes, deadline, partial(print, flush=True))  # fmt: skip
    found = study.run()
    paths = write_section(section(args.out), args.out, "landscape")
    print(f"\n{curvature_table(found).markdown()}\n")
    print("\n".join(f"- {note}" for note in notes(found)))
    print(f"\n{args.out}: landscape.json, {', '.join(path.name for path in paths)}")


def _noise_finder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --config FILE --data DIR --out DIR [options] [-- options of train.py]"
    parser.add_argument("--config", required=True, metavar="FILE", help="the recipe's settings, in YAML")
    parser.add_argument("--data", required=True, metavar="DIR", help="the folder of prepared data")
    parser.add_argument("--out", required=True, metavar="DIR", help="for the two runs and what they find")
    parser.add_argument("--program", metavar="FILE", help="the recipe's program (default: train.py beside --config)")
    parser.add_argument("--highest", type=float, metavar="C",
                        help="noise level at the end (default: three times the recipe's, or 1.5); "
                        "a search that ended at a lower one goes on")  # fmt: skip
    parser.add_argument("--warmup", type=int, default=200, metavar="N", help="steps without noise (default 200)")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="steps of rising noise (default 400)")
    parser.add_argument("options", nargs="*", help=argparse.SUPPRESS)


def _noise_finder(args: argparse.Namespace) -> int:
    from pathlib import Path

    from seqssgd.noise_finder import NoiseFinder

    config, out = Path(args.config), Path(args.out)
    program = config.parent / "train.py" if args.program is None else Path(args.program)
    options = ["--config", args.config, "--data", args.data, *args.options]
    finder = NoiseFinder(program, options, out, args.highest, args.warmup, args.steps)
    if status := finder.train():
        return status
    curve = finder.curve()
    print(f"\n{out}: {', '.join(path.name for path in curve.save(out))}\n\n{curve}")
    if curve.level is not None:
        from seqssgd.landscape.stages import advice

        print(advice(out / "plain", args.data, curve.level))
    return 0


def _describe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s RUN_OR_CONFIG [options] [-- options of train.py]"
    parser.add_argument("what", metavar="RUN_OR_CONFIG", help="a run directory, or a recipe's settings in YAML")
    parser.add_argument("--checkpoint", help="of a run: best (on validation; default), last, or a file")
    parser.add_argument("--data", metavar="DIR", help="of a configuration: the folder of prepared data")
    parser.add_argument(
        "--program", metavar="FILE", help="of a configuration: the recipe's program (train.py beside it)"
    )
    parser.add_argument("options", nargs="*", help=argparse.SUPPRESS)


def _describe(args: argparse.Namespace) -> None:
    from pathlib import Path

    from seqssgd.describing import describe_config, describe_run

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


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --run DIR [--data DIR] [--split NAME] [--save] [options of its task: --run DIR --help]"
    parser.epilog = "Each task has further options: seqssgd evaluate --run DIR --help"
    evaluation_arguments(parser)
    parser.add_argument("--split", help="which data (default test)")


def _evaluate(args: argparse.Namespace) -> None:
    raise UserError("there is nothing to evaluate; give a run directory with --run")


def evaluate(words: Sequence[str]) -> None:
    """``seqssgd evaluate`` of the run that ``words`` name, whatever its recipe.

    Raises:
        UserError: they name no run directory of a recipe, or what its evaluation refuses.
    """
    from seqssgd.runs.recipes import read_recipe

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--run", required=True)
    run = first.parse_known_args(words)[0].run
    program = read_recipe(run)[0].module("evaluation")
    parser = argparse.ArgumentParser(
        prog="seqssgd evaluate", description=program.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    evaluation_arguments(parser)
    program.arguments(parser)
    program.evaluate(parser.parse_args(words))


def _runs_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="state, step, metric and minutes of each run in a folder")
    listing.add_argument("folder", metavar="DIR", help="a folder with run directories, at any depth")
    diff = actions.add_parser("diff", help="what differs between two runs, to the first tensor; exits with 1 if any")
    diff.add_argument("runs", nargs=2, metavar="RUN", help="run directory")


def _runs(args: argparse.Namespace) -> int:
    if args.action == "list":
        from seqssgd.report.listing import list_runs, table

        print(table(list_runs(args.folder)))
        return 0
    from seqssgd.runs.comparing import differences

    found = differences(*args.runs)
    print("\n".join(found) if found else "no difference but for times")
    return 1 if found else 0


COMMANDS = {
    "describe": Subcommand(
        "show what noise does to each layer of a model", _describe_arguments, _describe, passes_on=True
    ),
    "perplexity": Subcommand("score text files with a trained language model", _perplexity_arguments, _perplexity),
    "compare": Subcommand("average runs over seeds, set methods side by side", _compare_arguments, _compare),
    "evaluate": Subcommand("figures of a finished run on test data", _evaluate_arguments, _evaluate),
    "runs": Subcommand("list the runs of a folder, or find where two of them part", _runs_arguments, _runs),
    "transcribe": Subcommand("write down what is said in audio files", _transcribe_arguments, _transcribe),
    "landscape": Subcommand("how flat minima are, and where they lie", _landscape_arguments, _landscape),
    "noise-finder": Subcommand("suggest a noise level for a recipe", _noise_finder_arguments, _noise_finder),
    "generate": Subcommand("write text with a trained language model", _generate_arguments, _generate),
}
