"""Beam search over recordings of any length, in memory that depends on the beam alone."""

import math
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..notes import note
from .decode import BeamSearch, Hypothesis

KEPT = 500_000  # states (one for each hypothesis and frame) that may wait for a decision
AT_ONCE = 500  # frames, at most, between two looks at what is decided


class BeamStream:
    """What a :class:`BeamSearch` finds in one recording whose logits come in pieces.

    All hypotheses that live have grown out of common ones. A beginning that they share is part of whatever they will
    become: it is decided, and leaves the search. So the best hypothesis is that of :meth:`BeamSearch.n_best` over the
    whole recording, and what waits is as long as the beam needs to agree, mostly some seconds of speech.

    Only where it does not agree for very long, as on words that sound alike before an hour of silence, what the best
    hypothesis has there is taken for decided, and a note on standard error says so. Another one could still have become
    the best, if what follows speaks for it.

    Args:
        search: serves one recording at a time.
        kept: states that may wait for a decision; a state takes some two hundred bytes.
    """

    def __init__(self, search: BeamSearch, kept: int = KEPT) -> None:
        self._search, self._decoder, self._kept = search, search.decoder, max(kept, 8 * search.beam)
        self._at_once = max(1, min(AT_ONCE, self._kept // (4 * search.beam)))
        self._tokens, self._words, self._score = array("i"), array("i"), 0.0  # of what is decided, frame by frame
        self._begun = self._noted = False
        self._decoder.decode_begin()

    def add(self, logits: Tensor) -> None:
        """Goes on with logits (T, V).

        Raises:
            ValueError: as :meth:`BeamSearch.n_best`.
        """
        self._step(self._search.emissions(logits))
        self._begun |= len(logits) > 0

    def finish(self) -> Hypothesis:
        """The best hypothesis of all that was given."""
        if not self._begun:
            return self._search.n_best(torch.zeros(0, self._search.tokenizer.vocab_size))[0]
        self._step(self._search.ending())
        self._decoder.decode_end()
        best = max(_possible(self._decoder.get_all_final_hypothesis()), key=lambda one: one.score, default=None)
        if best is None:
            return Hypothesis("", (), -math.inf)
        tokens, words = [*self._tokens, *best.tokens], [*self._words, *best.words]
        return self._search.hypothesis(tokens, words, best.score + self._score)

    def _step(self, emissions: Tensor) -> None:
        for part in emissions.split(self._at_once):
            self._decoder.decode_step(part.data_ptr(), *part.shape)
            self._decide()

    def _decide(self) -> None:
        """Takes out of the search the beginning that all living hypotheses share."""
        living = self._decoder.get_all_final_hypothesis()
        best = max(_possible(living), key=lambda one: one.score, default=None)
        if best is None:
            return
        frames = len(best.tokens) - 1
        decided = min(frames, _shared([one.tokens for one in living]))
        if (frames - decided) * len(living) > self._kept:
            decided = frames - self._kept // (2 * len(living))
            self._say(frames)
        if decided < 1:
            return
        self._decoder.prune(frames - decided)  # keeps what it is asked for, and what leads to the end of a word
        left = next((len(one.tokens) - 1 for one in self._decoder.get_all_final_hypothesis()), 0)
        if left < frames:
            self._tokens.extend(best.tokens[: frames - left])
            self._words.extend(best.words[: frames - left])
            self._score += best.score  # which the decoder takes off all scores

    def _say(self, frames: int) -> None:
        if not self._noted:
            note(f"the hypotheses of the beam, {self._search.beam} at most, do not agree on what was said "
                 f"{frames:,} frames ago; to bound the memory, what is the best by now is taken, which the rest could "
                 "have changed")  # fmt: skip
        self._noted = True


def _possible(found: Sequence[Any]) -> list[Any]:
    """Those whose score is above -inf; of frames that nothing fits the decoder also makes scores that are no number."""
    return [one for one in found if one.score > -math.inf]


def _shared(paths: list[list[int]]) -> int:
    """How long the beginning is that all lists share: as long as that of the first and the last in their order."""
    first, last = min(paths), max(paths)
    return next((i for i, (one, other) in enumerate(zip(first, last, strict=True)) if one != other), len(first))
