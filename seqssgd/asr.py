"""A speech recogniser: waveforms to logits as one module, its settings, and what it makes of recordings."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data.batching import SpeechBatch, by_length, collate
from .data.speech import SpeechSet, load_speech
from .errors import UserError
from .metrics import RealTimeFactor
from .models.sgcn import SimpleGatedConvNet
from .runs import checkpoints, layout
from .runs.checkpoints import check_files, find_checkpoint
from .runs.settings import RECOGNISER, read_config, read_section
from .speech.decode import greedy
from .speech.features import LogMel
from .speech.recordings import logits_of, open_wave, transcribed
from .speech.tokens import LabelTokenizer, load_tokenizer

Text = TypeVar("Text")
KIND = RECOGNISER
SPLITS = ("train", "valid", "test")


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


# ---- finished runs ---------------------------------------------------------------------------------------------------


def load_recognizer(run: str | Path, checkpoint: str | Path = "best") -> tuple[Recognizer, LabelTokenizer]:
    """The model (on the CPU, in evaluation mode) and the tokenizer of a run of ``recipes/wsj_sgcn/train.py``.

    Args:
        run: the run directory.
        checkpoint: as in :func:`seqssgd.runs.checkpoints.find_checkpoint`.

    Raises:
        UserError: not a run of a speech recogniser, a tokenizer or a checkpoint of another run, or a damaged one.
    """
    run = Path(run)
    settings = read_section(run, "model", KIND)
    try:
        features, network = FeatureConfig(**settings["features"]), NetworkConfig(**settings["network"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / layout.CONFIG}: section 'model' describes no speech recogniser ({error})") from None
    tokenizer = load_tokenizer(run / layout.TOKENIZER)
    if tokenizer.fingerprint != read_config(run).get("tokenizer"):
        raise UserError(f"{run / layout.TOKENIZER} is not the tokenizer that {run} was trained with; put its own back")
    path = find_checkpoint(run, checkpoint)
    model = Recognizer(RecognizerConfig(features, network), tokenizer.vocab_size)
    state = checkpoints.load(path)
    checkpoints.load_model(model, state, path)
    check_files(run, state, path)
    return model.eval(), tokenizer


def load_for_run(run: str | Path, folder: str | Path, split: str) -> SpeechSet:
    """A set of prepared speech for the model of a run.

    Args:
        run: the run directory.
        folder: the prepared corpus.
        split: ``"train"``, ``"valid"`` or ``"test"``, as the run's configuration names them, or the name of a set.

    Raises:
        UserError: there is no such set; or it has recordings at a lower rate than all that the run was trained on, in
            which the upper frequencies are missing.
    """
    corpus = read_section(run, "corpus", KIND)
    rate = read_section(run, "model", KIND)["features"]["rate"]
    data = load_speech(folder, corpus.get(split, split) if split in SPLITS else split, rate)
    heard = min(rate, *read_section(run, "data", KIND)["train"]["rates"])
    if data.source_rates[0] < heard:
        raise UserError(
            f"{data.name} has recordings at {data.source_rates[0]:,} Hz, and {run} was trained on {heard:,} Hz; their "
            "upper frequencies are missing, so prepare the corpus from recordings at the higher rate"
        )
    return data


def check_same_corpus(run: str | Path, folder: str | Path) -> None:
    """Makes sure that a folder holds the corpus that a run was trained on, by its validation set.

    Raises:
        UserError: it holds another one.
    """
    known = read_section(run, "data", KIND)["valid"]
    if not load_for_run(run, folder, "valid").is_that_of(known):
        raise UserError(f"{folder} is not the corpus that {run} was trained on; give that --data, or leave --save out")


# ---- single recordings -----------------------------------------------------------------------------------------------


def read_wave(path: str | Path, rate: int, mix: bool = False) -> tuple[Tensor, int]:
    """Samples (N,) of an audio file in [-1, 1] at the given rate, and the rate that it has itself.

    Args:
        path: any file that soundfile reads, or NIST SPHERE.
        rate: samples per second that are wanted.
        mix: whether the channels of a recording with several are averaged.

    Raises:
        UserError: the file cannot be used; the message begins with its name.
    """
    with open_wave(path, rate, mix) as wave:
        return torch.cat(list(wave.parts())), wave.own_rate


@torch.no_grad()
def recording_logits(model: Recognizer, wave: Tensor, chunk_seconds: float = 30.0) -> Tensor:
    """Logits (T', V), on the CPU, of one recording of any length, as if it had been computed at once.

    Args:
        model: in evaluation mode.
        wave: samples (N,) at the model's rate.
        chunk_seconds: audio computed at a time; bounds the memory.
    """
    return torch.cat([torch.zeros(0, model.network.output.out_features), *logits_of(model, [wave], chunk_seconds)])


def transcribe(model: Recognizer, tokenizer: LabelTokenizer, wave: Tensor, chunk_seconds: float = 30.0) -> str:
    """What is said in one recording, greedily decoded; the arguments are as in :func:`recording_logits`.

    :func:`seqssgd.speech.recordings.recognise` reads a file that is too long for the memory.
    """
    return transcribed(model, tokenizer, [wave], chunk_seconds)
