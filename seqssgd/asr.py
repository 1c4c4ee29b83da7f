"""A speech recogniser: waveforms to logits as one module, its settings, and what it makes of a set of recordings."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data.batching import SpeechBatch, by_length, collate
from .data.speech import SpeechSet
from .errors import UserError
from .models.sgcn import SimpleGatedConvNet
from .speech.decode import greedy
from .speech.features import LogMel
from .speech.tokens import LabelTokenizer


@dataclass
class FeatureConfig:
    """The front end; see :class:`seqssgd.speech.features.LogMel`.

    Attributes:
        rate: samples per second of the waveforms; others are resampled.
        bins: mel filters.
        window: length of a frame in seconds.
        hop: from frame to frame, in seconds.
        preemphasis: how much of a sample is subtracted from the next.
        normalization: over the utterance, over the training set (global), or none.
    """

    rate: int = 16_000
    bins: int = 80
    window: float = 0.025
    hop: float = 0.010
    preemphasis: float = 0.97
    normalization: Literal["utterance", "global", "none"] = "utterance"


@dataclass
class NetworkConfig:
    """The Simple Gated ConvNet; see :class:`seqssgd.models.sgcn.SimpleGatedConvNet`.

    Attributes:
        width: units of each layer.
        layers: gated layers.
        kernel: frames of each depthwise convolution.
        gate: glu, self or lowrank.
        norm: layer or none.
        residual: whether a layer's input is added to its output.
        front_end: stack (frames joined) or conv2d.
        subsampling: frames of features for one of the output.
        dropout: of the layers' outputs.
        lookahead: frames of the future that every convolution may see; null: as many as of the past.
    """

    width: int = 190
    layers: int = 12
    kernel: int = 11
    gate: Literal["glu", "self", "lowrank"] = "glu"
    norm: Literal["layer", "none"] = "layer"
    residual: bool = True
    front_end: Literal["stack", "conv2d"] = "stack"
    subsampling: int = 3
    dropout: float = 0.0
    lookahead: int | None = None


@dataclass
class RecognizerConfig:
    """Front end and network.

    Attributes:
        features: the front end.
        network: the network.
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)


class Recognizer(nn.Module):
    """Front end and network: one module, so that a checkpoint holds all that recognition needs.

    Args:
        config: the settings of both.
        vocab_size: labels, the blank included.

    Raises:
        UserError: settings that make no sense; the message begins with their section.
    """

    def __init__(self, config: RecognizerConfig, vocab_size: int):
        super().__init__()
        section = "features"
        try:
            self.features = LogMel(**asdict(config.features))
            section = "network"
            self.network = SimpleGatedConvNet(self.features.output_size, vocab_size, **asdict(config.network))
        except ValueError as error:
            raise UserError(f"model.{section}.{error}") from error

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T', V) and their lengths, of features (B, T, F) and theirs."""
        return self.network(features, lengths)

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
    decode: Callable[[Tensor, Tensor], Iterable[str]] | None = None,
    targets: list[Tensor] | None = None,
) -> tuple[dict[str, str], float | None]:
    """What a model hears in a set of recordings.

    Args:
        model: in evaluation mode.
        data: the set.
        tokenizer: that of the model.
        device: the model's.
        batch_seconds: audio that is recognised at a time.
        decode: logits and lengths of a batch to one text each; None: greedily.
        targets: the labels of all utterances, for the loss.

    Returns:
        The text of every utterance by its id, and the mean loss per label (None without targets).
    """
    texts: dict[int, str] = {}
    total, count = 0.0, 0
    empty = [torch.zeros(0, dtype=torch.long)] * len(data)
    for indices in by_length(data.samples, int(batch_seconds * data.rate)):
        batch: SpeechBatch = collate(data, empty if targets is None else targets, indices).to(device)
        logits, lengths = model(*model.features(batch.waves, batch.wave_lengths))
        if targets is not None:
            losses = ctc_loss(logits, lengths, batch.targets, batch.target_lengths)
            possible = losses.isfinite()
            total += losses[possible].sum().item()
            count += int(batch.target_lengths[possible].sum())
        if decode is None:
            found = [tokenizer.decode(labels) for labels in greedy(logits, lengths)]
        else:
            found = decode(logits, lengths)
        texts.update(zip(indices, found, strict=True))
    return {data.ids[index]: texts[index] for index in range(len(data))}, (total / count if count else None)
