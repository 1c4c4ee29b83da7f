"""The training of a speech recogniser: its data, its loss, its evaluation."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..data.prefetching import prefetch
from ..data.speech import SpeechSet, load_speech
from ..errors import UserError
from ..optim import Pass
from ..processes import world_size
from ..training import Task, distributed
from .batching import BucketBatches, collate, padded, select
from .config import Config, TokensConfig
from .features import SpecAugment, SpeedPerturbation
from .recognizer import Recognizer, ctc_loss, transcribe_set
from .scoring import score
from .tokens import CharacterTokenizer, LabelTokenizer, PieceTokenizer, check_labels


class SpeechTask(Task):
    """Connectionist temporal classification: labels from audio, without an alignment.

    Front end and augmentation run once for every minibatch: the passes of a step see the same features, those of two
    processes that share a minibatch too.
    """

    model: Recognizer
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
        config.training.check_accumulate(len(self.minibatches))
        self.steps_per_epoch = -(-len(self.minibatches) // config.training.accumulate)
        if config.model.features.normalization == "global":
            model.features.measure(padded([self.train.waveform(index)]) for index in self.selection.indices)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Augmented features (B, T, F), their lengths (B,), labels (B, U), their lengths (B,), and seconds (B,)."""
        batches = self.minibatches.epoch(epoch, start)
        loaded = prefetch(batches, lambda i: collate(self.train, self.targets, i), self.config.corpus.prefetch)
        for number, batch in enumerate(loaded, start):
            batch = batch.to(self.device)
            with torch.no_grad(), self.alike(epoch, number):
                waves, lengths = self.speed(batch.waves, batch.wave_lengths)
                features, frames = self.model.features(waves, lengths)
                features = self.mask(features, frames)
            seconds = batch.wave_lengths / self.train.rate
            yield features, frames, batch.targets, batch.target_lengths, seconds

    @contextlib.contextmanager
    def alike(self, epoch: int, number: int) -> Iterator[None]:
        """Draws in this block are those of torch's global generators, which every process has of its own. Where two
        share a minibatch (signs "pairs"), they are seeded alike: else w+n and w-n would be given other features.
        """
        share, shares = distributed.data_share(self.config.optim)
        if shares == world_size():
            yield
            return
        seed = self.minibatches.generator(epoch, f"augmentation {number} {share}").initial_seed()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

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
