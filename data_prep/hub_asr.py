"""Prepares any speech recognition data set of the Hugging Face hub, or in one of its formats on disk.

    python data_prep/hub_asr.py --hub openslr/librispeech_asr --hub-config clean --splits train=train.100 --out data/ls
    python data_prep/hub_asr.py --hub /data/my_parquet_folder --text-column sentence --upper --out data/mine

A local data set is a folder of Parquet files, or one written by ``save_to_disk``; its recordings are whole files (of
any format that soundfile reads, or SPHERE) or paths to files below the folder, or anywhere with --any-path. Or it is a
folder of sound files, with a table ``metadata.csv`` (or ``.jsonl``, ``.parquet``) in each of the folders ``train``,
``validation`` and ``test`` in it, whose column ``file_name`` names the files beside it. They are resampled where they
have another rate, and kept as FLAC.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from seqssgd.data.audio import read_row
from seqssgd.data.hub import (
    add_paths_option,
    as_files,
    choose_splits,
    holding,
    holds_samples,
    load_hub,
    own_folders,
    sources,
)
from seqssgd.data.listed import find_tables, load_listed
from seqssgd.data.preparing import add_arguments
from seqssgd.data.shards import Rejected
from seqssgd.data.speech_rows import Utterance
from seqssgd.data.speech_writer import prepare
from seqssgd.errors import UserError, run_cli

ID_COLUMNS, SPEAKER_COLUMNS = ("id", "utterance_id", "utt_id"), ("speaker", "speaker_id", "client_id")


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.sample_rate < 1:
        raise UserError(f"--sample-rate {args.sample_rate}: it must be at least 1")
    tables = find_tables(Path(args.hub))
    loaded = load_listed(tables) if tables else load_hub(args.hub, args.hub_config)
    sets, rejected = {}, []
    for name, split in choose_splits(loaded, args.splits, args.hub).items():
        sets[name], left_out = read_split(name, loaded[split], args)
        rejected += left_out
    settings = {"sample_rate": args.sample_rate, "channel": args.channel}
    prepare(args, sets, args.hub, rejected=rejected, info=settings)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Prepare any speech recognition data set of the Hugging Face hub.")
    parser.add_argument("--hub", metavar="NAME", required=True, help="its name on the hub, or a local path")
    parser.add_argument("--hub-config", metavar="NAME", help="configuration of the data set, such as a language")
    parser.add_argument("--splits", nargs="+", metavar="SET=SPLIT", default=[],
                        help="what to prepare (default: train, valid and test, by their usual names)")  # fmt: skip
    add_arguments(parser)
    add_paths_option(parser)
    parser.add_argument("--audio-column", default="audio", metavar="COLUMN", help="recordings (default: audio)")
    parser.add_argument("--text-column", default="text", metavar="COLUMN", help="transcripts (default: text)")
    parser.add_argument("--id-column", metavar="COLUMN",
                        help=f"ids (default: {', '.join(ID_COLUMNS)}, or SPLIT-NUMBER)")  # fmt: skip
    parser.add_argument("--speaker-column", metavar="COLUMN",
                        help=f"speakers (default: {', '.join(SPEAKER_COLUMNS)}, or 'unknown')")  # fmt: skip
    parser.add_argument("--sample-rate", type=int, default=16_000, metavar="HZ", help="rate to keep (default: 16000)")
    parser.add_argument("--channel", type=int, metavar="N", help="channel to take of recordings with several, from 1")
    case = parser.add_mutually_exclusive_group()
    case.add_argument("--upper", dest="case", action="store_const", const=str.upper, help="transcripts in upper case")
    case.add_argument("--lower", dest="case", action="store_const", const=str.lower, help="transcripts in lower case")
    return parser


def read_split(name: str, table, args: argparse.Namespace) -> tuple[list[Utterance], list[Rejected]]:
    """The utterances of a split (a ``datasets.Dataset``), and what is left out."""
    import datasets

    columns = table.column_names
    for option in ("audio_column", "text_column", "id_column", "speaker_column"):
        column = getattr(args, option)
        if column is not None and column not in columns:
            option = f"--{option.replace('_', '-')}"
            raise UserError(f"--hub {args.hub} has no column {column!r} in {name}; {option} can be {_list(columns)}")
    ids = args.id_column or next((column for column in ID_COLUMNS if column in columns), None)
    speakers = args.speaker_column or next((column for column in SPEAKER_COLUMNS if column in columns), None)
    with holding(args.hub, args.audio_column, "audio", "--audio-column"):
        if holds_samples(table, args.audio_column):
            audio = table.select_columns(args.audio_column)
            sizes, paths = [0] * len(audio), [None] * len(audio)
        else:
            audio = as_files(table, args.audio_column, datasets.Audio(decode=False))
            sizes, paths = sources(audio, args.audio_column)
    texts = list(table[args.text_column])
    names = identifiers(name, list(table[ids]), ids) if ids else [None] * len(table)
    voices = list(table[speakers]) if speakers else ["unknown"] * len(table)
    utterances, rejected = [], []
    for i, (key, text, voice, path, size) in enumerate(zip(names, texts, voices, paths, sizes, strict=True)):
        key, path = str(f"{name}-{i:07d}" if key is None else key), path or f"{name}/{i}"
        if not isinstance(text, str):
            rejected.append(Rejected(name, key, path, f"has no transcript, but {text!r}"))
        else:
            read = partial(read_row, audio, i, args.audio_column, args.sample_rate, args.channel,
                           own_folders(args.hub, args.any_path))  # fmt: skip
            text = args.case(text) if args.case else text
            utterances.append(Utterance(key, text, None if is_nothing(voice) else str(voice), path, size, read))
    return utterances, rejected


def identifiers(name: str, ids: list, column: str) -> list[str | None]:
    """The ids of a column; None for those that are to be numbered: empty ones, and all if one occurs twice."""
    found = [None if is_nothing(key) else str(key) for key in ids]
    known = [key for key in found if key is not None]
    if len(set(known)) < len(known):
        print(f"note: {column!r} is no id in {name}: {len(known):,} utterances have "
              f"{len(set(known)):,} different ones; "
              "they are numbered instead")  # fmt: skip
        return [None] * len(ids)
    if len(known) < len(ids):
        print(f"note: {len(ids) - len(known):,} utterances of {name} have no {column!r}; they are numbered instead")
    return found


def is_nothing(value: object) -> bool:
    """Whether a cell is empty: null, not a number, or blank text."""
    return value is None or value != value or not str(value).strip()


def _list(names) -> str:
    return ", ".join(sorted(map(str, names)))


if __name__ == "__main__":
    sys.exit(run_cli(main))
