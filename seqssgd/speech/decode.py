"""From the logits of connectionist temporal classification to text: greedily, or by beam search with a language model.

Greedy decoding needs nothing beyond torch. Beam search is flashlight-text's and reads n-gram models with KenLM; both
come with ``pip install 'seqssgd[beam]'``.
"""

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError, require
from ..models.masks import frame_mask
from .language_models import LEAST, arpa_words, read_lexicon, read_lm
from .ngram import SEPARATOR
from .scoring import score
from .tokens import LabelTokenizer


def greedy(logits: Tensor, lengths: Tensor, blank: int = 0) -> list[list[int]]:
    """The labels of the best path: the best label of every frame, repetitions joined, then blanks dropped.

    Args:
        logits: (B, T, V), on any device; probabilities and their logarithms do as well.
        lengths: (B,) frames of every utterance.
        blank: label of the blank.

    >>> logits = torch.nn.functional.one_hot(torch.tensor([[3, 3, 0, 3, 1, 0]]), 4)
    >>> greedy(logits, torch.tensor([6]))
    [[3, 3, 1]]
    """
    return best_path(logits.argmax(-1), lengths, blank)


def best_path(best: Tensor, lengths: Tensor, blank: int = 0) -> list[list[int]]:
    """The labels of the best path, of the best label (B, T) of every frame; otherwise as :func:`greedy`."""
    keep = (best != blank) & frame_mask(lengths.to(best.device), best.shape[1])
    keep[:, 1:] &= best[:, 1:] != best[:, :-1]
    labels = best[keep].cpu().split(keep.sum(1).tolist())
    return [row.tolist() for row in labels]


@dataclass(frozen=True)
class Hypothesis:
    """What beam search found.

    Attributes:
        text: words separated by single spaces.
        labels: that spell it, without blanks.
        score: ln P_CTC + α ln P_LM + β · words. P_CTC is summed over the alignments that were not pruned.
    """

    text: str
    labels: tuple[int, ...]
    score: float


class BeamSearch:
    """Prefix beam search for the text with the highest ln P_CTC + α ln P_LM + β · words.

    Without a lexicon any text can come out, and the language model, if there is one, is over the tokenizer's labels:
    over characters, where the space is written ``|`` (see :func:`seqssgd.speech.ngram.characters`), or over word
    pieces. Its β orders what the search has found, and does not lead it.

    With a lexicon, for models over characters, only its words come out, and the language model is over words. Any
    number of successive spaces are one; those before the first word and after the last mean nothing.

    Args:
        tokenizer: of the model whose logits are decoded.
        lm: ARPA file (gzip is fine) or KenLM binary of order 2 or more.
        lexicon: words, or a file with one at the beginning of every line; what follows on a line, as the spelling in
            other programs' lexicons, is not looked at: the tokenizer spells. :func:`arpa_words` gives a model's own.
        alpha: weight α of the language model.
        beta: bonus β of every word.
        beam: hypotheses kept after every frame.
        token_beam: labels tried in every frame, the most probable ones; None: all.
        threshold: a hypothesis goes whose score is so much below the best.

    Raises:
        UserError: a package, the language model or the lexicon is missing, damaged, or does not suit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: LabelTokenizer,
        lm: str | os.PathLike | None = None,
        lexicon: str | os.PathLike | Iterable[str] | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
        beam: int = 100,
        token_beam: int | None = None,
        threshold: float = 50.0,
    ) -> None:
        for name, value in (("beam", beam), ("token_beam", token_beam)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: it must be at least 1")
        if not threshold > 0:
            raise ValueError(f"threshold={threshold}: it must be greater than 0")
        self._flashlight = require("flashlight.lib.text.decoder", "beam")
        self.tokenizer, self.blank = tokenizer, tokenizer.blank_id
        self.beam, self.threshold = beam, threshold
        self.space = tokenizer.labels.index(" ") if " " in tokenizer.labels else None
        if lexicon is not None and self.space is None:
            # flashlight ends a word with its last label, which could then not last for more than one frame
            raise UserError("a lexicon needs a model over characters; with word pieces, search without one")
        self.coverage = ""  # what of the lexicon and of the language model can be used, in words
        self.words = None if lexicon is None else self._use_lexicon(lexicon)
        labels = [SEPARATOR if label == " " else label for label in tokenizer.labels]
        self._names = labels if self.words is None else list(self.words)
        self._lm = self._flashlight.ZeroLM() if lm is None else self._use_lm(lm)
        self._lm_unit = 0.0 if lm is None else math.log(10)  # KenLM's logarithms are decimal
        # Flashlight's "silence" is what may stand any number of times between words: the space. Without a lexicon its
        # only effect is to begin as if it had occurred before the first frame, and with the blank that changes nothing.
        self._silence = self.blank if self.words is None else self.space
        self.token_beam = min(token_beam or tokenizer.vocab_size, tokenizer.vocab_size)
        self._trie = None if self.words is None else self._make_trie(list(self.words.values()))
        self._set_weights(alpha, beta)

    def with_weights(self, alpha: float, beta: float) -> "BeamSearch":
        """The same search with other weights; what was read is shared."""
        other = copy.copy(self)
        other._set_weights(alpha, beta)
        return other

    def __call__(self, logits: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """The best hypothesis of every utterance.

        Args:
            logits: (B, T, V).
            lengths: (B,) frames of every utterance.
        """
        return [self.n_best(row[:length])[0] for row, length in zip(logits, lengths.tolist(), strict=True)]

    def n_best(self, logits: Tensor) -> list[Hypothesis]:
        """The hypotheses of one utterance that were left in the end, the best first; at least one.

        Where a lexicon has no words that fit into the frames, or all were pruned, that is an empty one of score -inf.

        Args:
            logits: (T, V).

        Raises:
            ValueError: other than V columns, or a logit is not a number.
        """
        emissions = torch.cat([self.emissions(logits), self.ending()])
        if not len(emissions):
            end = self._lm.finish(self._lm.start(False))[1]
            return [Hypothesis("", (), self.alpha * self._lm_unit * end)]
        found = self.decoder.decode(emissions.data_ptr(), *emissions.shape)
        hypotheses = [self.hypothesis(one.tokens, one.words, one.score) for one in found if one.score > -math.inf]
        return sorted(hypotheses, key=lambda found: -found.score) or [Hypothesis("", (), -math.inf)]

    def emissions(self, logits: Tensor) -> Tensor:
        """The logarithms of the probabilities, (T, V) on the CPU, of logits (T, V).

        Raises:
            ValueError: as :meth:`n_best`.
        """
        if logits.ndim != 2 or logits.shape[1] != self.tokenizer.vocab_size:
            raise ValueError(f"logits of shape {tuple(logits.shape)}; (T, {self.tokenizer.vocab_size}) are needed")
        emissions = logits.detach().to("cpu", torch.float32).log_softmax(-1)
        if emissions.isnan().any():
            raise ValueError("the logits of an utterance are not numbers (NaN): the model has diverged")
        return emissions.contiguous()

    def ending(self) -> Tensor:
        """The frames (T, V) after the last one: with a lexicon a space, which completes the last word."""
        frames = torch.full((int(self.words is not None), self.tokenizer.vocab_size), -math.inf)
        frames[:, self.space or 0] = 0.0
        return frames

    def hypothesis(self, tokens: Iterable[int], words: Iterable[int], score: float) -> Hypothesis:
        """What the decoder's label and word (-1: none ends there) of every frame amount to."""
        labels = [label for label, _ in itertools.groupby(tokens) if label != self.blank]
        if self.words is None:
            text = self.tokenizer.decode(labels)
            return Hypothesis(text, tuple(labels), score + self.beta * len(text.split()))
        text = " ".join(self._names[word] for word in words if word >= 0)
        spaces = [label == self.space for label in labels]  # the one after the end, and others that mean as little
        first, last = (spaces.index(False), spaces[::-1].index(False)) if False in spaces else (len(spaces), 0)
        return Hypothesis(text, tuple(labels[first : len(labels) - last]), score)

    def _use_lexicon(self, lexicon: str | os.PathLike | Iterable[str]) -> dict[str, list[int]]:
        words, skipped = read_lexicon(lexicon, self.tokenizer)
        if skipped:
            shown = ", ".join(repr(word) for word in skipped[:3])
            more = ", …" if len(skipped) > 3 else ""
            self.coverage = f"{len(skipped):,} of {len(words) + len(skipped):,} words of the lexicon are left out, "
            self.coverage += f"which the tokenizer cannot spell ({shown}{more})"
            if len(words) < LEAST * (len(words) + len(skipped)):
                raise UserError(f"{self.coverage}: it is of another alphabet")
        return words

    def _use_lm(self, lm: str | os.PathLike):
        over_labels = self.words is None
        model, known = read_lm(lm, self._names, over_labels)
        what = "labels of the tokenizer" if over_labels else "words of the lexicon"
        share = known / len(self._names)
        if share < LEAST:
            count = f"{known:,} of {len(self._names):,}" if known else "none"
            raise UserError(
                f"{lm}: knows {count} of the {what}, such as {self._names[-1]!r}; upper and lower case may differ, or "
                "the alphabet"
            )
        found = f"{lm} knows {known:,} of {len(self._names):,} {what} ({100 * share:.3g} %)"
        self.coverage = "; ".join(filter(None, (self.coverage, found)))
        return model

    def _make_trie(self, spellings: list[list[int]]):
        start = self._lm.start(False)
        trie = self._flashlight.Trie(self.tokenizer.vocab_size, self._silence)
        for word, spelling in enumerate(spellings):
            trie.insert([*spelling, self.space], word, self._lm.score(start, word)[1])
        trie.smear(self._flashlight.SmearingMode.MAX)
        return trie

    def _set_weights(self, alpha: float, beta: float) -> None:
        if not 0 <= alpha < math.inf or not math.isfinite(beta):
            raise ValueError(f"alpha={alpha} must not be negative, and alpha and beta={beta} must be finite")
        self.alpha, self.beta = alpha, beta
        limits = {"beam_size": self.beam, "beam_size_token": self.token_beam, "beam_threshold": self.threshold}
        shared = {
            **limits,
            "lm_weight": alpha * self._lm_unit,
            "sil_score": 0.0,
            "log_add": True,
            "criterion_type": self._flashlight.CriterionType.CTC,
        }
        if self._trie is None:
            options = self._flashlight.LexiconFreeDecoderOptions(**shared)
            self.decoder = self._flashlight.LexiconFreeDecoder(options, self._lm, self._silence, self.blank, [])
        else:
            options = self._flashlight.LexiconDecoderOptions(**shared, word_score=beta, unk_score=-math.inf)
            self.decoder = self._flashlight.LexiconDecoder(
                options, self._trie, self._lm, self._silence, self.blank, -1, [], False
            )


def open_search(
    tokenizer: LabelTokenizer,
    beam: int,
    lm: str | os.PathLike | None = None,
    lexicon: str | os.PathLike | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> BeamSearch:
    """The beam search that options of a command line ask for; the lexicon is by default that of an ARPA over words.

    Raises:
        UserError: as :class:`BeamSearch`, or for impossible numbers.
    """
    words: str | os.PathLike | list[str] | None = lexicon
    if lexicon is None and lm is not None and " " in tokenizer.labels:
        try:
            own = arpa_words(lm)
            words = None if SEPARATOR in own else own
        except UserError:
            pass  # a binary, or no model at all: the search says so
    try:
        return BeamSearch(tokenizer, lm, words, alpha, beta, beam)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--{error}") from None


@dataclass(frozen=True)
class GridPoint:
    """An error rate in percent and the weights that gave it."""

    rate: float
    alpha: float
    beta: float


def grid_search(
    search: BeamSearch,
    logits: Mapping[str, Tensor],
    references: Mapping[str, str],
    alphas: Sequence[float],
    betas: Sequence[float],
    unit: str = "word",
    normalize: Callable[[str], str] | None = None,
) -> list[GridPoint]:
    """Decodes validation data with every pair of weights; the pair with the lowest error rate comes first.

    Between equal rates the smaller weights come first.

    Args:
        search: whose weights are varied.
        logits: (T, V) by id of the utterance, without padding.
        references: texts by id.
        alphas: weights of the language model to try.
        betas: word bonuses to try.
        unit: as in :func:`seqssgd.speech.scoring.score`.
        normalize: as in :func:`seqssgd.speech.scoring.score`.
    """
    points = []
    for alpha in alphas:
        for beta in betas:
            weighted = search.with_weights(alpha, beta)
            texts = {id_: weighted.n_best(frames)[0].text for id_, frames in logits.items()}
            points.append(GridPoint(score(references, texts, unit, normalize).rate, alpha, beta))
    return sorted(points, key=lambda point: (point.rate, point.alpha, abs(point.beta)))
