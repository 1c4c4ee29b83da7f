"""A speech recogniser: waveforms to logits as one module, and what it makes of a set of recordings."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.speech import SpeechSet
from ..errors import UserError
from .batching import SpeechBatch, by_length, collate
from .config import RecognizerConfig
from .decode import greedy
from .features import LogMel
from .networks import check_network
from .scoring import RealTimeFactor
from .tokens import LabelTokenizer

Text = TypeVar("Text")


class Recognizer(nn.Module):
    """Front end and network: one module, so that a checkpoint holds all that recognition needs.

    Args:
        config: the settings of both.
        vocab_size: labels, the blank included.

    Raises:
        UserError: settings that make no sense, or a network from elsewhere that is none for speech; the message begins
            with their section.
    """

    def __init__(self, config: RecognizerConfig, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        section = "features"
        try:
            self.features = LogMel(**asdict(config.features))
            section = "network"
            self.network = config.network.build(input_size=self.features.output_size, output_size=vocab_size)
        except ValueError as error:
            raise UserError(f"model.{section}.{error}") from error
        if config.network.elsewhere:
            check_network(config.network.name, self.network, self.features.output_size, vocab_size)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T', V) and their lengths, of features (B, T, F) and theirs."""
        return self.network(features, lengths)

    def receptive_field(self) -> tuple[int, int] | None:
        """Frames of features before and after that a frame of the logits depends on; None: on all, or not known."""
        return getattr(self.network, "receptive_field", lambda: None)()

    def output_frames(self, samples: int) -> int:
        """T' for a waveform of so many samples."""
        return -(-self.features.frames(samples) // self.network.subsampling)


def ctc_loss(logits: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """-ln P(labels) of every utterance, (B,), in fp32 (Graves et al. 2006, Eq. 8); infinite where T' is too short."""
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, targets, lengths, target_lengths, reduction="none")


@torch.no_grad()
def transcribe_set(
    model: Recognizer,
    data: SpeechSet,
    tokenizer: LabelTokenizer,
    device: torch.device,
    batch_seconds: float = 120.0,
    decode: Callable[[Tensor, Tensor], Iterable[Text]] | None = None,
    targets: list[Tensor] | None = None,
    factor: RealTimeFactor | None = None,
) -> tuple[dict[str, Text], float | None]:
    """What a model hears in a set of recordings.

    Args:
        model: in evaluation mode.
        data: the set.
        tokenizer: that of the model.
        device: the model's.
        batch_seconds: audio that is recognised at a time.
        decode: logits and lengths of a batch to one text (or whatever is wanted) each; None: greedily.
        targets: the labels of all utterances, for the loss.
        factor: measures features, network and decoding, but not the reading of the recordings.

    Returns:
        The text of every utterance by its id, and the mean loss per label (None without targets).
    """
    texts: dict[int, Text] = {}
    total, count = 0.0, 0
    empty = [torch.zeros(0, dtype=torch.long)] * len(data)
    for indices in by_length(data.samples, int(batch_seconds * data.rate)):
        batch: SpeechBatch = collate(data, empty if targets is None else targets, indices)
        seconds = int(batch.wave_lengths.sum()) / data.rate
        with nullcontext() if factor is None else factor.measure(seconds):
            batch = batch.to(device)
            logits, lengths = model(*model.features(batch.waves, batch.wave_lengths))
            if decode is None:
                found: list[Any] = [tokenizer.decode(labels) for labels in greedy(logits, lengths)]
            else:
                found = list(decode(logits, lengths))
        texts.update(zip(indices, found, strict=True))
        if targets is not None:
            losses = ctc_loss(logits, lengths, batch.targets, batch.target_lengths)
            possible = losses.isfinite()
            total += losses[possible].sum().item()
            count += int(batch.target_lengths[possible].sum())
    return {data.ids[index]: texts[index] for index in range(len(data))}, (total / count if count else None)
