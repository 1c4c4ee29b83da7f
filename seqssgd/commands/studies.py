"""Commands that measure for some time: landscapes of minima, levels of noise."""

import argparse

from ..errors import UserError


def landscape_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``seqssgd landscape`` takes."""
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
                        "sharpness, eigenvalues, robustness, rounding, calibration, density, variance, lines, plane, "
                        "slices")  # fmt: skip
    parser.add_argument("--processes", type=int, help="that share the work (default 2, or 1 on a single core)")
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")


def landscape_command(args: argparse.Namespace) -> None:
    """``seqssgd landscape``: measures what is not yet measured, and writes figures and tables."""
    import math
    import time
    from functools import partial
    from pathlib import Path

    from ..devices import choose_device
    from ..landscape.section import notes, section
    from ..landscape.study import PARTS, Study, default_processes, parse_run
    from ..report.writing import write_section
    from ..runs.outputs import check_output

    check_output(args.out)
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
    made = section(args.out)
    paths = write_section(made, args.out, "landscape")
    for heading, table in made.tables.items():
        print(f"\n{heading}:\n\n{table.markdown()}")
    print("\n" + "\n".join(f"- {note}" for note in notes(found)))
    print(f"\n{args.out}: landscape.json, {', '.join(path.name for path in paths)}")


def noise_finder_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``seqssgd noise-finder`` takes."""
    parser.usage = "%(prog)s --config FILE --data DIR --out DIR [options] [-- options of train.py]"
    parser.add_argument("--config", required=True, metavar="FILE", help="the recipe's settings, in YAML")
    parser.add_argument("--data", required=True, metavar="DIR", help="the folder of prepared data")
    parser.add_argument("--out", required=True, metavar="DIR", help="for the two runs and what they find")
    parser.add_argument("--program", metavar="FILE", help="the recipe's program (default: train.py beside --config, or "
                        "that of the recipe that has these settings)")  # fmt: skip
    parser.add_argument("--highest", type=float, metavar="C",
                        help="noise level at the end (default: three times the recipe's, or 1.5); "
                        "a search that ended at a lower one goes on")  # fmt: skip
    parser.add_argument("--warmup", type=int, default=200, metavar="N", help="steps without noise (default 200)")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="steps of rising noise (default 400)")
    parser.add_argument("options", nargs="*", help=argparse.SUPPRESS)


def noise_finder_command(args: argparse.Namespace) -> int:
    """``seqssgd noise-finder``: trains without noise and with a rising level, and writes the levels to try."""
    from pathlib import Path

    from ..noise_finder import NoiseFinder
    from ..runs.outputs import check_output
    from ..training.recipe import find_program

    check_output(args.out)
    config, out = Path(args.config), Path(args.out)
    program = find_program(config, Path(args.program) if args.program else None)
    options = ["--config", args.config, "--data", args.data, *args.options]
    finder = NoiseFinder(program, options, out, args.highest, args.warmup, args.steps)
    if status := finder.train():
        return status
    curve = finder.curve()
    print(f"\n{out}: {', '.join(path.name for path in curve.save(out))}\n\n{curve}")
    if curve.level is not None:
        from ..landscape.stages import advice

        print(advice(out / "plain", args.data, curve.level, out / "noisy"))
    return 0
