"""The command ``seqssgd``: what is done with recipes and finished runs beside training.

A new subcommand is one entry in ``COMMANDS`` and the two functions that it names. They import what they need
themselves, so that ``seqssgd --help`` does not wait for torch.
"""

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

from seqssgd import __version__
from seqssgd.commands import models, runs, studies
from seqssgd.errors import not_installed, require, run_cli
from seqssgd.options import check_names


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
    parsers = {}
    for name, command in COMMANDS.items():
        parsers[name] = subparsers.add_parser(name, help=command.help, description=command.help)
        command.arguments(parsers[name])
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["evaluate"] and any(word.split("=")[0] == "--run" for word in words):
        return run_cli(lambda: _installed(lambda: runs.evaluate(words[1:])))  # its options depend on the run
    passes_on = words and words[0] in COMMANDS and COMMANDS[words[0]].passes_on
    end = words.index("--") if passes_on and "--" in words else len(words)
    args, unknown = parser.parse_known_args(words[:end])
    if unknown:  # with the usage of the command, not of all
        parsers.get(args.command, parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if passes_on:
        args.options = words[end + 1 :]
    if args.command is None:
        parser.print_help()
        return 0

    def run() -> int | None:
        check_names(args)
        return COMMANDS[args.command].run(args)

    return run_cli(lambda: _installed(run))


def _installed(run: Callable[[], int | None]) -> int | None:
    try:
        require("yaml")  # whatever it is about has a configuration
        return run()
    except ModuleNotFoundError as error:  # with torch alone, which is all that the optimizer needs
        raise not_installed(error) from None


command = main  # the name of the installed program's entry point


COMMANDS = {
    "evaluate": Subcommand("score a finished run on test data", runs.evaluate_arguments, runs.evaluate_command),
    "compare": Subcommand(
        "set methods side by side, averaged over seeds", runs.compare_arguments, runs.compare_command
    ),
    "runs": Subcommand(
        "list the runs of a folder, or find where two of them part", runs.runs_arguments, runs.runs_command
    ),
    "describe": Subcommand(
        "show what noise does to each layer of a model", runs.describe_arguments, runs.describe_command, passes_on=True
    ),
    "export": Subcommand("write a finished run as a folder to give away", runs.export_arguments, runs.export_command),
    "perplexity": Subcommand(
        "score text files with a trained language model", models.perplexity_arguments, models.perplexity_command
    ),
    "generate": Subcommand(
        "write text with a trained language model", models.generate_arguments, models.generate_command
    ),
    "transcribe": Subcommand(
        "write down what is said in audio files", models.transcribe_arguments, models.transcribe_command
    ),
    "noise-finder": Subcommand(
        "suggest a noise level for a recipe", studies.noise_finder_arguments, studies.noise_finder_command
    ),
    "landscape": Subcommand(
        "measure how flat minima are, and where they lie", studies.landscape_arguments, studies.landscape_command
    ),
}
