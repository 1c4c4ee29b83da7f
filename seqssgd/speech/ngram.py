"""Back-off n-gram language models from text, as ARPA files that KenLM and every other toolkit reads.

The estimate is interpolated modified Kneser-Ney (Chen and Goodman 1999), as KenLM's ``lmplz`` makes it, which pip does
not install. All counts are kept in memory, which suits the transcripts of a corpus; for gigabytes of text, ``lmplz``.
"""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from ..errors import UserError
from ..files import atomic_path

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
SEPARATOR = "|"  # what stands for a space where the words of a model are characters
FALLBACK = (0.5, 1.0, 1.5)  # discounts of an order with too few counts, as of ``lmplz --discount_fallback``
Gram = tuple[str, ...]


def characters(text: str) -> list[str]:
    """The text as words of a model over characters; a space is ``|``.

    >>> characters("no one")
    ['n', 'o', '|', 'o', 'n', 'e']
    """
    return [SEPARATOR if character == " " else character for character in " ".join(text.split())]


class NGram:
    """A back-off model.

    Args:
        probabilities: of every known n-gram, by its length less one: log10 of the probability of its last word after
            the others. ``<s>`` by itself has none and is left out.
        backoffs: log10 of the weight with which a context passes on to the next shorter one, by its length less one.
            A context that is not there has weight 1.
    """

    def __init__(self, probabilities: Sequence[dict[Gram, float]], backoffs: Sequence[dict[Gram, float]]) -> None:
        self.probabilities = list(probabilities)
        self.backoffs = list(backoffs)

    @property
    def order(self) -> int:
        """Words of the longest n-grams."""
        return len(self.probabilities)

    @property
    def vocabulary(self) -> list[str]:
        """The words, ``</s>`` and ``<unk>``, but not ``<s>``, which is never predicted."""
        return [word for (word,) in self.probabilities[0]]

    def log10(self, word: str, context: Sequence[str] = ()) -> float:
        """log10 of the probability of a word after a context (a sentence's context starts with ``<s>``)."""
        if (word,) not in self.probabilities[0]:
            word = UNKNOWN
        context = tuple(context)[len(context) - min(len(context), self.order - 1) :]
        weight = 0.0
        while (*context, word) not in self.probabilities[len(context)]:
            weight += self.backoffs[len(context) - 1].get(context, 0.0)
            context = context[1:]
        return weight + self.probabilities[len(context)][*context, word]

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """Per word of the sentences, their ends included."""
        total, words = 0.0, 0
        for sentence in sentences:
            padded = [BEGIN, *sentence, END]
            total += sum(self.log10(padded[i], padded[:i]) for i in range(1, len(padded)))
            words += len(padded) - 1
        return 10 ** (-total / words) if words else math.nan

    def write_arpa(self, path: str | os.PathLike) -> None:
        """Writes the model as an ARPA file, all of it or none."""
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write("\\data\\\n")
            for length, table in enumerate(self.probabilities, 1):
                file.write(f"ngram {length}={len(table) + (length == 1)}\n")
            for length, table in enumerate(self.probabilities, 1):
                file.write(f"\n\\{length}-grams:\n")
                rows = {(BEGIN,): -99.0, **table} if length == 1 else table
                backoffs = self.backoffs[length - 1] if length < self.order else {}
                for gram, value in rows.items():
                    tail = f"\t{backoffs[gram]:.7f}" if gram in backoffs else ""
                    file.write(f"{value:.7f}\t{' '.join(gram)}{tail}\n")
            file.write("\n\\end\\\n")


def estimate(sentences: Iterable[Sequence[str]], order: int, vocabulary: Iterable[str] = ()) -> NGram:
    """An interpolated modified Kneser-Ney model of the sentences.

    Where a corpus is too small or too regular for the discounts of an order to be estimated from its counts of counts,
    they are 0.5, 1 and 1.5.

    Args:
        sentences: each a sequence of words.
        order: words of the longest n-grams.
        vocabulary: words that the model shall know although they may not occur; each gets what ``<unk>`` gets.

    Raises:
        UserError: no sentences, or a word that means something else in ARPA files.
    """
    if order < 1:
        raise ValueError(f"order={order}: it must be at least 1")
    counts = _adjusted_counts(sentences, order, vocabulary)
    probabilities: list[dict[Gram, float]] = []
    weights: list[dict[Gram, float]] = []  # of interpolation with the next shorter context, by the context's length
    for table in counts:
        discounts = _discounts(table.values())
        totals: dict[Gram, int] = defaultdict(int)
        freed: dict[Gram, float] = defaultdict(float)
        for gram, count in table.items():
            totals[gram[:-1]] += count
            freed[gram[:-1]] += discounts[min(count, 3)]
        weights.append({context: freed[context] / total for context, total in totals.items()})
        shorter = probabilities[-1] if probabilities else None
        uniform = 1 / len(table)
        probabilities.append(
            {
                gram: (count - discounts[min(count, 3)]) / totals[gram[:-1]]
                + weights[-1][gram[:-1]] * (uniform if shorter is None else shorter[gram[1:]])
                for gram, count in table.items()
            }
        )
    return NGram(
        [{gram: math.log10(value) for gram, value in table.items()} for table in probabilities],
        [{context: math.log10(value) for context, value in table.items()} for table in weights[1:]],
    )


def _adjusted_counts(sentences: Iterable[Sequence[str]], order: int, vocabulary: Iterable[str]) -> list[Counter]:
    """By length: how often the longest n-grams occur, and of shorter ones how many words occur before them.

    Nothing occurs before ``<s>``, so what starts with it is counted as the longest are.
    """
    longest: list[Counter] = [Counter() for _ in range(order)]  # those of the full length, and shorter ones with <s>
    for number, sentence in enumerate(sentences, 1):
        for word in sentence:
            if word in (BEGIN, END, UNKNOWN) or not word or word.split() != [word]:
                raise UserError(f"sentence {number}: {word!r} cannot be a word of an ARPA file")
        padded = (BEGIN, *sentence, END)
        for length in range(2, order):
            if length <= len(padded):
                longest[length - 1][padded[:length]] += 1
        for start in range(len(padded) - order + 1):
            longest[-1][padded[start : start + order]] += 1
    counts = longest
    if order == 1:
        del counts[0][BEGIN,]
    for length in range(order - 1, 0, -1):
        for gram in counts[length]:
            counts[length - 1][gram[1:]] += 1
    if not counts[0]:
        raise UserError("there is no text to estimate an n-gram model from")
    for word in (UNKNOWN, *vocabulary):
        counts[0].setdefault((word,), 0)
    return counts


def _discounts(counts: Iterable[int]) -> tuple[float, float, float, float]:
    """What is taken from a count of 0, of 1, of 2 and of 3 or more."""
    number = Counter(counts)
    if all(number[count] for count in (1, 2, 3, 4)):
        share = number[1] / (number[1] + 2 * number[2])
        one, two, three = (count - (count + 1) * share * number[count + 1] / number[count] for count in (1, 2, 3))
        if min(one, two, three) > 0:
            return 0.0, one, two, three
    return 0.0, *FALLBACK
