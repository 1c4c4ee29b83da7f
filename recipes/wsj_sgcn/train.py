"""Trains the Simple Gated ConvNet with CTC on prepared speech, with or without symmetric weight noise.

    python data_prep/an4.py --source AN4 --out data/an4
    python recipes/wsj_sgcn/train.py --config recipes/wsj_sgcn/an4_ssgd.yaml --data data/an4 --out runs/an4
    python recipes/wsj_sgcn/evaluate.py --run runs/an4 --data data/an4 --split test

WSJ, LibriSpeech and any data set of the Hugging Face hub go the same way (data_prep/wsj.py, librispeech.py,
hub_asr.py). The README beside this file has times, results and settings.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from seqssgd import training
from seqssgd.asr import Recognizer, RecognizerConfig, ctc_loss, transcribe_set
from seqssgd.data.batching import BucketBatches, collate, padded, select
from seqssgd.data.prefetching import prefetch
from seqssgd.data.speech import SpeechSet, load_speech
from seqssgd.errors import UserError
from seqssgd.files import make_folder
from seqssgd.metrics import score
from seqssgd.optim import Pass
from seqssgd.runs import layout
from seqssgd.speech.features import SpecAugment, SpeedPerturbation
from seqssgd.speech.tokens import CharacterTokenizer, LabelTokenizer, PieceTokenizer, check_labels
from seqssgd.training import OptimConfig, TrainingConfig, distributed


@dataclass
class CorpusConfig:
    """What is read, and in what portions.

    Attributes:
        train: name of the training set.
        valid: name of the validation set.
        test: name of the test set, for evaluate.py.
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

    corpus: CorpusConfig
    tokens: TokensConfig
    model: RecognizerConfig
    augment: AugmentConfig
    optim: OptimConfig
    training: TrainingConfig
    seed: int = 0


class SpeechTask:
    """Connectionist temporal classification: labels from audio, without an alignment.

    Front end and augmentation run once for every minibatch: the passes of a step see the same features.
    """

    best = ("valid_wer", "min")

    def __init__(self, model: Recognizer, tokenizer: LabelTokenizer, sets: dict, config: Config, device: torch.device):
        self.model, self.tokenizer, self.config, self.device = model, tokenizer, config, device
        self.train: SpeechSet = sets["train"]
        self.valid: SpeechSet = sets["valid"]
        self.targets = tokenizer.encode_all(self.train.texts, self.train.ids)
        self.valid_targets = tokenizer.encode_all(self.valid.texts, self.valid.ids)
        check_labels(self.targets, tokenizer.vocab_size, self.train.ids)
        try:
            self.speed = SpeedPerturbation(config.augment.speeds).to(device)
            masks = {key: value for key, value in dataclasses.asdict(config.augment).items() if key != "speeds"}
            self.mask = SpecAugment(**masks)
        except ValueError as error:
            raise UserError(f"augment.{error}") from error

        def frames_of(samples: int) -> int:
            return model.output_frames(self.speed.shortest(samples))

        self.selection = select(self.train, self.targets, frames_of, config.corpus.max_seconds)
        share, shares = distributed.data_share(config.optim)
        try:
            self.minibatches = BucketBatches(
                self.train.samples,
                int(config.corpus.batch_seconds * self.train.rate / shares),
                self.selection.indices,
                seed=config.seed,
                buckets=config.corpus.buckets,
                smallest=2 if config.optim.halves else 1,
                rank=share,
                world_size=shares,
            )
        except UserError as error:
            raise UserError(f"corpus (lengths in samples at {self.train.rate:,} Hz): {error}") from None
        self.steps_per_epoch = -(-len(self.minibatches) // config.training.accumulate)
        if config.model.features.normalization == "global":
            model.features.measure(padded([self.train.waveform(index)]) for index in self.selection.indices)

    def start_epoch(self, epoch: int) -> None:
        """Nothing is carried from minibatch to minibatch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Augmented features (B, T, F), their lengths (B,), labels (B, U), their lengths (B,), and seconds (B,)."""
        batches = self.minibatches.epoch(epoch, start)
        for batch in prefetch(batches, lambda i: collate(self.train, self.targets, i), self.config.corpus.prefetch):
            batch = batch.to(self.device)
            with torch.no_grad():
                waves, lengths = self.speed(batch.waves, batch.wave_lengths)
                features, frames = self.model.features(waves, lengths)
                features = self.mask(features, frames)
            seconds = batch.wave_lengths / self.train.rate
            yield features, frames, batch.targets, batch.target_lengths, seconds

    def loss(self, batch: tuple[Tensor, ...], part: Pass) -> tuple[Tensor, float]:
        """Loss per label, averaged over the utterances; the units are seconds of audio."""
        features, frames, targets, target_lengths, seconds = part.take(*batch)
        logits, lengths = self.model(features, frames)
        losses = ctc_loss(logits, lengths, targets, target_lengths)
        return part.mean(losses / target_lengths), float(seconds.sum())

    def evaluate(self) -> dict[str, float]:
        """Loss per label and error rates in percent of the greedy transcripts of the validation set."""
        texts, loss = transcribe_set(
            self.model,
            self.valid,
            self.tokenizer,
            self.device,
            self.config.corpus.batch_seconds,
            None,
            self.valid_targets,
        )
        wanted = {
            key: self.tokenizer.normalize(text) for key, text in zip(self.valid.ids, self.valid.texts, strict=True)
        }
        rates = {f"valid_{name}": score(wanted, texts, unit).rate for name, unit in (("wer", "word"), ("cer", "char"))}
        return {"valid_loss": float("nan") if loss is None else loss, **rates}

    def state_dict(self) -> dict[str, Any]:
        """Nothing is carried from step to step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is carried from step to step."""


def build_tokenizer(config: TokensConfig, texts: list[str]) -> LabelTokenizer:
    """The tokenizer that the training transcripts give."""
    if config.level == "character":
        return CharacterTokenizer.train(texts, config.case, config.symbols, config.drop)
    return PieceTokenizer.train(texts, config.vocab_size, config.case, config.drop)


def load_sets(folder: Path, config: Config) -> dict[str, SpeechSet]:
    """Training and validation set."""
    names = {"train": config.corpus.train, "valid": config.corpus.valid}
    rate, cache = config.model.features.rate, config.corpus.cache_gigabytes
    return {role: load_speech(folder, name, rate, cache) for role, name in names.items()}


def main(argv: list[str] | None = None) -> int:
    """Trains as the command line says; returns the exit status."""
    command = training.parse_recipe(Config, argv, description=__doc__.splitlines()[0])
    config = command.config
    sets = load_sets(command.data, config)
    tokenizer = build_tokenizer(config.tokens, sets["train"].texts)
    device = training.setup(config.training, config.seed)
    model = Recognizer(config.model, tokenizer.vocab_size).to(device)
    task = SpeechTask(model, tokenizer, sets, config, device)
    about = {role: data.description() for role, data in sets.items()}

    def begin(run: Path) -> None:
        make_folder(run / layout.TOKENIZER)  # so that the run can be used without the data
        tokenizer.save(run / layout.TOKENIZER)
        parameters = sum(p.numel() for p in model.parameters())
        training.say(f"{sets['train']}; {task.selection}; {parameters:,} parameters")

    return training.train(command, task, {"data": about, "tokenizer": tokenizer.fingerprint}, begin)


if __name__ == "__main__":
    training.run_program(main)
