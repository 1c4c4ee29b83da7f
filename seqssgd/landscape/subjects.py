"""A finished run as something whose landscape can be looked at: its model, fixed batches of its data, and its loss.

A new kind of recipe is one more entry of ``KINDS``.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..optim.batchnorm import recalibrate_bn
from ..runs.checkpoints import find_checkpoint
from ..runs.reading import data_folder
from ..runs.recipes import read_recipe
from .ctc import ctc_loss
from .objective import Objective

SPLITS = ("train", "valid", "test")


@dataclass(eq=False)
class Subject:
    """A trained model with its task, as :func:`open_run` gives it.

    Attributes:
        name: of the run.
        kind: ``"language"``, ``"speech"`` or ``"images"``.
        model: in evaluation mode, at the checkpoint's weights, batch-norm statistics taken anew.
        checkpoint: the file that the weights are from.
        settings: of the run, its config.yaml.
        terms: what a loss term is, in the plural.
        error: what the error rate counts, such as "words".
        load: split, and what chooses some of its examples by their number, to batches on the model's device.
        terms_each: loss terms of an example.
        minibatch: examples in a minibatch of the training, where its settings do not say.
        outputs, losses: as of an :class:`Objective`.
        mistakes: outputs and batch to how many are wrong, and of how many.
        bn_batches: inputs that batch-norm statistics are taken from; empty where there is no batch norm.
    """

    name: str
    kind: str
    model: nn.Module
    checkpoint: Path
    settings: dict[str, Any]
    terms: str
    error: str
    load: Callable[[str, Callable[[int], list[int]]], list[Any]]
    outputs: Callable[[Any], Tensor]
    losses: Callable[[Tensor, Any], Tensor]
    mistakes: Callable[[Tensor, Any], tuple[int, int]]
    bn_batches: list[Tensor] = field(default_factory=list)
    terms_each: int = 1
    minibatch: int | None = None
    _batches: dict[tuple, list[Any]] = field(default_factory=dict)

    def batches(self, split: str, terms: int, half: int | None = None) -> list[Any]:
        """Fixed batches with about so many loss terms of a split, the same in every call; or every second of them.

        Raises:
            UserError: the data have no such split.
        """
        key = split, terms, half
        if key not in self._batches:
            self._batches[key] = self.load(split, lambda count: _evenly(count, terms // self.terms_each, half))
        return self._batches[key]

    def spread(self, split: str, terms: int) -> list[Any]:
        """Batches of the whole split, or where it has more loss terms than that, of so many; no two share one."""

        def choose(count: int) -> list[int]:
            starts = range(0, count, self.terms_each)
            return [starts[i] for i in _evenly(len(starts), terms // self.terms_each, None)]

        return self.load(split, choose)

    def random_batches(self, examples: int, seed: int) -> list[Any]:
        """Batches of so many random training examples, without augmentation."""
        generator = torch.Generator().manual_seed(seed)
        return self.load("train", lambda count: torch.randperm(count, generator=generator)[:examples].tolist())

    def objective(self, split: str, terms: int, half: int | None = None) -> Objective:
        """The loss on them."""
        return self.part(self.batches(split, terms, half))

    def part(self, batches: list[Any]) -> Objective:
        """The loss on given batches."""
        return Objective(self.model, batches, self.outputs, self.losses)

    @torch.no_grad()
    def figures(self, splits: Sequence[str], terms: int) -> dict[str, float]:
        """Loss and error rate in percent of every split, at the weights and statistics that the model has now."""
        found = {}
        for split in splits:
            loss, error, _ = self.loss_and_error(self.batches(split, terms))
            found |= {f"{split} loss": loss, f"{split} error": error}
        return found

    @torch.no_grad()
    def loss_and_error(self, batches: list[Any]) -> tuple[float, float, int]:
        """Loss and error rate in percent on some batches, and the number of their loss terms."""
        loss, count, wrong, of = 0.0, 0, 0, 0
        for batch in batches:
            outputs = self.outputs(batch)
            losses = self.losses(outputs, batch)
            loss, count = loss + losses.double().sum().item(), count + losses.numel()
            if losses.isfinite().all():
                mistakes = self.mistakes(outputs, batch)
                wrong, of = wrong + mistakes[0], of + mistakes[1]
        # a rate over the batches with a finite loss alone would pass for that of all
        return loss / count, 100 * wrong / of if of and math.isfinite(loss) else float("nan"), count

    def recalibrate(self) -> None:
        """Takes batch-norm statistics anew at the weights that the model has now."""
        if self.bn_batches:
            recalibrate_bn(self.model, self.bn_batches)


def open_run(
    run: str | Path,
    data: str | Path | None = None,
    checkpoint: str = "best",
    device: torch.device | str = "cpu",
    bn_images: int = 1000,
) -> Subject:
    """Opens a run of the recipes ``ptb_lstm``, ``wsj_sgcn`` and ``cifar_cnn``.

    Args:
        run: the run directory.
        data: the prepared data that it was trained on; None: see :func:`seqssgd.runs.reading.data_folder`.
        checkpoint: as in :func:`seqssgd.runs.checkpoints.find_checkpoint`.
        device: to compute on.
        bn_images: training images that batch-norm statistics are taken from, in minibatches as in training.

    Raises:
        UserError: no run of these recipes, no such checkpoint or one of another model, or with a weight that is not
            finite, other data.
    """
    recipe, settings = read_recipe(run)
    path, folder = find_checkpoint(run, checkpoint), data_folder(run, data)
    build = KINDS.get(recipe.name)
    if build is None:
        raise UserError(f"{run}: landscapes are for runs of the recipes {', '.join(KINDS)}")
    subject = build(Path(run), folder, path, settings, torch.device(device), bn_images)
    for name, weight in subject.model.named_parameters():
        if not weight.isfinite().all():
            raise UserError(
                f"{run}: its checkpoint {path.name} has weights that are not finite ({name}); "
                "give another checkpoint of it (RUN@CHECKPOINT), or leave the run out"
            )
    subject.recalibrate()
    subject.model.eval()
    return subject


def _evenly(count: int, wanted: int, half: int | None) -> list[int]:
    """``wanted`` indices out of ``count``, or all, evenly spaced; or every second of these, from number ``half`` on."""
    wanted = min(count, max(2, wanted))
    chosen = [index * count // wanted for index in range(wanted)]
    return chosen if half is None else chosen[half::2]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"split {split!r} is missing; there are {', '.join(SPLITS)}")


# ---- language --------------------------------------------------------------------------------------------------------


def _language(run: Path, folder: Path, path: Path, settings: dict, device: torch.device, _: int) -> Subject:
    """Windows of the text, each read from the zero state."""
    from ..data.text import TextDataset, load_text
    from ..language.finished import check_same_data, load_language_model

    dataset = load_text(folder)
    check_same_data(run, dataset)
    model, tokenizer = load_language_model(run, path)
    model.to(device)
    dataset = TextDataset(dataset.folder, dataset.info, tokenizer)
    length, columns = settings["sequence_length"], settings["batch_size"]

    def load(split: str, choose: Callable[[int], list[int]]) -> list[tuple[Tensor, Tensor]]:
        _check_split(split)
        stream = dataset.split(split)
        if len(stream) <= length:
            raise UserError(f"{folder}: its split {split} has {len(stream)} tokens, fewer than a window of {length}")
        starts = choose(len(stream) - length)
        windows = torch.stack([stream[start : start + length + 1] for start in starts], 1).to(device)
        return [(part[:-1], part[1:]) for part in windows.split(columns, 1)]

    def mistakes(logits: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[int, int]:
        return int((logits.argmax(-1) != batch[1].flatten()).sum()), batch[1].numel()

    return Subject(
        str(run), "language", model, path, settings, "tokens", "next tokens", load,
        outputs=lambda batch: model(batch[0])[0].flatten(0, 1).float(),
        losses=lambda logits, batch: F.cross_entropy(logits, batch[1].flatten(), reduction="none"),
        mistakes=mistakes,
        terms_each=length,
    )  # fmt: skip


# ---- speech ----------------------------------------------------------------------------------------------------------


def _speech(run: Path, folder: Path, path: Path, settings: dict, device: torch.device, _: int) -> Subject:
    from ..speech.batching import by_length, collate, select
    from ..speech.decode import greedy
    from ..speech.finished import load_for_run, load_recognizer
    from ..speech.scoring import score

    model, tokenizer = load_recognizer(run, path)
    model.to(device)
    known = settings.get("data", {})
    sets = {role: load_for_run(run, folder, role) for role in ("train", "valid")}
    for role, data in sets.items():
        if not data.is_that_of(known.get(role, {})):
            raise UserError(f"{folder} is not the corpus that {run} was trained on; give the folder of that")

    seconds = sum(sets["train"].samples) / sets["train"].rate / len(sets["train"])

    @torch.no_grad()
    def load(split: str, choose: Callable[[int], list[int]]) -> list[tuple]:
        _check_split(split)
        data = sets.get(split) or load_for_run(run, folder, split)
        targets = tokenizer.encode_all(data.texts, data.ids)
        possible = select(data, targets, model.output_frames).indices
        chosen = [possible[i] for i in choose(len(possible))]
        batches = []
        for part in by_length([data.samples[i] for i in chosen], int(120 * data.rate)):
            indices = [chosen[i] for i in part]
            batch = collate(data, targets, indices).to(device)
            features, frames = model.features(batch.waves, batch.wave_lengths)
            lengths = model(features, frames)[1]
            texts = {data.ids[i]: tokenizer.normalize(data.texts[i]) for i in indices}
            batches.append((features, frames, lengths, batch.targets, batch.target_lengths, texts))
        return batches

    def mistakes(logits: Tensor, batch: tuple) -> tuple[int, int]:
        texts = batch[5]
        heard = dict(zip(texts, map(tokenizer.decode, greedy(logits, batch[2])), strict=True))
        counts = score(texts, heard, "word").counts
        return counts.errors, counts.reference

    return Subject(
        str(run), "speech", model, path, settings, "utterances", "words", load,
        outputs=lambda batch: model(batch[0], batch[1])[0].float(),
        losses=lambda logits, batch: ctc_loss(logits, batch[2], batch[3], batch[4]) / batch[4],
        mistakes=mistakes,
        minibatch=max(2, round(settings["corpus"]["batch_seconds"] / seconds)),
    )  # fmt: skip


# ---- images ----------------------------------------------------------------------------------------------------------


def _images(run: Path, folder: Path, path: Path, settings: dict, device: torch.device, bn_images: int) -> Subject:
    from ..data.images import AugmentedBatches, Normalization, load_images
    from ..images.finished import check_same_images, load_classifier

    dataset = load_images(folder)
    check_same_images(run, dataset)
    model = load_classifier(run, path).to(device)
    corpus = settings["corpus"]
    train, valid = (part.to(device) for part in dataset.split("train").hold_out(corpus["valid"]))
    normalization = Normalization(dataset.info["mean"], dataset.info["std"], device)
    batch_size = settings["batch_size"]
    minibatches = AugmentedBatches(
        train, normalization, batch_size, corpus["pad"], corpus["flip"], settings["seed"]
    )  # those that training began with, as evaluation takes them
    number = min(-(-bn_images // batch_size), len(minibatches))

    def load(split: str, choose: Callable[[int], list[int]]) -> list[tuple[Tensor, Tensor]]:
        _check_split(split)
        data = {"train": train, "valid": valid}.get(split) or dataset.split("test").to(device)
        if not len(data.labels):
            raise UserError(f"{run}: its split {split} has no images (corpus.valid: 0); take another")
        chosen = torch.tensor(choose(len(data.labels)), device=device)
        parts = zip(data.images[chosen].split(256), data.labels[chosen].split(256), strict=True)
        return [(normalization(images), labels) for images, labels in parts]

    def mistakes(logits: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[int, int]:
        return int((logits.argmax(1) != batch[1]).sum()), len(batch[1])

    return Subject(
        str(run), "images", model, path, settings, "images", "images", load,
        outputs=lambda batch: model(batch[0]).float(),
        losses=lambda logits, batch: F.cross_entropy(logits, batch[1], reduction="none"),
        mistakes=mistakes,
        bn_batches=[images for images, _ in itertools.islice(minibatches.epoch(0), number)],
    )  # fmt: skip


# What opens the runs of each recipe.
KINDS: dict[str, Callable[..., Subject]] = {"ptb_lstm": _language, "wsj_sgcn": _speech, "cifar_cnn": _images}
