"""Whether a classifier is as often right as it is sure to be: at its weights, and averaged over draws around them."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

BINS = 15
LABELS = 4096  # predictions that are held at once while the weights are moved


class Calibration(NamedTuple):
    """``loss`` is the mean of −ln p; ``error`` and ``calibration_error`` are in percent."""

    loss: float
    error: float
    calibration_error: float


class Tally:
    """Adds up predictions.

    The expected calibration error is Σ n_b/N · |share that is right − mean confidence| over 15 bins of equal width of
    the confidence, which is the probability of the likeliest label.

    Source: Guo, Pleiss, Sun, Weinberger (ICML 2017), Eq. 3.
    """

    def __init__(self) -> None:
        self.loss = 0.0
        self.count, self.confidence, self.right = torch.zeros(3, BINS, dtype=torch.float64)

    def add(self, log_probabilities: Tensor, labels: Tensor) -> None:
        """Args: log_probabilities: (N, C); labels: (N,), the right ones."""
        log_probabilities = log_probabilities.double().cpu()
        labels = labels.cpu()
        self.loss -= log_probabilities.gather(1, labels[:, None]).sum().item()
        confidence, chosen = log_probabilities.max(1)
        confidence = confidence.exp()
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # a bin has its upper end
        self.count.index_add_(0, bins, torch.ones_like(confidence))
        self.confidence.index_add_(0, bins, confidence)
        self.right.index_add_(0, bins, (chosen == labels).double())

    def result(self) -> Calibration:
        """Of all that was added."""
        count = self.count.sum().item()
        error = 1 - self.right.sum().item() / count
        return Calibration(
            self.loss / count, 100 * error, 100 * (self.right - self.confidence).abs().sum().item() / count
        )


@torch.no_grad()
def calibration(
    batches: Sequence[Any],
    logits: Callable[[Any], Tensor],
    labels: Callable[[Any], Tensor],
    models: Callable[[], Iterator[Any]],
) -> Calibration:
    """Loss, error and calibration of the mean of several models' probabilities.

    Args:
        batches: of the data.
        logits: of a batch, (N, C).
        labels: of a batch, (N,).
        models: an iterator at each of whose items another model is the one that ``logits`` asks; begun anew for every
            few thousand predictions.
    """
    tally = Tally()
    for part in _parts(batches, labels):
        sums: list[Tensor] = []
        count = 0
        for _ in models():
            found = [logits(batch).log_softmax(1) for batch in part]
            sums = [torch.logaddexp(*pair) for pair in zip(sums, found, strict=True)] if sums else found
            count += 1
        for total, batch in zip(sums, part, strict=True):
            tally.add(total - math.log(count), labels(batch))
    return tally.result()


def _parts(batches: Sequence[Any], labels: Callable[[Any], Tensor]) -> Iterator[list[Any]]:
    part: list[Any] = []
    size = 0
    for batch in batches:
        if part and size + len(labels(batch)) > LABELS:
            yield part
            part, size = [], 0
        part.append(batch)
        size += len(labels(batch))
    if part:
        yield part
