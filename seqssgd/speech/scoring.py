"""Word and character error rates of recognised speech, with alignments, confusions, confidence intervals and speed."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..errors import UserError, require

UNITS = ("word", "char")
GAP = "***"  # as NIST's sclite prints what is missing


@dataclass(frozen=True)
class ErrorCounts:
    """How the units of references were recognised: H hits, S substitutions, D deletions and I insertions."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def reference(self) -> int:
        """Units of the reference, H + S + D."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """S + D + I."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors in percent of the reference; infinite for errors without any reference, and 0 without both."""
        if self.reference == 0:
            return float("inf") if self.errors else 0.0
        return 100 * self.errors / self.reference

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@dataclass(frozen=True)
class Alignment:
    """An utterance's reference beside its hypothesis, with the least number of errors.

    Attributes:
        id: of the utterance.
        pairs: (unit of the reference, unit of the hypothesis), None for the first in an insertion and for the second
            in a deletion.
    """

    id: str
    pairs: tuple[tuple[str | None, str | None], ...]

    @property
    def counts(self) -> ErrorCounts:
        kinds = Counter(_kind(*pair) for pair in self.pairs)
        return ErrorCounts(kinds["C"], kinds["S"], kinds["D"], kinds["I"])

    def lines(self) -> list[str]:
        """Four lines: the id with its counts, the reference, the hypothesis, and S, D or I below every error."""
        counts = self.counts
        cells = []
        for reference, hypothesis in self.pairs:
            kind = _kind(reference, hypothesis)
            cells.append((reference or GAP, hypothesis or GAP, "" if kind == "C" else kind))
        widths = [max(map(len, cell)) for cell in cells]
        head = f"{self.id}: {counts.errors} of {counts.reference}"
        if counts.errors:
            head += f" (S {counts.substitutions}, D {counts.deletions}, I {counts.insertions})"
        rows = zip(*cells, strict=True) if cells else ((), (), ())
        texts = [" ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
        names = ("REF:", "HYP:", "    ")
        return [head, *(f"{name} {text}".rstrip() for name, text in zip(names, texts, strict=True))]


@dataclass(frozen=True)
class Confusions:
    """The errors by what was said and what was recognised, the most frequent first."""

    substitutions: list[tuple[tuple[str, str], int]]
    deletions: list[tuple[str, int]]
    insertions: list[tuple[str, int]]


@dataclass(frozen=True)
class ErrorRate:
    """What :func:`score` returns: every utterance's alignment, in the order of the references.

    Attributes:
        unit: ``"word"`` or ``"char"``.
        alignments: one per utterance.
    """

    unit: str
    alignments: tuple[Alignment, ...]

    @property
    def counts(self) -> ErrorCounts:
        """Of all utterances together."""
        return sum((alignment.counts for alignment in self.alignments), ErrorCounts())

    @property
    def rate(self) -> float:
        """Errors of all utterances in percent of all their references: the word or character error rate."""
        return self.counts.rate

    def by_utterance(self) -> dict[str, tuple[int, int]]:
        """Errors and units of the reference of every utterance."""
        counts = {alignment.id: alignment.counts for alignment in self.alignments}
        return {id_: (found.errors, found.reference) for id_, found in counts.items()}

    def confusions(self, most: int = 10) -> Confusions:
        """The ``most`` frequent errors of every kind; the alphabet decides between equals."""
        kinds: dict[str, Counter] = {"S": Counter(), "D": Counter(), "I": Counter(), "C": Counter()}
        for alignment in self.alignments:
            for reference, hypothesis in alignment.pairs:
                kind = _kind(reference, hypothesis)
                kinds[kind][{"D": reference, "I": hypothesis}.get(kind, (reference, hypothesis))] += 1

        def first(kind: str) -> list:
            return sorted(kinds[kind].items(), key=lambda item: (-item[1], item[0]))[:most]

        return Confusions(first("S"), first("D"), first("I"))

    def interval(
        self, groups: Mapping[str, str] | None = None, level: float = 0.95, samples: int = 2000, seed: int = 0
    ) -> tuple[float, float] | None:
        """Bootstrap confidence interval of the rate (Bisani and Ney 2004), in percent.

        Args:
            groups: group of every utterance, such as its speaker. Groups are what is drawn, with replacement; None:
                every utterance by itself, which is too narrow where the errors of a speaker go together.
            level: how much of the distribution the interval covers.
            samples: how often a test set is drawn.
            seed: of the draws, so that the same counts have the same interval.

        Returns:
            The lower and the upper end; None where there are fewer than two groups or no reference at all.
        """
        summed: dict[str, ErrorCounts] = {}
        for alignment in self.alignments:
            group = alignment.id if groups is None else groups[alignment.id]
            summed[group] = summed.get(group, ErrorCounts()) + alignment.counts
        if len(summed) < 2 or self.counts.reference == 0:
            return None
        table = torch.tensor([[counts.errors, counts.reference] for counts in summed.values()], dtype=torch.float64)
        draws = torch.randint(len(table), (samples, len(table)), generator=torch.Generator().manual_seed(seed))
        errors, reference = (table[:, column][draws].sum(1) for column in (0, 1))
        rates = 100 * errors / reference  # a draw of empty references alone has no rate
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = rates[reference > 0].quantile(ends).tolist()
        return low, high

    def report(self) -> str:
        """The alignments of all utterances, the one with the most errors first."""
        ordered = sorted(self.alignments, key=lambda alignment: (-alignment.counts.errors, alignment.id))
        return "\n\n".join("\n".join(alignment.lines()) for alignment in ordered) + "\n"


def score(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    unit: str = "word",
    normalize: Callable[[str], str] | None = None,
) -> ErrorRate:
    """Aligns hypotheses with references and counts errors, as jiwer and NIST's sclite do.

    Words are what whitespace separates, and upper and lower case differ. Characters include one space between words.
    An empty hypothesis has all its reference deleted; an empty reference has all its hypothesis inserted.

    Args:
        references: text by id of the utterance.
        hypotheses: text by id of the utterance.
        unit: ``"word"`` or ``"char"``.
        normalize: what is done to all texts first, such as
            :func:`seqssgd.speech.wsj.scoring_filter` for WSJ's published word error rates.

    Raises:
        UserError: the ids differ, or jiwer is not installed.

    >>> result = score({"a": "one two three", "b": "four"}, {"a": "one too three", "b": "four five"})
    >>> result.rate, result.counts
    (50.0, ErrorCounts(hits=3, substitutions=1, deletions=0, insertions=1))
    """
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r} is not one of {', '.join(UNITS)}")
    _check_ids(references, hypotheses)
    jiwer = require("jiwer")
    if not references:
        return ErrorRate(unit, ())
    process, split = (jiwer.process_words, str.split) if unit == "word" else (jiwer.process_characters, list)
    texts = [
        [" ".join((normalize(text) if normalize else text).split()) for text in (references[id_], hypotheses[id_])]
        for id_ in references
    ]
    chunks = process([text for text, _ in texts], [text for _, text in texts]).alignments
    return ErrorRate(
        unit,
        tuple(
            Alignment(id_, tuple(_pairs(split(reference), split(hypothesis), parts)))
            for id_, (reference, hypothesis), parts in zip(references, texts, chunks, strict=True)
        ),
    )


def _pairs(reference: Sequence[str], hypothesis: Sequence[str], chunks: Sequence) -> Iterator:
    """The pairs of an alignment from the chunks of jiwer, in which successive units with one fate are joined."""
    for chunk in chunks:
        left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        yield from zip(left or [None] * len(right), right or [None] * len(left), strict=True)


def _kind(reference: str | None, hypothesis: str | None) -> str:
    """C for correct, S for substituted, D for deleted, I for inserted."""
    if reference is None:
        return "I"
    if hypothesis is None:
        return "D"
    return "C" if reference == hypothesis else "S"


def _check_ids(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> None:
    for name, other, ids in (
        ("hypothesis", "reference", set(references) - set(hypotheses)),
        ("reference", "hypothesis", set(hypotheses) - set(references)),
    ):
        if ids:
            some = ", ".join(sorted(ids)[:3]) + (", …" if len(ids) > 3 else "")
            raise UserError(f"{len(ids)} utterances have a {other} and no {name}: {some}; score one and the same set")


class RealTimeFactor:
    """Seconds of computation per second of audio, summed over what is measured.

    >>> factor = RealTimeFactor()
    >>> with factor.measure(audio_seconds=8.0):
    ...     pass  # features, network, decoding
    >>> factor.value < 0.1
    True
    """

    def __init__(self) -> None:
        self.compute_seconds = 0.0
        self.audio_seconds = 0.0

    @contextmanager
    def measure(self, audio_seconds: float) -> Iterator[None]:
        """Adds the time that the block takes, until the GPU's work in it is done; nothing if it raises."""
        _wait()
        begin = time.perf_counter()
        yield
        _wait()
        self.compute_seconds += time.perf_counter() - begin
        self.audio_seconds += audio_seconds

    @property
    def value(self) -> float:
        """The factor; below 1 is faster than real time. NaN before anything was measured."""
        return self.compute_seconds / self.audio_seconds if self.audio_seconds else float("nan")


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
