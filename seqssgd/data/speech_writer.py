"""Writes a prepared speech corpus, the same way for every corpus.

Its sets have the columns ``id``, ``audio`` (``bytes``: a lossless FLAC; ``path``: where it came from), ``text``,
``speaker`` and ``duration`` (seconds); the folder is that of :mod:`seqssgd.data.preparing`.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from seqssgd.data import prepared, preparing
from seqssgd.data.preparing import rejections
from seqssgd.data.speech_rows import SPEECH, Utterance
from seqssgd.errors import UserError

read_info = partial(prepared.read_sets, kind=SPEECH.kind)


def prepare(args: argparse.Namespace, sets: Mapping[str, Sequence[Utterance]], name: str, **options) -> None:
    """:func:`write_speech_dataset` with the options of ``preparing.add_arguments``; prints what there is then."""
    limit = preparing.allowed_share(args)
    options["most_rejected"] = 1.0 if getattr(args, "partial", False) else limit  # --partial takes what there is
    options["sources"] = preparing.source_paths(args)
    if not write_speech_dataset(args.out, sets, name, jobs=args.jobs, **options):
        print(f"{args.out} is already prepared from this source with these settings; nothing to do")
        preparing.note_newer(args.out, args)
    print(summary(args.out))


def write_speech_dataset(out: str | Path, sets: Mapping[str, Sequence[Utterance]], name: str, *args, **options) -> bool:
    """:func:`seqssgd.data.preparing.write_sets` for utterances."""
    return preparing.write_sets(out, sets, SPEECH, name, *args, **options)


def summary(folder: str | Path) -> str:
    """What a prepared corpus holds, one line per set, and what was left out for which reasons."""
    info = read_info(folder)
    if info is None:
        raise UserError(f"{folder} is not a prepared speech corpus: it has no dataset.json")
    rows = [f"{Path(folder).resolve()}: {info['name']}"]
    for name, count in info["sets"].items():
        rows.append(
            f"  {name:<12}{count['utterances']:>9,} utterances {count['speakers']:>6,} speakers "
            f"{count['words']:>10,} words {count['hours']:>9.3f} hours at {count['sample_rate']:,} Hz"
        )
        rows += [f"    {number:,} of which the header {note}" for note, number in count.get("notes", {}).items()]
    return "\n".join([*rows, rejections(folder)])
