"""Options that several programs have."""

import argparse
import itertools
from collections.abc import Iterator, Sequence

from .errors import UserError

_TEXTS = ("about", "prompt", "options")  # of all that is given as text: what is no name


def check_names(args: argparse.Namespace) -> None:
    """Makes sure that no name of a file, folder or anything else is empty, which would be the working directory.

    Raises:
        UserError: one is.
    """
    for key, value in vars(args).items():
        if key not in _TEXTS and "" in (value if isinstance(value, list) else [value]):
            raise UserError(f"{key.replace('_', '-')}: the name that is given is empty; give one, or leave it out")


def run_arguments(parser: argparse.ArgumentParser, kind: str = "any recipe") -> None:
    """Declares the options that say which run's model to use, and where."""
    parser.add_argument("--run", required=True, metavar="DIR", help=f"run directory of {kind}")
    parser.add_argument("--checkpoint", default="best", help="best (on validation; default), last, or a file")
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")


def data_argument(parser: argparse.ArgumentParser) -> None:
    """Declares the option that says where a run's data lie; see :func:`seqssgd.runs.reading.data_folder`."""
    parser.add_argument("--data", metavar="DIR", help="the folder of prepared data (default: where the run found it)")


def evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options that every evaluation of a run has."""
    run_arguments(parser)
    data_argument(parser)
    parser.add_argument(
        "--save", action="store_true", help="keep the figures in the run directory, for seqssgd compare"
    )


def beam_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Declares the options of beam search; with ``several``, those of its weights take any number of values."""
    beam = parser.add_argument_group("beam search")
    beam.add_argument("--beam", type=int, metavar="N", help="hypotheses kept after every frame (default: greedy)")
    beam.add_argument("--lm", metavar="FILE", help="n-gram model over words or labels: ARPA, or KenLM binary")
    beam.add_argument("--lexicon", metavar="FILE", help="words, one a line (default: those of an ARPA over words)")
    nargs = "+" if several else 1
    beam.add_argument(
        "--alpha", type=float, nargs=nargs, default=[1.0], help="weight of the language model (default 1)"
    )
    beam.add_argument("--beta", type=float, nargs=nargs, default=[0.0], help="bonus of every word (default 0)")


def check_beam_arguments(args: argparse.Namespace) -> None:
    """Makes sure that what belongs to beam search comes with it.

    Raises:
        UserError: it does not.
    """
    given = (args.lm, args.lexicon, args.alpha, args.beta)
    if args.beam is None and given != (None, None, [1.0], [0.0]):
        raise UserError("--lm, --lexicon, --alpha and --beta are of beam search; give --beam 100 with them")


def options_in(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options of a command line with their values, ``--KEY VALUE`` or ``--KEY=VALUE``, in order."""
    for word, following in itertools.pairwise([*words, ""]):
        if word.startswith("--"):
            key, equals, value = word.removeprefix("--").partition("=")
            yield key, value if equals else following
