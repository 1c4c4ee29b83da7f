"""From the logits of connectionist temporal classification to text: greedily, or by beam search with a language model.

Greedy decoding needs nothing beyond torch. Beam search is flashlight-text's and reads n-gram models with KenLM; both
come with ``pip install 'seqssgd[beam]'``.
"""

import copy
import gzip
import itertools
import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, require
from ..metrics import score
from ..models.sgcn import frame_mask
from .ngram import SEPARATOR
from .tokens import LabelTokenizer

LM_FILE = "an ARPA file or a binary of KenLM"


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
    best = logits.argmax(-1)
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
        self.words = None if lexicon is None else _lexicon(lexicon, tokenizer)
        labels = [SEPARATOR if label == " " else label for label in tokenizer.labels]
        self._names = labels if self.words is None else list(self.words)
        self._lm = self._flashlight.ZeroLM() if lm is None else _read_lm(lm, self._names, self.words is None)
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
        if logits.ndim != 2 or logits.shape[1] != self.tokenizer.vocab_size:
            raise ValueError(f"logits of shape {tuple(logits.shape)}; (T, {self.tokenizer.vocab_size}) are needed")
        emissions = logits.detach().to("cpu", torch.float32).log_softmax(-1)
        if emissions.isnan().any():
            raise ValueError("the logits of an utterance are not numbers (NaN): the model has diverged")
        if self.words is not None:  # a space after the end, which completes the last word
            emissions = torch.nn.functional.pad(emissions, (0, 0, 0, 1), value=-math.inf)
            emissions[-1, self.space] = 0.0
        if not len(emissions):
            end = self._lm.finish(self._lm.start(False))[1]
            return [Hypothesis("", (), self.alpha * self._lm_unit * end)]
        emissions = emissions.contiguous()
        found = self._decoder.decode(emissions.data_ptr(), *emissions.shape)
        hypotheses = [self._hypothesis(result) for result in found if result.score > -math.inf]
        return sorted(hypotheses, key=lambda found: -found.score) or [Hypothesis("", (), -math.inf)]

    def _hypothesis(self, result) -> Hypothesis:
        labels = [label for label, _ in itertools.groupby(result.tokens) if label != self.blank]
        if self.words is None:
            text = self.tokenizer.decode(labels)
            return Hypothesis(text, tuple(labels), result.score + self.beta * len(text.split()))
        text = " ".join(self._names[word] for word in result.words if word >= 0)
        spaces = [label == self.space for label in labels]  # the one after the end, and others that mean as little
        first, last = (spaces.index(False), spaces[::-1].index(False)) if False in spaces else (len(spaces), 0)
        return Hypothesis(text, tuple(labels[first : len(labels) - last]), result.score)

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
            self._decoder = self._flashlight.LexiconFreeDecoder(options, self._lm, self._silence, self.blank, [])
        else:
            options = self._flashlight.LexiconDecoderOptions(**shared, word_score=beta, unk_score=-math.inf)
            self._decoder = self._flashlight.LexiconDecoder(
                options, self._trie, self._lm, self._silence, self.blank, -1, [], False
            )


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
        unit: as in :func:`seqssgd.metrics.score`.
        normalize: as in :func:`seqssgd.metrics.score`.
    """
    points = []
    for alpha in alphas:
        for beta in betas:
            weighted = search.with_weights(alpha, beta)
            texts = {id_: weighted.n_best(frames)[0].text for id_, frames in logits.items()}
            points.append(GridPoint(score(references, texts, unit, normalize).rate, alpha, beta))
    return sorted(points, key=lambda point: (point.rate, point.alpha, abs(point.beta)))


def arpa_words(path: str | os.PathLike) -> list[str]:
    """The words of an ARPA file, ``<s>``, ``</s>`` and ``<unk>`` left out.

    Raises:
        UserError: there is no such file, or it is no ARPA file.
    """
    path = Path(path)
    words, inside = [], False
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for line in file:
                if line.startswith("\\"):
                    if inside:
                        return [word for word in words if word.lower() not in ("<s>", "</s>", "<unk>")]
                    inside = line.strip() == "\\1-grams:"
                elif inside and line.strip():
                    words.append(line.split()[1])
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as an ARPA file ({str(error) or type(error).__name__})") from None
    raise UserError(f"{path}: not a whole ARPA file, there is no end of its single words")


def _lexicon(lexicon: str | os.PathLike | Iterable[str], tokenizer: LabelTokenizer) -> dict[str, list[int]]:
    """The labels of every word, as the tokenizer writes it."""
    if isinstance(lexicon, (str, os.PathLike)):
        try:
            lines = Path(lexicon).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{lexicon}: cannot be read as a lexicon ({error})") from None
        named = [
            (line.split()[0], f"line {number} of {lexicon}") for number, line in enumerate(lines, 1) if line.split()
        ]
    else:
        named = [(word, "the lexicon") for word in lexicon]
    words = {tokenizer.normalize(word): name for word, name in reversed(named)}
    words = {word: name for word, name in reversed(words.items()) if word}
    if not words:
        raise UserError("the lexicon holds no words that the tokenizer keeps")
    spellings = tokenizer.encode_all(words, words.values())
    return {word: spelling.tolist() for word, spelling in zip(words, spellings, strict=True)}


def _read_lm(path: str | os.PathLike, names: Sequence[str], over_labels: bool):
    """Flashlight's view of an n-gram model, to which word ``i`` is ``names[i]``."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such language model; it should be {LM_FILE}")
    kenlm = require("kenlm", "beam")
    with open(path, "rb") as file:
        begin = file.read(200).lstrip().lower()
    if begin.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: this is a web page, not {LM_FILE}; download the file itself")
    config = kenlm.Config()
    config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
    try:
        model = kenlm.Model(str(path), config)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not {LM_FILE}, or not all of it, or of order 1 ({reason})") from None
    if over_labels and SEPARATOR in names and SEPARATOR not in model:
        raise UserError(
            f"{path}: has no {SEPARATOR!r}, the space of a model over characters; if it is over words, give a lexicon "
            "too, such as its own words"
        )
    if not over_labels and SEPARATOR in model:
        raise UserError(f"{path}: is over characters, since it has {SEPARATOR!r}; a lexicon needs one over words")
    if not any(name in model for name in names):
        what = "labels of the tokenizer" if over_labels else "words of the lexicon"
        raise UserError(f"{path}: knows none of the {what}, such as {names[-1]!r}; upper and lower case may differ")
    del model  # flashlight reads the file itself
    wrapper = require("flashlight.lib.text.decoder.kenlm", "beam")
    dictionary = require("flashlight.lib.text.dictionary", "beam")
    return wrapper.KenLM(str(path), dictionary.Dictionary(list(names)))
