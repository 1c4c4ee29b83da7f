"""Word and character error rates of a finished run on a set of prepared speech.

Greedy decoding, or beam search with an n-gram language model whose weights, where several are given, are chosen on the
validation set. Corpora whose dataset.json asks for it (WSJ) are scored with Kaldi's filter.
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..data.speech_writer import read_info
from ..devices import choose_device
from ..errors import UserError
from ..files import atomic_path
from ..options import beam_arguments, check_beam_arguments
from ..runs.checkpoints import find_checkpoint
from ..runs.errors import write_errors
from ..runs.reading import data_folder, record
from .decode import BeamSearch, grid_search, open_search
from .finished import SPLITS, check_same_corpus, load_for_run, load_recognizer
from .recognizer import Recognizer, transcribe_set
from .scoring import ErrorRate, RealTimeFactor, score
from .tokens import LabelTokenizer
from .wsj import scoring_filter

NAMES = {"word": "WER", "char": "CER"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options beside those of every evaluation."""
    parser.add_argument("--split", default="test", help=f"{', '.join(SPLITS)}, or the name of a set (default test)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the alignment of every utterance there")
    beam_arguments(parser, several=True)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates the run that ``args.run`` names, and prints what it finds."""
    check_beam_arguments(args)
    noted, args.data = args.data is None, data_folder(args.run, args.data)
    device = choose_device(args.device)
    path = find_checkpoint(args.run, args.checkpoint, own=args.save)
    model, tokenizer = load_recognizer(args.run, path)
    data = load_for_run(args.run, args.data, args.split)
    tokenizer.encode_all(data.texts, data.ids)  # refuses what the model could never write
    if args.save or noted:
        check_same_corpus(args.run, args.data)
    filtered = (read_info(args.data) or {}).get("scoring_filter") == "wsj"
    clean = wsj_text if filtered else tokenizer.normalize
    model.to(device)
    decode, decoding = None, "greedy"
    if args.beam is not None:
        search, decoding = choose_search(args, model, tokenizer, clean, device)
        decode = partial(_texts, search)
    factor = RealTimeFactor()
    texts, _ = transcribe_set(model, data, tokenizer, device, decode=decode, factor=factor)
    references = dict(zip(data.ids, data.texts, strict=True))
    scores = {unit: score(references, texts, unit, clean) for unit in NAMES}
    speakers = None if data.speakers is None else dict(zip(data.ids, data.speakers, strict=True))
    lines = [f"{path}, {data}", f"decoding: {decoding}{', scored with the filter of WSJ' if filtered else ''}"]
    lines += [rate_line(found, speakers) for found in scores.values()]
    lines.append(f"real-time factor {factor.value:.4f} ({device}, {torch.get_num_threads()} threads)")
    lines += confusion_lines(scores["word"])
    print("\n".join(lines))
    if args.report:
        write_report(args.report, lines, scores["word"])
    if args.save:  # beam search beside greedy decoding, not in its place
        name = args.split if args.beam is None else f"{args.split}_beam"
        rates = {NAMES[unit].lower(): found.by_utterance() for unit, found in scores.items()}
        write_errors(args.run, name, speakers, rates)
        record(args.run, name, figures(scores, speakers, factor, decoding) | {"checkpoint": path.name})


def _texts(search: BeamSearch, logits: Tensor, lengths: Tensor) -> list[str]:
    return [found.text for found in search(logits, lengths)]


def wsj_text(text: str) -> str:
    """What counts in scoring WSJ, whatever the case of the tokenizer."""
    return scoring_filter(text.upper())


def choose_search(
    args: argparse.Namespace,
    model: Recognizer,
    tokenizer: LabelTokenizer,
    clean: Callable[[str], str],
    device: torch.device,
) -> tuple[BeamSearch, str]:
    """The beam search, with the best of the weights on the validation set, and what to call it."""
    search = open_search(tokenizer, args.beam, args.lm, args.lexicon, args.alpha[0], args.beta[0])
    if search.coverage:
        print(f"note: {search.coverage}", file=sys.stderr)
    try:
        searches = [search.with_weights(alpha, beta) for alpha in args.alpha for beta in args.beta]
    except ValueError as error:
        raise UserError(f"--{error}") from None
    chosen = ""
    if len(searches) > 1:
        best = on_validation(args, search, model, tokenizer, clean, device)
        search = search.with_weights(best.alpha, best.beta)
        chosen = f", chosen on validation (WER {best.rate:.2f} %)"
    weights = "" if args.lm is None else f" with {args.lm}, alpha {search.alpha:g}"
    return search, f"beam {args.beam}{weights}, beta {search.beta:g}{chosen}"


def on_validation(args, search, model, tokenizer, clean, device):
    """The best point of the grid of weights."""
    valid = load_for_run(args.run, args.data, "valid")

    def keep(logits, lengths):
        return [row[:length].cpu() for row, length in zip(logits, lengths.tolist(), strict=True)]

    logits, _ = transcribe_set(model, valid, tokenizer, device, decode=keep)
    references = dict(zip(valid.ids, valid.texts, strict=True))
    return grid_search(search, logits, references, args.alpha, args.beta, normalize=clean)[0]


def rate_line(found: ErrorRate, speakers: dict[str, str] | None) -> str:
    """An error rate with its counts and its confidence interval."""
    counts, interval = found.counts, found.interval(speakers)
    line = (
        f"{NAMES[found.unit]} {counts.rate:.2f} % ({counts.errors:,} of {counts.reference:,} "
        f"{'words' if found.unit == 'word' else 'characters'}: {counts.substitutions:,} substituted, "
        f"{counts.deletions:,} deleted, {counts.insertions:,} inserted)"
    )
    if interval is not None:
        drawn = "utterances" if speakers is None else "speakers"
        line += f", 95 % interval {interval[0]:.2f} to {interval[1]:.2f} (bootstrap over {drawn})"
    return line


def confusion_lines(found: ErrorRate) -> list[str]:
    """The most frequent errors of each kind."""
    confusions = found.confusions(10)
    kinds = {
        "substituted": [(f"{a} → {b}", count) for (a, b), count in confusions.substitutions],
        "deleted": confusions.deletions,
        "inserted": confusions.insertions,
    }
    return [f"{kind}: {', '.join(f'{text} ({count})' for text, count in rows)}" for kind, rows in kinds.items() if rows]


def write_report(path: Path, lines: list[str], found: ErrorRate) -> None:
    """Writes ``lines`` and the alignment of every utterance, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join([*lines, "", found.report()]), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--report {path}: cannot be written ({error.strerror})") from None


def figures(
    scores: dict[str, ErrorRate], speakers: dict[str, str] | None, factor: RealTimeFactor, decoding: str
) -> dict[str, object]:
    """What --save keeps."""
    result: dict[str, object] = {"decoding": decoding, "utterances": len(scores["word"].alignments)}
    for unit, found in scores.items():
        key, interval = NAMES[unit].lower(), found.interval(speakers)
        counts = {
            name: getattr(found.counts, name) for name in ("substitutions", "deletions", "insertions", "reference")
        }
        rate = found.rate if math.isfinite(found.rate) else None
        result |= {key: rate, f"{key}_interval": interval, f"{key}_counts": counts}
    return result | {"real_time_factor": round(factor.value, 6)}
