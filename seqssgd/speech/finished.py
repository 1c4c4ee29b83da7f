"""A finished run of a speech recogniser: its model, its tokenizer, its data."""

from pathlib import Path

import torch
from torch import nn

from ..data.speech import SpeechSet, load_speech
from ..errors import UserError
from ..runs import checkpoints, layout
from ..runs.checkpoints import check_files, find_checkpoint
from ..runs.recipes import RECOGNISER, read_recipe, read_section
from ..runs.settings import restored, restored_section
from .recognizer import Recognizer
from .task import SpeechTask, load_sets
from .tokens import LabelTokenizer, load_tokenizer

KIND = RECOGNISER
SPLITS = ("train", "valid", "test")


def load_recognizer(run: str | Path, checkpoint: str | Path = "best") -> tuple[Recognizer, LabelTokenizer]:
    """The model (on the CPU, in evaluation mode) and the tokenizer of a run, whatever its network.

    Args:
        run: the run directory.
        checkpoint: as in :func:`seqssgd.runs.checkpoints.find_checkpoint`.

    Raises:
        UserError: not a run of a speech recogniser, a tokenizer or a checkpoint of another run, or a damaged one.
    """
    run = Path(run)
    recipe, config = read_recipe(run, KIND, settled=False)
    try:
        settings = restored_section(config["model"], recipe.config_class, "model")
    except (TypeError, ValueError) as error:
        raise UserError(f"{run / layout.CONFIG} describes no speech recogniser ({error})") from None
    tokenizer = load_tokenizer(run / layout.TOKENIZER)
    if tokenizer.fingerprint != config.get("tokenizer"):
        raise UserError(f"{run / layout.TOKENIZER} is not the tokenizer that {run} was trained with; put its own back")
    path = find_checkpoint(run, checkpoint)
    model = Recognizer(settings, tokenizer.vocab_size)
    state = checkpoints.load_evaluated(path)
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
        raise UserError(f"{folder} is not the corpus that {run} was trained on; give the folder of that")


def open_task(run: str | Path, folder: str | Path, device: torch.device | str = "cpu") -> SpeechTask:
    """The training task of a run, with its best model, over the corpus that it was trained on.

    Args:
        run: the run directory.
        folder: the prepared corpus.
        device: for model and batches.

    Raises:
        UserError: as :func:`load_recognizer` and :func:`check_same_corpus`.
    """
    model, tokenizer = load_recognizer(run)
    check_same_corpus(run, folder)
    recipe, config = read_recipe(run, KIND)
    settings = restored(config, recipe.config_class)
    sets = load_sets(Path(folder), settings)
    return SpeechTask(model.to(device), tokenizer, sets, settings, torch.device(device))


def load_model(run: str | Path, checkpoint: str | Path = "best") -> nn.Module:
    """The model of a run alone; see :func:`load_recognizer`."""
    return load_recognizer(run, checkpoint)[0]
