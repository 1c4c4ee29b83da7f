"""A finished run of a language model: its model, its tokenizer, its data."""

from pathlib import Path

import torch
from torch import nn

from ..data.text import TextDataset, load_text
from ..data.tokenizers import Tokenizer, load_tokenizer
from ..errors import UserError
from ..runs import checkpoints, layout
from ..runs.checkpoints import check_files, find_checkpoint
from ..runs.recipes import LANGUAGE_MODEL, read_recipe, read_section
from ..runs.settings import restored, restored_section
from .task import LanguageModelTask, build_model

KIND = LANGUAGE_MODEL


def load_language_model(run: str | Path, checkpoint: str | Path = "best") -> tuple[nn.Module, Tokenizer]:
    """The model (on the CPU, in evaluation mode) and the tokenizer of a run, whatever its network.

    Args:
        run: the run directory.
        checkpoint: as in :func:`seqssgd.runs.checkpoints.find_checkpoint`.

    Raises:
        UserError: not a run of a language model, no such checkpoint, a damaged one, or one of another model.
    """
    run = Path(run)
    recipe, config = read_recipe(run, KIND, settled=False)
    tokenizer = load_tokenizer(run / layout.TOKENIZER)
    path = find_checkpoint(run, checkpoint)
    try:
        model = build_model(restored_section(config["model"], recipe.config_class, "model"), tokenizer.vocab_size)
    except (TypeError, ValueError) as error:
        raise UserError(f"{run / layout.CONFIG} describes no language model ({error})") from None
    state = checkpoints.load_evaluated(path)
    check_files(run, state, path)
    checkpoints.load_model(model, state, path)
    return model.eval(), tokenizer


def check_same_data(run: str | Path, dataset: TextDataset) -> None:
    """Makes sure that a run was trained on ``dataset``: on the same text, prepared with the same settings.

    Raises:
        UserError: it was trained on another text, or on one with other tokens; or it is not a run.
    """
    trained_on = read_section(run, "data", KIND)
    if trained_on.get("fingerprint") != dataset.info["fingerprint"]:
        raise UserError(
            f"{dataset.folder} ({dataset.info['name']}) is not the data that {run} was trained on "
            f"({trained_on.get('name')}), or was prepared with other settings; give the folder of that"
        )


def open_task(run: str | Path, folder: str | Path, device: torch.device | str = "cpu") -> LanguageModelTask:
    """The training task of a run, with its best model, over the data that it was trained on.

    Args:
        run: the run directory.
        folder: the prepared text.
        device: for model and batches.

    Raises:
        UserError: as :func:`load_language_model` and :func:`check_same_data`.
    """
    model, tokenizer = load_language_model(run)
    recipe, config = read_recipe(run, KIND)
    data = load_text(folder)
    check_same_data(run, data)
    dataset = TextDataset(data.folder, data.info, tokenizer)
    return LanguageModelTask(model.to(device), dataset, restored(config, recipe.config_class), torch.device(device))


def load_model(run: str | Path, checkpoint: str | Path = "best") -> nn.Module:
    """The model of a run alone; see :func:`load_language_model`."""
    return load_language_model(run, checkpoint)[0]
