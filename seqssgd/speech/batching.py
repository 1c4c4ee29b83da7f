"""Utterances into minibatches: which ones can be trained on, which go together and when, and their loading."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.speech import SpeechSet
from ..errors import UserError
from .tokens import required_frames


class SpeechBatch(NamedTuple):
    """A minibatch of B utterances: waveforms (B, N) and labels (B, U), each with their lengths (B,), 0 beyond them."""

    waves: Tensor
    wave_lengths: Tensor
    targets: Tensor
    target_lengths: Tensor

    def to(self, device: torch.device | str) -> "SpeechBatch":
        """The same on a device."""
        return SpeechBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


def collate(data: SpeechSet, targets: Sequence[Tensor], indices: Sequence[int]) -> SpeechBatch:
    """The utterances with these indices as one minibatch; ``targets`` are the labels of all."""
    labels = [targets[index] for index in indices]
    return SpeechBatch(*padded([data.waveform(index) for index in indices]), *padded(labels))


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """1-D tensors as one, (B, longest), with 0 beyond their lengths (B,)."""
    lengths = [len(row) for row in rows]
    result = rows[0].new_zeros(len(rows), max(lengths))
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = row
    return result, torch.tensor(lengths)


# ---- which utterances ------------------------------------------------------------------------------------------------


@dataclass
class Selection:
    """The indices of utterances to train on, and the ids of the others by the reason why not."""

    indices: list[int]
    left_out: dict[str, list[str]]

    def __str__(self) -> str:
        if not self.left_out:
            return f"training on all {len(self.indices):,} utterances"
        total = len(self.indices) + sum(map(len, self.left_out.values()))
        reasons = [
            f"{len(ids):,} {reason} ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"
            for reason, ids in self.left_out.items()
        ]
        return f"training on {len(self.indices):,} of {total:,} utterances; left out: {'; '.join(reasons)}"


def select(
    data: SpeechSet,
    targets: Sequence[Tensor],
    frames_of: Callable[[int], int],
    max_seconds: float | None = None,
) -> Selection:
    """The utterances that can be trained on: those for whose labels the model gives enough frames.

    Args:
        data: the set.
        targets: the labels of all utterances.
        frames_of: the fewest frames T' that the model may put out for so many samples (at the highest speed, if speeds
            are perturbed). CTC needs T' >= U + the number of labels that equal the one before; with fewer its loss is
            infinite.
        max_seconds: longer ones are left out too.

    Raises:
        UserError: none can be.
    """
    selection = Selection([], {})
    for index, (samples, labels) in enumerate(zip(data.samples, targets, strict=True)):
        if not len(labels):
            reason = "without a word"
        elif max_seconds is not None and samples > max_seconds * data.rate:
            reason = f"longer than {max_seconds:g} s"
        elif frames_of(samples) < required_frames(labels):
            reason = "too short for their labels"
        else:
            selection.indices.append(index)
            continue
        selection.left_out.setdefault(reason, []).append(data.ids[index])
    if not selection.indices:
        raise UserError(f"{data.name}: {selection}; check transcripts, sample rate and the model's subsampling")
    return selection


# ---- which together --------------------------------------------------------------------------------------------------


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices for evaluation: all of them, the longest first, in batches whose padded length is within the budget.

    One that is longer than the budget is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class _Bucket(NamedTuple):
    indices: list[int]
    size: int  # the most utterances in a minibatch
    batches: int


class BucketBatches:
    """Minibatches of utterances of about the same length, drawn anew for every epoch as a pure function of its number.

    Sorted by length, the utterances are cut into buckets of equal total length. Every epoch shuffles each bucket and
    cuts it into minibatches of equal size (± 1) whose padded length, number × longest, is within the budget; then the
    minibatches are shuffled. There are as many in every epoch and for every process, and no utterance is in two.
    In one step all processes have utterances of about the same length. Where several processes are to halve their
    minibatches, all of these are of even size, so that every half is the same share of its own; of an odd number of
    utterances, one of the longest is left out, drawn anew in every epoch.

    Args:
        lengths: of all utterances, in samples, frames, or whatever the budget is counted in.
        budget: the largest padded length of a minibatch.
        indices: the utterances to use; all for ``None``.
        seed: another one gives other minibatches.
        buckets: how many, at most: fewer mix the utterances better, more need less padding. There are fewer where
            they would not have about three minibatches each.
        smallest: utterances that every minibatch has at least; 2 where each is to be halved.
        largest: utterances that none exceeds.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        UserError: the longest utterances do not fit the budget, or there are too few for the processes, or for halves.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        budget: int,
        indices: Sequence[int] | None = None,
        *,
        seed: int = 0,
        buckets: int = 10,
        smallest: int = 1,
        largest: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if buckets < 1 or smallest < 1 or (largest is not None and largest < 2 * smallest - 1):
            raise UserError(
                f"{buckets} buckets of minibatches of {smallest} to {largest} utterances: there must be at least one "
                "bucket, one utterance, and the largest number at least twice the smallest less one"
            )
        self.lengths, self.seed, self.rank, self.world_size = lengths, seed, rank, world_size
        self.unit = 2 if smallest == 2 and world_size > 1 else 1  # what the size of a minibatch is a multiple of
        least = smallest // self.unit  # units in a minibatch
        chosen = sorted(range(len(lengths)) if indices is None else indices, key=lambda i: (lengths[i], i))
        if len(chosen) < smallest:
            raise UserError(f"{len(chosen):,} utterances do not make a minibatch of {smallest}")
        enough = round(sum(lengths[i] for i in chosen) / (3 * max(budget, 1)))
        self.buckets = []
        for part in _cut(chosen, lengths, max(1, min(buckets, enough)), self.unit):
            longest = lengths[part[-1]]
            size = budget // max(longest, 1) if largest is None else min(budget // max(longest, 1), largest)
            units = size // self.unit
            # with 2·least - 1, every number from least on is a sum of numbers from least to that
            if units < 2 * least - 1:
                raise UserError(
                    f"a minibatch of {budget:,} is too small for {(2 * least - 1) * self.unit} utterances of "
                    f"{longest:,}, the longest; give it a larger budget, or leave long utterances out"
                )
            self.buckets.append(_Bucket(part, units * self.unit, -(-(len(part) // self.unit) // units)))
        self._make_divisible(least)

    def __len__(self) -> int:
        """Minibatches of this process in an epoch, of any process in any epoch."""
        return sum(bucket.batches for bucket in self.buckets) // self.world_size

    def epoch(self, epoch: int, start: int = 0) -> list[list[int]]:
        """The indices in each minibatch of this process, from number ``start`` on."""
        batches = self._all(epoch)
        steps = [batches[i : i + self.world_size] for i in range(0, len(batches), self.world_size)]
        order = torch.randperm(len(steps), generator=self.generator(epoch, "order")).tolist()
        return [steps[i][self.rank] for i in order[start:]]

    def padding(self) -> float:
        """The share of padding in all minibatches of epoch 0."""
        batches = self._all(0)
        full = sum(len(batch) * max(self.lengths[i] for i in batch) for batch in batches)
        return 1 - sum(self.lengths[i] for batch in batches for i in batch) / max(full, 1)

    def _all(self, epoch: int) -> list[list[int]]:
        generator, batches = self.generator(epoch, "batches"), []
        for bucket in self.buckets:
            shuffled = [bucket.indices[i] for i in torch.randperm(len(bucket.indices), generator=generator).tolist()]
            units = len(shuffled) // self.unit
            ends = [units * i // bucket.batches * self.unit for i in range(bucket.batches + 1)]
            batches += [shuffled[a:b] for a, b in zip(ends, ends[1:], strict=False)]
        return batches

    def generator(self, epoch: int, purpose: str) -> torch.Generator:
        """One that is seeded with the seed, the epoch and the purpose alone."""
        digest = hashlib.sha256(f"{self.seed} {epoch} {purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7]))

    def _make_divisible(self, least: int) -> None:
        """Cuts some buckets into more minibatches, those with the largest ones first, until every process has equally
        many."""
        while len(self) * self.world_size < sum(bucket.batches for bucket in self.buckets):
            units = [len(bucket.indices) // self.unit for bucket in self.buckets]
            options = [i for i, b in enumerate(self.buckets) if units[i] // (b.batches + 1) >= least]
            if not options:
                total = sum(len(bucket.indices) for bucket in self.buckets)
                raise UserError(
                    f"{total:,} utterances do not make equally many minibatches of {least * self.unit} or more for "
                    f"each of {self.world_size} processes; give them a larger budget, or use fewer processes"
                )
            at = max(options, key=lambda i: len(self.buckets[i].indices) / self.buckets[i].batches)
            self.buckets[at] = self.buckets[at]._replace(batches=self.buckets[at].batches + 1)


def _cut(chosen: list[int], lengths: Sequence[int], buckets: int, unit: int) -> list[list[int]]:
    """Sorted utterances in up to so many parts of equal total length, each of a multiple of ``unit`` but the last."""
    total, done, parts = sum(lengths[i] for i in chosen), 0, [[]]
    for at in range(0, len(chosen), unit):
        group = chosen[at : at + unit]
        if parts[-1] and len(group) == unit and done * buckets >= total * len(parts):
            parts.append([])
        parts[-1] += group
        done += sum(lengths[i] for i in group)
    return parts
