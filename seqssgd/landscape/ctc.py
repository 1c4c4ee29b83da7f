"""The loss of connectionist temporal classification, differentiable twice.

PyTorch's own has no second derivative. Its first one is minus the occupancy: how likely each label is in each frame,
given the transcript. The second derivative, times a vector, is how that occupancy changes along the vector. Both come
from the forward and the backward recursion, and the change from the two recursions made linear, which are kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_IMPOSSIBLE = -1e30  # log-probability; with -inf the differences of two impossible ones are undefined


def ctc_loss(logits: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """-ln P(labels) of every utterance, as :func:`seqssgd.speech.recognizer.ctc_loss` gives it, with exact first
    and second derivatives.

    Args:
        logits: (B, T, V); label 0 is the blank.
        lengths: (B,) frames of every utterance, at least 1.
        targets: (B, U) labels; what lies beyond an utterance's length is not looked at.
        target_lengths: (B,) labels of every utterance; 0 is allowed.

    Returns:
        (B,); infinite, with undefined derivatives, where there are too few frames for the labels.

    Source: Graves et al. 2006, Eq. 5 to 10 and 14 to 16.
    """
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    lattice = _Lattice(log_probs.detach().double(), lengths, targets, target_lengths)
    return _Loss.apply(log_probs, lattice)


class _Lattice:
    """All ways to spell the labels of B utterances in up to T frames: S = 2U + 1 states, blanks around every label.

    The backward recursion is the forward one on the utterance read from its end, so that both run side by side, as 2B
    utterances.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor):
        frames, count, self.labels = log_probs.shape
        device = log_probs.device
        lengths, target_lengths = lengths.to(device), target_lengths.to(device)
        states = 2 * targets.shape[1] + 1
        used = 2 * target_lengths + 1
        time, state = torch.arange(frames, device=device), torch.arange(states, device=device)
        self.inside = (time[:, None] < lengths)[:, :, None] & (state < used[:, None])  # (T, B, S)
        spelled = torch.zeros(count, states, dtype=torch.long, device=device)
        spelled[:, 1::2] = targets
        self.spelled = spelled.masked_fill(state >= used[:, None], 0)
        self.from_end = (lengths - 1 - time[:, None]).clamp_min(0), (used[:, None] - 1 - state).clamp_min(0)
        backwards = self.spelled.gather(1, self.from_end[1])
        both = torch.cat([self.spelled, backwards])
        skips = torch.zeros_like(both, dtype=torch.bool)
        skips[:, 2:] = (both[:, 2:] != both[:, :-2]) & (both[:, 2:] != 0)
        self.frozen = (time[:, None] >= torch.cat([lengths, lengths]))[:, None, :, None]  # (T, 1, 2B, 1)

        emitted = self._emissions(log_probs).masked_fill(~self.inside, _IMPOSSIBLE)
        alphas, arrivals = self._recursion(self._both_ways(emitted), skips)
        # what share of a state's probability came from itself, the one before, the one before that: (T, 3, 2B, S)
        self.shares = arrivals.softmax(1)
        stay = torch.tensor([1.0, 0, 0], dtype=self.shares.dtype, device=device).view(1, 3, 1, 1)
        self.shares = torch.where(self.frozen, stay, self.shares)
        last = alphas[-1, :count].gather(1, torch.stack([used - 1, (used - 2).clamp_min(0)], 1))
        last[:, 1] = last[:, 1].masked_fill(target_lengths == 0, _IMPOSSIBLE)
        total = last.logsumexp(1)
        self.impossible = total < _IMPOSSIBLE / 2
        self.losses = (-total).masked_fill(self.impossible, torch.inf)
        joint = (self._joined(alphas) - emitted - total[:, None]).exp()
        self.occupancy = joint.masked_fill(~self.inside, 0.0).masked_fill(self.impossible[:, None], torch.nan)

    def _emissions(self, values: Tensor) -> Tensor:
        """(T, B, V) to (T, B, S): what each state has of its label."""
        return values.gather(2, self.spelled.expand(len(values), -1, -1))

    def per_label(self, values: Tensor) -> Tensor:
        """(T, B, S) to (T, B, V): the sum over all states of a label."""
        zeros = values.new_zeros(*values.shape[:2], self.labels)
        return zeros.scatter_add(2, self.spelled.expand(len(values), -1, -1), values)

    def _backwards(self, values: Tensor) -> Tensor:
        """(T, B, S), every utterance from its last frame and state on."""
        frames, states = self.from_end
        by_time = values.gather(0, frames[:, :, None].expand_as(values))
        return by_time.gather(2, states.expand_as(values))

    def _both_ways(self, values: Tensor) -> Tensor:
        return torch.cat([values, self._backwards(values)], 1)

    def _joined(self, values: Tensor) -> Tensor:
        """(T, 2B, S) to (T, B, S): forward plus backward."""
        forward, backward = values.chunk(2, 1)
        return forward + self._backwards(backward)

    def _recursion(self, emitted: Tensor, skips: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (T, 2B, S) of arriving in each state, and their three parts (T, 3, 2B, S)."""
        start = torch.full_like(emitted[0], _IMPOSSIBLE)
        start[:, :2] = emitted[0, :, :2]
        closed = torch.where(skips, 0.0, _IMPOSSIBLE).to(emitted.dtype)
        alphas, arrivals = [start], [_shifted(start)]
        for now, frozen in zip(emitted[1:], self.frozen[1:, 0], strict=True):
            parts = _shifted(alphas[-1], _IMPOSSIBLE)
            parts[2] += closed
            arrivals.append(parts)
            alphas.append(torch.where(frozen, alphas[-1], (now + parts.logsumexp(0)).clamp_min(_IMPOSSIBLE)))
        return torch.stack(alphas), torch.stack(arrivals)

    def change(self, direction: Tensor) -> Tensor:
        """How the occupancy (T, B, V) changes as the log-probabilities move along ``direction`` (T, B, V)."""
        emitted = self._emissions(direction.double()).masked_fill(~self.inside, 0.0)
        moving = self._both_ways(emitted)
        alphas = [moving[0]]
        for now, shares in zip(moving[1:], self.shares[1:], strict=True):
            alphas.append(now + (shares * _shifted(alphas[-1])).sum(0))
        joint = self._joined(torch.stack(alphas)) - emitted
        total = (self.occupancy[0] * joint[0]).sum(1)  # every way passes through the first frame
        return self.per_label(self.occupancy * (joint - total[:, None]))


def _shifted(values: Tensor, fill: float = 0.0) -> Tensor:
    """(3, B, S): of every state, its own value and those of the one and the two before."""
    padded = torch.nn.functional.pad(values, (2, 0), value=fill)
    return torch.stack([padded[:, 2:], padded[:, 1:-1], padded[:, :-2]])


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lattice: _Lattice) -> Tensor:
        ctx.lattice = lattice
        ctx.save_for_backward(log_probs)
        return lattice.losses.to(log_probs.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (log_probs,) = ctx.saved_tensors
        return -gradient[:, None] * _Occupancy.apply(log_probs, ctx.lattice), None


class _Occupancy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lattice: _Lattice) -> Tensor:
        ctx.lattice = lattice
        return lattice.per_label(lattice.occupancy).to(log_probs.dtype)

    @staticmethod
    @once_differentiable  # a third derivative is an error
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor, None]:
        return ctx.lattice.change(direction).to(direction.dtype), None  # a Hessian: its own transpose
