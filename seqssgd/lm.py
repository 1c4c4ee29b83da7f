"""A trained language model, read back from its run directory: what text it finds likely, and what it writes."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqssgd.data.lines import split_lines
from seqssgd.data.text import TextDataset
from seqssgd.data.tokenizers import Tokenizer, load_tokenizer
from seqssgd.errors import UserError
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.runs import checkpoints, layout
from seqssgd.runs.checkpoints import check_files, find_checkpoint
from seqssgd.runs.settings import LANGUAGE_MODEL, read_section


class Perplexity(NamedTuple):
    """``perplexity`` = exp(mean of −ln p) over ``predictions`` predicted tokens."""

    perplexity: float
    predictions: int


def load_language_model(run: str | Path, checkpoint: str | Path = "best") -> tuple[LSTMLanguageModel, Tokenizer]:
    """The model (on the CPU, in evaluation mode) and the tokenizer of a run of ``recipes/ptb_lstm/train.py``.

    Args:
        run: the run directory.
        checkpoint: as in :func:`seqssgd.runs.checkpoints.find_checkpoint`.

    Raises:
        UserError: not a run of a language model, no such checkpoint, a damaged one, or one of another model.
    """
    run = Path(run)
    settings = read_section(run, "model", LANGUAGE_MODEL)
    tokenizer = load_tokenizer(run / layout.TOKENIZER)
    path = find_checkpoint(run, checkpoint)
    try:
        model = LSTMLanguageModel(tokenizer.vocab_size, **settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{run / layout.CONFIG}: section 'model' describes no LSTM language model ({error})") from None
    state = checkpoints.load(path)
    check_files(run, state, path)
    checkpoints.load_model(model, state, path)
    return model.eval(), tokenizer


def check_same_data(run: str | Path, dataset: TextDataset) -> None:
    """Makes sure that a run was trained on ``dataset``: on the same text, prepared with the same settings.

    Raises:
        UserError: it was trained on another text, or on one with other tokens; or it is not a run.
    """
    trained_on = read_section(run, "data", LANGUAGE_MODEL)
    if trained_on.get("fingerprint") != dataset.info["fingerprint"]:
        raise UserError(
            f"{dataset.folder} ({dataset.info['name']}) is not the data that {run} was trained on "
            f"({trained_on.get('name')}), or was prepared with other settings; give that --data"
        )


@torch.no_grad()
def perplexity(
    model: LSTMLanguageModel, stream: Tensor, device: torch.device | str = "cpu", window: int = 512
) -> Perplexity:
    """Perplexity of one stream, read in order and whole, at batch 1, with one state carried from end to end.

    As in Zaremba et al.'s test, the first token only starts the model: N tokens give N − 1 predictions. The model
    is moved to ``device`` and left in the mode, training or evaluation, in which it came.

    Args:
        model: the language model.
        stream: (N,) token ids.
        device: where to compute.
        window: tokens read at once; bounds the memory and does not change the result.

    Raises:
        UserError: fewer than two tokens.
    """
    if len(stream) < 2:
        raise UserError(f"a text of {len(stream)} token has nothing to predict; give at least two")
    training = model.training
    model.to(device).eval()
    total, state = 0.0, None
    for first in range(0, len(stream) - 1, window):
        tokens = stream[first : first + window + 1].to(device)
        logits, state = model(tokens[:-1, None], state)
        losses = F.cross_entropy(logits[:, 0].float(), tokens[1:], reduction="none")
        total += losses.sum(dtype=torch.float64).item()
    model.train(training)
    predictions = len(stream) - 1
    mean = total / predictions
    return Perplexity(math.exp(mean) if mean < 700 else mean * math.inf, predictions)


def describe(score: Perplexity, stream: Tensor, tokenizer: Tokenizer) -> str:
    """One line on the perplexity of a stream: what it is, and over which tokens it was taken."""
    unknown = 0 if tokenizer.unk_id is None else int((stream == tokenizer.unk_id).sum())
    return (
        f"perplexity {score.perplexity:.3f}, {len(stream):,} tokens with <eos> ({unknown:,} unknown), "
        f"{score.predictions:,} predictions"
    )


@torch.no_grad()
def generate(
    model: LSTMLanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    length: int = 100,
    temperature: float = 1.0,
    seed: int = 0,
) -> str:
    """Continues a text by sampling.

    Args:
        model: the language model; computes where its weights are.
        tokenizer: the tokenizer of the run.
        prompt: how the text begins, at the start of a line; may be empty.
        length: number of tokens to add.
        temperature: logits are divided by it; below 1 the likely becomes likelier, 0 always takes the likeliest.
        seed: the same seed gives the same text on the same device.

    Returns:
        The prompt and its continuation.

    Raises:
        UserError: a length below 1, a negative or infinite temperature, or a word of the prompt that is unknown.
    """
    if length < 1:
        raise UserError(f"--length {length}: it must be at least 1")
    if not 0 <= temperature < math.inf:
        raise UserError(f"--temperature {temperature}: it must be a number from 0 up")
    # the stream that the model learned has an <eos> before every line; the prompt's last line goes on
    ids = [tokenizer.eos_id, *tokenizer.encode(split_lines(prompt), "the prompt")[:-1].tolist()]
    device = model.output.weight.device
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    model.eval()
    state = None
    for _ in range(length):
        new = ids if state is None else ids[-1:]
        logits, state = model(torch.tensor(new, device=device)[:, None], state)
        last = logits[-1, 0].double().cpu()
        if temperature == 0:
            ids.append(int(last.argmax()))
        else:
            probabilities = ((last - last.max()) / temperature).softmax(0)  # no overflow at a tiny temperature
            ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    model.train(training)
    return tokenizer.decode(ids[1:])
