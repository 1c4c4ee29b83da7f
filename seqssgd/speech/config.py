"""The settings of a speech recogniser and its training."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ..networks import NetworkSettings
from ..training.config import OptimConfig, TrainingConfig
from ..training.unused import changed
from .networks import NETWORKS


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
class RecognizerConfig:
    """Front end and network.

    Attributes:
        features: the front end.
        network: the network; its name, and the settings that its class has.
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    network: NetworkSettings = NETWORKS.field()


@dataclass
class CorpusConfig:
    """What is read, and in what portions.

    Attributes:
        train: name of the training set.
        valid: name of the validation set.
        test: name of the test set, for ``seqssgd evaluate``.
        batch_seconds: audio in a minibatch, padding included, over all processes.
        max_seconds: longer utterances are left out; null: none are.
        buckets: the most groups of utterances of similar length that minibatches are made from.
        cache_gigabytes: a set smaller than this, decoded, stays in memory.
        prefetch: minibatches that are decoded ahead by a thread.
    """

    train: str = "train"
    valid: str = "valid"
    test: str = "test"
    batch_seconds: float = 60.0
    max_seconds: float | None = 30.0
    buckets: int = 10
    cache_gigabytes: float = 2.0
    prefetch: int = 2


@dataclass
class TokensConfig:
    """How transcripts are spelled.

    Attributes:
        level: one label per character, or per piece of a word (sentencepiece).
        vocab_size: labels of the pieces; of no matter for characters.
        case: transcripts are brought to it.
        symbols: further characters; null: all that the training transcripts hold.
        drop: characters that are taken out of transcripts.
    """

    level: Literal["character", "sentencepiece"] = "character"
    vocab_size: int = 500
    case: Literal["upper", "lower", "keep"] = "upper"
    symbols: str | None = ""
    drop: str = ""


@dataclass
class AugmentConfig:
    """What is done to training audio; see :mod:`seqssgd.speech.features`.

    Attributes:
        speeds: an utterance is played at one of these.
        time_masks: stretches of frames that are blanked in every utterance.
        time_width: the longest of them, in frames.
        time_share: the longest of them, as a share of the utterance.
        frequency_masks: bands of features that are blanked in every utterance.
        frequency_width: the widest of them.
    """

    speeds: list[float] = field(default_factory=lambda: [1.0])
    time_masks: int = 0
    time_width: int = 50
    time_share: float = 0.2
    frequency_masks: int = 0
    frequency_width: int = 27


@dataclass
class Config:
    """A recogniser and its training.

    Attributes:
        corpus: what is read, and in what portions.
        tokens: how transcripts are spelled.
        model: front end and network.
        augment: what is done to training audio.
        optim: the method and the optimizer.
        training: the loop.
        seed: of initial weights, minibatches, augmentation and dropout.
    """

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    model: RecognizerConfig = field(default_factory=RecognizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0

    def idle(self) -> Iterator[tuple[str, Any, str]]:
        """Settings that do nothing beside others; see :func:`seqssgd.training.unused.idle`."""
        augment, level = self.augment, self.tokens.level
        for key, value in changed(self.tokens, "tokens", ["vocab_size" if level == "character" else "symbols"]):
            yield key, repr(value), f"with tokens.level {level}"
        for kind, sizes in (("time", ["time_width", "time_share"]), ("frequency", ["frequency_width"])):
            masks = getattr(augment, f"{kind}_masks")
            if not masks:
                for key, value in changed(augment, "augment", sizes):
                    yield key, value, f"with augment.{kind}_masks 0"
            for size in sizes:
                if masks and not getattr(augment, size):
                    yield f"augment.{kind}_masks", masks, f"with augment.{size} 0"
